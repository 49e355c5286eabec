"""Intervals on bodies that were simulated: ``python -m benchmarks.uncertainty_bodies TOOLS DATA RUN FOLD...``.

RUN was trained on the bodies and calibrated (`emmi-jax calibrate`). Each FOLD was trained without other ones of them,
which are its validation cases, so that together they calibrate without a case being spent (cross-conformal prediction).
The test cases are the same for all. Beside the coverage: that of the members without any calibration, widths, the rank
correlation of error and deviation, and how far a body outside the ranges of the parameters is from the training cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from benchmarks import measure
from benchmarks.cross_conformal import cross_interval, cross_p_value
from benchmarks.solver_differences import bodies
from emmi_jax.config.jobs import EvaluationJob, ForceOptions
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.inference.case_encoding import describe
from emmi_jax.jobs.evaluation_cases import case_arguments, checked_case, chosen_cases
from emmi_jax.jobs.evaluation_coverage import CaseScore, coverage_of, field_coverage, number_coverage
from emmi_jax.jobs.evaluation_forces import NAMES, ForceEvaluation
from emmi_jax.runs.calibration import read_calibration, read_familiarity
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run

LEVELS = (0.5, 0.8, 0.9)
FAR = 0.5
"""How far the parameters of a body are beyond their ranges, in ranges."""

ScoresBy = dict[str, list[CaseScore]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", type=Path, help="folder of body.py")
    parser.add_argument("data", type=Path, help="folder of the bodies' cases")
    parser.add_argument("run", type=Path, help="a calibrated run")
    parser.add_argument("folds", type=Path, nargs="*", help="runs that leave out some cases each")
    parser.add_argument("--share", type=float, default=0.9, help="share of the points to cover (%(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/uncertainty_bodies.json"), help="(%(default)s)"
    )
    options = parser.parse_args()
    calibration = read_calibration(options.run, load_run(options.run))
    new = scores_of(options.run, options.data, "test", options.share)
    split = coverage_of(calibration, new, has_deviations=True)
    known, by_fold = crossed(options.folds, options.data, options.share)
    rows = []
    for quantity, cases in new.items():
        for level in LEVELS:
            of_level = split["levels"][f"{level:g}"]
            plain = norm.ppf((1 + level) / 2)
            row = {
                "quantity": quantity,
                "level_%": 100 * level,
                "split_%": 100 * of_level["covered"][quantity],
                "cross_%": None,
                "uncalibrated_%": 100 * float(np.mean([of.score <= plain for of in cases])),
                "split_half_width": of_level["half_width"][quantity],
                "uncalibrated_half_width": plain * float(np.mean([of.deviation for of in cases])),
                "cross_half_width": None,
                "rank_correlation": split["rank_correlation"].get(quantity),
            }
            if options.folds:
                row |= _crossed_row(quantity, level, known[quantity], by_fold[quantity])
            rows.append(row)
    measure.report(f"{split['cases']} bodies, calibrated on {split['calibration_cases']}", rows, options.json)
    distances = list(_distances(options))
    name = options.json.with_stem(f"{options.json.stem}_familiarity")
    measure.report("distance from the training cases", distances, name)


def scores_of(run: Path, data: Path, split: str, share: float) -> ScoresBy:
    """Returns what a run finds of the cases of a split, by quantity."""
    surrogate, config = replace(load_run(run), context=None), RunDirectory.open(run).read_config()
    chosen = chosen_cases(EvaluationJob(run=run, data=str(data), split=split), config, surrogate)
    forces = ForceEvaluation(ForceOptions(area=1.0), chosen.known_forces, surrogate.model.config.fields)
    scores: ScoresBy = {}
    for name, read in chosen.read.items():
        case = checked_case(name, read(), surrogate)
        forces.begin(name, case)
        encoded = surrogate.encode_draws(1, **case_arguments(surrogate, case))
        of_case, spreads = field_coverage(encoded, surrogate, case, forces.cases[name], share=share)
        for coefficient in NAMES:
            known = forces.cases[name].known["solver"][coefficient]
            of_case[coefficient] = number_coverage(spreads[coefficient], known, area=1.0)
        for quantity, of in of_case.items():
            scores.setdefault(quantity, []).append(of)
        print(f"{run.name} {split} {name}", flush=True)
    return scores


def crossed(folds: Sequence[Path], data: Path, share: float) -> tuple[ScoresBy, dict[str, list[list[CaseScore]]]]:
    """Returns what each fold finds of the cases that it left out, and for each of those what it finds of new cases."""
    known: ScoresBy = {}
    new: dict[str, list[list[CaseScore]]] = {}
    for run in folds:
        left_out, of_fold = (scores_of(run, data, split, share) for split in ("validation", "test"))
        for quantity, scores in left_out.items():
            known.setdefault(quantity, []).extend(scores)
            new.setdefault(quantity, []).extend([of_fold[quantity]] * len(scores))
    return known, new


def _crossed_row(quantity: str, level: float, known: list[CaseScore], by_fold: list[list[CaseScore]]) -> dict[str, Any]:
    scores, cases = [of.score for of in known], list(zip(*by_fold, strict=True))
    p_values = [cross_p_value(scores, [of.score for of in case]) for case in cases]
    row: dict[str, Any] = {"cross_%": 100 * float(np.mean([p > 1 - level for p in p_values]))}
    if quantity in NAMES:
        ends = [
            cross_interval(scores, [of.error for of in case], [of.deviation for of in case], level) for case in cases
        ]
        row["cross_half_width"] = float(np.mean([high - low for low, high in ends])) / 2
    return row


def _distances(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields distances and p-values of the test cases, and of bodies outside the ranges of the parameters."""
    surrogate, config = replace(load_run(options.run), context=None), RunDirectory.open(options.run).read_config()
    usual = read_familiarity(options.run, surrogate)
    if usual is None:
        raise ValueError(f"{options.run} does not know its training cases: emmi-jax calibrate {options.run}")
    chosen = chosen_cases(EvaluationJob(run=options.run, data=str(options.data), split="test"), config, surrogate)
    module, shown = bodies(options.tools), {}
    for name, read in chosen.read.items():
        shown[name] = case_arguments(surrogate, checked_case(name, read(), surrogate))
    last = next(reversed(shown.values()))
    for sign in (-1, 1):
        for names in (["length"], ["width"], ["height"], list(module.RANGES)):
            middle = {name: (low + high) / 2 for name, (low, high) in module.RANGES.items()}
            far = {name: middle[name] + sign * (0.5 + FAR) * np.ptp(module.RANGES[name]) for name in names}
            far = {name: max(value, 0.3 * module.RANGES[name][0]) for name, value in far.items()}
            vertices, triangles = module.whole_body({**middle, **far})
            position = sample_triangles(np.random.default_rng(0), vertices[triangles], 20_000)
            shown[f"{'-+'[sign > 0]} {names[0] if len(names) == 1 else 'all'}"] = {**last, "geometry": position}
    for name, arguments in shown.items():
        case = describe(surrogate.encode_draws(1, **arguments))
        traits, encoding = map(float, usual.distances(case))
        distance = usual.distance(case)
        yield {"case": name, "traits": traits, "encoding": encoding, "p_value": usual.p_value(distance)}


if __name__ == "__main__":
    main()
