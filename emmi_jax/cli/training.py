"""`emmi-jax train`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from emmi_jax.config import TrainSettings
from emmi_jax.data.case_split import PUBLISHED_SPLITS
from emmi_jax.data.published import STATISTICS
from emmi_jax.files.atomic import read_toml
from emmi_jax.jobs.datasets import OWN_DATA, default_settings
from emmi_jax.training.recipes import RECIPES, parse_assignment, read_recipe

_DEFAULTS = default_settings(None)
_RATES = f"{_DEFAULTS.optimizer.learning_rate:g}, or {OWN_DATA.optimizer.learning_rate:g} with --data"
_SIZES = {
    name: f"default {getattr(_DEFAULTS.sampling, name)}, or {getattr(OWN_DATA.sampling, name)} with --data"
    for name in ("num_anchors", "num_queries")
}
_BUILT_IN_NAME = "ellipsoids"
_PATHS = ("data", "split", "statistics")
_PUBLISHED = (*STATISTICS, *PUBLISHED_SPLITS)
_GEOMETRY_SIZES = ("num_geometry_points", "num_supernodes", "num_test_supernodes")


def train(
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="An .npz file with an array 'position' (N, 3) and fields (N,) or (N, C), or a folder, see above; "
            "default: exact potential flow past ellipsoids.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help=f"Assigns cases to splits, see above: a file, or {', '.join(PUBLISHED_SPLITS)}; default: split.json "
            "beside them.",
        ),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help=f"Statistics to use instead of measured ones: {', '.join(STATISTICS)}, or the config.json of a run.",
        ),
    ] = None,
    skip_unusable: Annotated[
        bool,
        typer.Option("--skip-unusable", help="Leave out cases that are absent or cannot be read; reads each once."),
    ] = False,
    surface_patches: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Patches of OpenFOAM cases; may be repeated; default: all walls."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time of OpenFOAM cases; default: the latest.")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of all runs.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Folder of the run in --out; default: the next free number.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint of --name.")] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Start from a trained or converted run: weights, model and statistics."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help=f"Optimiser steps; default {_DEFAULTS.steps}, or {OWN_DATA.steps} with --data.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help=f"Cases per step; default {_DEFAULTS.batch_size}, or {OWN_DATA.batch_size} with --data."),
    ] = None,
    num_anchors: Annotated[int | None, typer.Option(help=f"Anchors per branch; {_SIZES['num_anchors']}.")] = None,
    num_queries: Annotated[int | None, typer.Option(help=f"Queries per branch; {_SIZES['num_queries']}.")] = None,
    sampling: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How to draw anchors and queries: uniform, or weighted by cell size."),
    ] = None,
    supernode_sampling: Annotated[
        str | None, typer.Option(metavar="NAME", help="How to draw supernodes: uniform, or farthest from one another.")
    ] = None,
    no_geometry: Annotated[bool, typer.Option("--no-geometry", help="Leave out the geometry branch.")] = False,
    divergence_free: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="A field of three channels to make divergence-free, such as velocity."),
    ] = None,
    dim: Annotated[int | None, typer.Option(help=f"Channels of the model; default {_DEFAULTS.model['dim']}.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help=f"Peak learning rate; default {_RATES}.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Settings for a data set: {', '.join(RECIPES)}.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings of your own, over those of --recipe.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One setting, such as model.dim=256; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print settings, data, model and the cost of a step; write nothing.")
    ] = False,
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="data=N,tokens=M",
            help="Devices that share the cases of a batch, times devices that share the tokens of each case; default: "
            "data, as many as divide the batch.",
        ),
    ] = None,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="Shard parameters and optimiser over all devices.")] = False,
    workers: Annotated[
        int,
        typer.Option(
            help="Processes that draw batches and find neighbours ahead of time; 0: a thread draws, the devices find.",
            min=0,
        ),
    ] = 0,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of process 0, for a run of several processes; found by itself under SLURM, Open MPI and "
            "Kubernetes and on TPU pods.",
        ),
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="Number of processes, with --coordinator.")] = None,
    process_id: Annotated[int | None, typer.Option(help="Number of this process, with --coordinator.")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write a trace of the steps 11 to 15 into the run's profile/.")
    ] = False,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Log to this project of Weights & Biases too.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Seed of weights and batches; default {_DEFAULTS.seed}.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help=f"Steps between checkpoints; default {_DEFAULTS.checkpoint_every}.")
    ] = None,
) -> int:
    """Train a model and test it on unseen data.

    The run's folder receives checkpoints, config.json, metrics.jsonl (one line
    per step), metrics.json (test metrics) and pictures. Ctrl-C saves a
    checkpoint and stops.

    \b
    A case folder holds boundary*.vtp, volume*.vtu or both, and optionally a
    .stl file of the body. fields.json maps arrays to fields,
    {"surface": {"pressure": "p"}, "volume": {…}}; the default is DrivAerML's
    array names. A case folder may hold tensors instead:
    surface_position_vtp.pt, surface_pressure.pt, …. It may be an OpenFOAM
    case, decomposed or not, or output of foamToVTK.
    A folder of case folders is a data set. split.json assigns its cases to
    splits, {"train": ["run_1", "run_3"], "test": ["run_2"]}; by default a
    random fifth is only tested on. A store made by prepare, or its URL, is
    a data set too.
    Settings come from the defaults, then --recipe, then --config, then the
    other options. A file has the form of emmi_jax/training/recipes/*.toml.

    \b
    Example:
      emmi-jax train --name first
      emmi-jax train --name first --resume
      emmi-jax train --data car.npz --steps 2000
      emmi-jax train --data run_1
      emmi-jax train --data DrivAerML --recipe drivaerml --set model.dim=256
      emmi-jax train --data bodies --recipe bodies

    Defaults below are those of the built-in data.
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.train import Extras, show_plan
    from emmi_jax.jobs.train import train as run_training
    from emmi_jax.training.devices import Layout
    from emmi_jax.training.processes import connected, is_main

    options = {
        "data": data,
        "split": split,
        "statistics": statistics,
        "skip_unusable": skip_unusable or None,
        "surface_patches": surface_patches or None,
        "time": time,
        "steps": steps,
        "batch_size": batch_size,
        "sampling.num_anchors": num_anchors,
        "sampling.num_queries": num_queries,
        "sampling.method": sampling,
        "sampling.supernode_method": supernode_sampling,
        **({f"sampling.{name}": 0 for name in _GEOMETRY_SIZES} if no_geometry else {}),
        "divergence_free": divergence_free or None,
        "model.dim": dim,
        "optimizer.learning_rate": learning_rate,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
    }
    changes = [
        {} if recipe is None else read_recipe(recipe),
        {} if config is None else read_toml(config),
        {key: value for key, value in options.items() if value is not None},
        dict(map(parse_assignment, assignments or [])),
    ]
    if resume and dry_run:
        raise ValueError("--dry-run plans a new run, --resume continues one: choose one of them")
    if init_from is not None and (resume or dry_run):
        raise ValueError("--init-from starts a new run: leave out --resume and --dry-run")
    if resume and name is None:
        raise ValueError("--resume needs the --name of the run to continue")
    if wandb is not None and find_spec("wandb") is None:
        raise ValueError("--wandb needs a package: pip install wandb")
    changes = [_resolved(change) for change in changes]
    source = next((change["data"] for change in reversed(changes) if "data" in change), None)
    if not isinstance(source, str | None):
        raise ValueError(f"data must be a path or none, got {source!r}")
    foam: list[dict[str, Any]] = [
        {key: change[key] for key in ("surface_patches", "time") if key in change} for change in changes
    ]
    path = out / name if name is not None else _free_path(out, _BUILT_IN_NAME if source is None else Path(source).stem)
    if resume:
        settings = _stored_settings(path)
    elif init_from is not None:
        settings, changes = _settings_to_start_from(init_from, source, changes)
    else:
        settings = default_settings(source, geometry=not no_geometry, foam=TrainSettings().updated(*foam).foam)
    settings = settings.updated(*changes)
    with connected(coordinator, num_processes, process_id):
        console, layout = Console(soft_wrap=False, quiet=not is_main()), Layout.parse(mesh, fsdp=fsdp)
        if name is None and jax.process_count() > 1:
            raise ValueError("several processes need the --name of the run")
        if dry_run:
            show_plan(settings, console=console, layout=layout)
            return 0
        extras = Extras(profile=profile, wandb_project=wandb)
        outcome = run_training(
            settings,
            path,
            resume=resume,
            console=console,
            init_from=init_from,
            layout=layout,
            workers=workers,
            extras=extras,
        )
        if outcome.signal_number is None:
            return 0
        if is_main():
            print(f"continue with: emmi-jax train --out {path.parent} --name {path.name} --resume")
        return 128 + outcome.signal_number


def _free_path(out: Path, stem: str) -> Path:
    number = 1
    while (out / f"{stem}-{number}").exists():
        number += 1
    return out / f"{stem}-{number}"


def _resolved(change: dict[str, Any]) -> dict[str, Any]:
    """Makes paths absolute, so that a run can be resumed from anywhere; URLs and published statistics stay."""
    return {
        key: str(Path(value).resolve())
        if key in _PATHS and isinstance(value, str) and "://" not in value and value not in _PUBLISHED
        else value
        for key, value in change.items()
    }


def _stored_settings(path: Path) -> TrainSettings:
    """Returns the settings of an earlier run.

    Raises:
        ValueError: There is no such run, or it was not trained.
    """
    from emmi_jax.runs.directory import RunDirectory

    settings = RunDirectory.open(path).read_config().settings
    if settings is None:
        raise ValueError(f"{path} was not trained: --init-from {path} starts a new run from it")
    return settings


def _settings_to_start_from(
    path: Path, data: str | None, changes: list[dict[str, Any]]
) -> tuple[TrainSettings, list[dict[str, Any]]]:
    """Returns the settings to start from a run with, and the changes that apply to them; a recipe gives the rest.

    Raises:
        ValueError: There is no such run, or its model would change.
    """
    from emmi_jax.runs.directory import RunDirectory

    config = RunDirectory.open(path).read_config()
    recipe, *others = changes
    if given := [key for change in others for key in change if key.split(".")[0] == "model"]:
        raise ValueError(f"{path} has a model of its own, got {', '.join(given)}")
    rest = {key: value for key, value in recipe.items() if key not in ("model", "statistics", "split")}
    return default_settings(data, geometry=config.model.has_geometry), [rest, *others]
