"""Predicted forces of bodies over the direction of the stream: ``python -m benchmarks.body_yaw_sweep RUN CASES``.

CASES is what `benchmarks.body_yaw` wrote. All cases of a body have one mesh, so a sweep reads the first of them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.body_yaw import SPEED
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.open import open_cases
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.evaluation_cases import case_arguments
from emmi_jax.meshes.forces import field_forces
from emmi_jax.plots.sweep import draw_sweep
from emmi_jax.points import Array
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run

AXES = {"CdA": "drag area, along x [m²]", "CsA": "side, along y [m²]"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run on cases of benchmarks.body_yaw")
    parser.add_argument("cases", type=Path, help="their folder")
    parser.add_argument("--bodies", type=int, nargs="+", default=[0, 1, 5], help="(%(default)s)")
    parser.add_argument("--yaw", type=float, nargs="+", default=np.linspace(0, 15, 13).tolist(), help="in degrees")
    parser.add_argument("--repeats", type=int, default=4, help="draws of anchors to average over (%(default)s)")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each body")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/body_yaw.json"), help="(%(default)s)")
    options = parser.parse_args()
    surrogate, config = replace(load_run(options.run), context=None), RunDirectory.open(options.run).read_config()
    read = ReadOptions(with_area_vectors=True, sources=config.field_sources())
    opened = open_cases(str(options.cases), read, config.foam(None, None))
    if opened is None:
        raise ValueError(f"{options.cases}: no cases")
    train = {name for name, part in (config.split or {}).items() if part == "train"}
    rows = []
    for body in options.bodies:
        known = solver_forces(options.cases, body)
        case = opened.cases.read(next(iter(known.values()))["case"])
        values = sorted({*options.yaw, *known})
        predicted = [forces(surrogate, case, yaw, options.repeats) for yaw in values]
        for yaw, of_solver in known.items():
            found = predicted[values.index(yaw)]
            row: dict[str, Any] = {"body": body, "yaw": yaw, "trained": of_solver["case"] in train}
            for name in AXES:
                row |= {f"{name}_solver": of_solver[name], f"{name}_predicted": found[name]}
            rows.append(row)
        if options.pictures is not None:
            by_name = {label: np.array([found[name] for found in predicted]) for name, label in AXES.items()}
            truth = {
                label: np.array([known[yaw][name] if yaw in known else np.nan for yaw in values])
                for name, label in AXES.items()
            }
            file = options.pictures / f"body_{body:02d}_yaw.png"
            draw_sweep(file, "yaw [deg]", np.array(values), by_name, truth)
    measure.report("Forces by direction of the stream", rows, options.json)


def solver_forces(cases: Path, body: int) -> dict[float, dict[str, Any]]:
    """Returns what the solver found for a body, and the name of the case, by direction."""
    files = sorted(cases.glob(f"body_{body:02d}_yaw_*/forces.json"))
    return {float(f.parent.name[-4:]): json.loads(f.read_text()) | {"case": f.parent.name} for f in files}


def forces(surrogate: Surrogate, case: Case, yaw: float, repeats: int) -> dict[str, float]:
    """Returns the coefficients times area along x and y, as means over draws."""
    arguments = case_arguments(surrogate, case) | {"condition": {"yaw": yaw}}
    surface, total = case.points["surface"], np.zeros(3)
    vector: Array = np.asarray(surface.area_vector, np.float64)
    area = np.linalg.norm(vector, axis=1)
    for seed in range(repeats):
        found = surrogate.encode(**arguments, seed=seed).predict({"surface": surface.position})
        fields = {name: found[f"surface_{name}"] for name in surrogate.model.config.fields["surface"]}
        on_cells = field_forces(fields, vector / area[:, None], area, dynamic_pressure=SPEED**2 / 2)
        total += np.asarray(on_cells).sum(axis=0) / (SPEED**2 / 2) / repeats
    return {"CdA": float(total[0]), "CsA": float(total[1])}


if __name__ == "__main__":
    main()
