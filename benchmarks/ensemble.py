"""Evaluates the mean of several runs' predictions: ``python -m benchmarks.ensemble OUT RUN RUN... [--data DATA]``.

The runs must have the same branches and fields, such as those of different seeds. Tables and files are those of
`emmi-jax evaluate`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import rich.console

from emmi_jax.config.jobs import EvaluationJob
from emmi_jax.data.cases import Case
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs import evaluate
from emmi_jax.points import Fields
from emmi_jax.runs.load import load_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the tables")
    parser.add_argument("runs", type=Path, nargs="+", help="the runs")
    parser.add_argument("--data", help="cases or a store; those that the first run was trained on")
    parser.add_argument("--repeats", type=int, default=1, help="draws of anchors (%(default)s)")
    options = parser.parse_args()
    members = [replace(load_run(run), context=None) for run in options.runs]
    predict_one = evaluate._predict

    def predict(surrogate: Surrogate, case: Case, *, seed: int) -> Fields:
        predicted = [predict_one(member, case, seed=seed) for member in members]
        mean: Fields = jax.tree.map(lambda *fields: np.mean(fields, axis=0), *predicted)
        return mean

    evaluate._predict = predict
    job = EvaluationJob(run=options.runs[0], data=options.data, out=options.out, repeats=options.repeats)
    evaluate.evaluate_run(job, console=rich.console.Console())


if __name__ == "__main__":
    main()
