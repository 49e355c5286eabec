"""Trains variants of the settings and compares their errors on unseen cases.

``python -m benchmarks.accuracy`` has the built-in ellipsoids; ``--data DIR`` has cases with a ``split.json``. To choose
between variants, each seed holds out other cases of the train and validation parts; the test part is for ``--final``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rich.console
import rich.table

from emmi_jax.cli import main as emmi_jax
from emmi_jax.files.atomic import read_json, write_json

ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 4e-3, "optimizer.b2": 0.99}
MUON = {"optimizer.name": "muon", "optimizer.learning_rate": 2e-3, "optimizer.b2": 0.95}
VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "mse": {"loss": "mse"},
    "rmse": {"loss": "rmse"},
    "adamw": ADAMW,
    "adamw_mse": ADAMW | {"loss": "mse"},
    "muon": MUON,
    "muon_1e-3": MUON | {"optimizer.learning_rate": 1e-3},
    "muon_3e-3": MUON | {"optimizer.learning_rate": 3e-3},
    "muon_4e-3": MUON | {"optimizer.learning_rate": 4e-3},
    "dense_0.2": {"dense_fraction": 0.2},
    "cases_2": {
        "batch_size": 2,
        "sampling.num_anchors": 96,
        "sampling.num_queries": 32,
        "sampling.num_geometry_points": 512,
        "sampling.num_supernodes": 64,
    },
    "cases_4": {"batch_size": 4, "sampling.num_anchors": 64, "sampling.num_supernodes": 64},
    "average": {"optimizer.ema_decay": 0.998},
    "weight_decay_0.1": {"optimizer.weight_decay": 0.1},
    "drop_path_0.1": {"model.drop_path_rate": 0.1},
    "dim_192": {"model.dim": 192, "model.num_heads": 6},
    "range_200": {"position_range": 200.0, "model.max_wavelength": 200.0},
    "range_5000": {"position_range": 5000.0, "model.max_wavelength": 10_000.0},
    "joint": {"model.physics_blocks": ["perceiver", "joint", "joint", "joint", "joint"]},
    "points_256_768": {"sampling.num_anchors": 256, "sampling.num_queries": 768},
}
HELD_OUT = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="cases, or a store; the built-in ellipsoids if left out")
    parser.add_argument("--recipe", help="recipe of the settings")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-cases", type=int, nargs="+", help="train on the first so many cases: a learning curve")
    parser.add_argument("--final", action="store_true", help="train on the train part and test on the test part")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all variants")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/accuracy.json"), help="(%(default)s)")
    options = parser.parse_args()
    rows = []
    for num_cases in options.train_cases or [None]:
        for variant in options.variants:
            runs = [_run(options, variant, seed, num_cases) for seed in options.seeds]
            cases = {} if num_cases is None else {"train_cases": num_cases}
            rows.append({"variant": variant, **cases, **_summary(runs)})
            print(json.dumps(rows[-1]), flush=True)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.json, rows)
    table = rich.table.Table(*rows[0])
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.4g}" for value in row.values()))
    rich.console.Console(width=160).print(table)


def _run(options: argparse.Namespace, variant: str, seed: int, num_cases: int | None) -> dict[str, float]:
    """Trains and evaluates once; returns errors by field, those of the drag, and the seconds of the training."""
    changes = [f"{key}={json.dumps(value)}" for key, value in VARIANTS[variant].items()] + options.set
    with TemporaryDirectory() as folder:
        command = ["train", "--out", folder, "--name", "run", "--seed", str(seed)]
        command += ["--recipe", options.recipe] if options.recipe else []
        if options.data is not None:
            split = Path(folder, "split.json")
            write_json(split, _split(options.data, seed, final=options.final, num_cases=num_cases))
            command += ["--data", str(options.data), "--split", str(split)]
        start = time.perf_counter()
        _call([*command, *(word for change in changes for word in ("--set", change))])
        seconds, run = time.perf_counter() - start, Path(folder, "run")
        if options.data is None:
            found = read_json(run / "metrics.json")["test"]
            return {"seconds": seconds} | {name: metrics["relative_l2"] for name, metrics in found.items()}
        _call(["evaluate", str(run)])
        found = read_json(run / "evaluation_test.json")
        drag = found["forces"]["metrics"]["cd"]["predicted_against_reference"]
        errors = {name: metrics["relative_l2"] for name, metrics in found["mean"].items()}
        return {"seconds": seconds, **errors, "drag_%": drag["mae_percent"], "drag_r2": drag["r2"]}


def _call(command: list[str]) -> None:
    if status := emmi_jax(command):
        raise SystemExit(f"emmi-jax {' '.join(command)}: status {status}")


def _split(data: Path, seed: int, *, final: bool, num_cases: int | None) -> dict[str, Sequence[str]]:
    parts = read_json(data / "split.json")
    if final:
        return {"train": parts["train"][:num_cases], "test": parts["test"]}
    names = np.random.default_rng(seed).permutation(parts["train"] + parts.get("validation", [])).tolist()
    num_held_out = round(HELD_OUT * len(names))
    return {"train": names[num_held_out:][:num_cases], "test": names[:num_held_out]}


def _summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Returns means over the seeds, and the spread of the mean error of the fields."""
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    fields = [name for name in means if "/" in name]
    of_runs = [np.mean([run[name] for name in fields]) for run in runs]
    return means | {"mean": float(np.mean(of_runs)), "spread": float(np.ptp(of_runs))}


if __name__ == "__main__":
    main()
