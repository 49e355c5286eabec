"""`emmi-jax train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from emmi_jax.jobs.datasets import default_settings
from emmi_jax.training.settings import TrainSettings

_DEFAULTS = default_settings(None)
_BUILT_IN_NAME = "ellipsoids"


def train(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="One case: an .npz file with an array 'position' (N, 3), every other array a field (N,) or (N, C); "
            "or a folder, as below. Default: exact potential flow past ellipsoids.",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Which cases are for what, as below; default: split.json beside them."),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help="Scales to use instead of measuring them: drivaerml-tutorial, or the config.json of another run.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs go.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The run's folder in --out; default: the next free number.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of --name.")] = False,
    steps: Annotated[int | None, typer.Option(help=f"Optimiser steps; default {_DEFAULTS.steps}.")] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Cases a step; default {_DEFAULTS.batch_size}.")] = None,
    num_anchors: Annotated[int | None, typer.Option(help=f"Anchors a branch; default {_DEFAULTS.num_anchors}.")] = None,
    num_queries: Annotated[int | None, typer.Option(help=f"Queries a branch; default {_DEFAULTS.num_queries}.")] = None,
    sampling: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How these are drawn: uniform, or weighted by the area or volume of cells."),
    ] = None,
    supernode_sampling: Annotated[
        str | None, typer.Option(metavar="NAME", help="How supernodes are drawn: uniform, or farthest from each other.")
    ] = None,
    no_geometry: Annotated[
        bool, typer.Option("--no-geometry", help="Leave out the geometry branch; without a surface there is none.")
    ] = False,
    divergence_free: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="A field of three channels that gets no divergence, such as velocity."),
    ] = None,
    dim: Annotated[int | None, typer.Option(help=f"Channels of the model; default {_DEFAULTS.dim}.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"Peak learning rate; default {_DEFAULTS.learning_rate:g}.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Seed of weights and batches; default {_DEFAULTS.seed}.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help=f"Steps between checkpoints; default {_DEFAULTS.checkpoint_every}.")
    ] = None,
) -> int:
    """Train a model and measure its errors on unseen data.

    The run's folder gets checkpoints, config.json, metrics.jsonl (each step),
    metrics.json (errors) and pictures. Ctrl-C saves a checkpoint and stops.

    \b
    A folder holds boundary*.vtp, volume*.vtu or both, and perhaps a .stl
    file of the body. Fields are the arrays of DrivAerML, or those that its
    fields.json says: {"surface": {"pressure": "p"}, "volume": {…}}. Or it
    holds tensors: surface_position_vtp.pt, surface_pressure.pt, ….
    Of a folder with such folders a fifth is kept to test on, or what its
    split.json says: {"train": ["run_1", "run_3"], "test": ["run_2"]}.

    \b
    Example:
      emmi-jax train --name first
      emmi-jax train --name first --resume
      emmi-jax train --data car.npz --steps 2000
      emmi-jax train --data run_1

    Defaults are those of the built-in data.
    """  # noqa: D301 - \b is the mark of an example
    from rich.console import Console

    from emmi_jax.convert import PRESETS
    from emmi_jax.jobs.train import train as run_training

    given: dict[str, Any] = {
        "data": None if data is None else str(data.resolve()),
        "split": None if split is None else str(split.resolve()),
        "statistics": statistics if statistics is None or statistics in PRESETS else str(Path(statistics).resolve()),
        "steps": steps,
        "batch_size": batch_size,
        "num_anchors": num_anchors,
        "num_queries": num_queries,
        "sampling": sampling,
        "supernode_sampling": supernode_sampling,
        "divergence_free": divergence_free or None,
        "dim": dim,
        "learning_rate": learning_rate,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if no_geometry:
        given["num_geometry_points"] = 0
    if resume and name is None:
        raise ValueError("--resume needs the --name of the run to go on with")
    path = out / name if name is not None else _free_path(out, _BUILT_IN_NAME if data is None else data.stem)
    if resume:
        settings = _settings_to_resume(path, given)
    else:
        settings = replace(default_settings(given.pop("data", None), geometry=not no_geometry), **given)
    outcome = run_training(settings, path, resume=resume, console=Console(soft_wrap=False))
    if outcome.signal_number is None:
        return 0
    print(f"go on with: emmi-jax train --out {path.parent} --name {path.name} --resume")
    return 128 + outcome.signal_number


def _free_path(out: Path, stem: str) -> Path:
    number = 1
    while (out / f"{stem}-{number}").exists():
        number += 1
    return out / f"{stem}-{number}"


def _settings_to_resume(path: Path, given: dict[str, Any]) -> TrainSettings:
    """Returns the settings of an earlier run; those given must agree with them."""
    from emmi_jax.runs.directory import RunDirectory, check_same_config

    config = RunDirectory.open(path).read_config()
    if config.settings is None:  # converted weights
        return replace(default_settings(given.pop("data", None), geometry=config.model.has_geometry), **given)
    settings = TrainSettings.from_dict(config.settings)
    stored = settings.to_dict()
    check_same_config({key: stored[key] for key in given}, given)
    return settings
