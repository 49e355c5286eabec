"""Plan of a run: its settings, from defaults, recipe, file, options or an earlier run, and its model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax

from emmi_jax.config import FoamOptions, FoamSelection, TrainJob, TrainSettings
from emmi_jax.data.case_split import PUBLISHED_SPLITS
from emmi_jax.data.published import STATISTICS
from emmi_jax.files.atomic import read_toml
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.training.recipes import parse_assignment, read_defaults, read_recipe
from emmi_jax.training.trainer import TrainSetup

BranchesOf = Callable[[str, FoamSelection], Collection[str]]
"""Returns the branches of the data at a path or URL, perhaps with the number of points of each."""

NO_GEOMETRY = {"sampling": {"num_geometry_points": 0, "num_supernodes": 0, "num_test_supernodes": 0}}

_BUILT_IN = "ellipsoids"
_PATHS = ("data", "split", "statistics")
_PUBLISHED = (*STATISTICS, *PUBLISHED_SPLITS)


class Plan(NamedTuple):
    """The settings of a run, and its folder."""

    settings: TrainSettings
    path: Path


def resolve(job: TrainJob, branches_of: BranchesOf) -> Plan:
    """Returns what a job trains: defaults for the data, or an earlier run's settings, and every change over them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Options contradict one another, there is no such recipe or run, or a value is out of range.
    """
    _check_options(job)
    recipe = {} if job.recipe is None else read_recipe(job.recipe)
    file = {} if job.config is None else read_toml(job.config)
    options = {**job.settings, **(NO_GEOMETRY if job.no_geometry else {})}
    changes = [_absolute(change) for change in (recipe, file, options, dict(map(parse_assignment, job.assignments)))]
    data = next((change["data"] for change in reversed(changes) if "data" in change), None)
    if not isinstance(data, str | None):
        raise ValueError(f"data must be a path or none, got {data!r}")
    name = job.name or _free_name(job.out, _BUILT_IN if data is None else Path(data).stem)
    path = job.out / name
    if job.resume:
        settings = _trained_settings(path)
    else:
        foam = {key: change[key] for change in changes for key in ("surface_patches", "time") if key in change}
        branches = () if data is None else branches_of(data, FoamOptions(**foam).foam)
        geometry = not job.no_geometry
        if job.init_from is not None:
            geometry = RunDirectory.open(job.init_from).read_config().model.has_geometry
            changes = _changes_beside_weights(job.init_from, changes)
        settings = default_settings(data, branches, geometry=geometry)
    return Plan(settings.updated(*changes), path)


def default_settings(data: str | None, branches: Collection[str] = (), *, geometry: bool = True) -> TrainSettings:
    """Returns the default settings, for a run of a few minutes on two processor cores.

    Args:
        data: Path or URL of data; None for the built-in ellipsoids.
        branches: The branches of the data; a mapping may tell how many points a branch has at least.
        geometry: Whether the model has a geometry branch; it never has one for data without a surface, which it sees.
    """
    if data is None:
        settings = TrainSettings().updated(read_defaults("ellipsoids"))
    else:
        settings = TrainSettings().updated(read_defaults("own_data"), {"data": data})
        geometry = geometry and "surface" in branches
        least = branches.get("surface") if isinstance(branches, Mapping) else None
        drawn = {name: getattr(settings.sampling, name) for name in NO_GEOMETRY["sampling"]}
        settings = settings.updated({"sampling": {n: min(number, least or number) for n, number in drawn.items()}})
    blocks = settings.model["physics_blocks"]
    if data is not None and len(branches) < 2:
        blocks = ["self" if block == "cross" else block for block in blocks]
    if not geometry:
        settings = settings.updated(NO_GEOMETRY)
        blocks = [block for block in blocks if block != "perceiver"]
    return settings.updated({"model.physics_blocks": blocks})


def check_step(trainer: TrainSetup) -> None:
    """Traces a sparse and a dense step, which refuses what cannot be trained while nothing is measured or written.

    Raises:
        ValueError: The model or its share of the devices is impossible, or the data have too few points.
        NotImplementedError: The kernel of the attention does not serve the model.
    """
    settings, devices = trainer.settings, trainer.devices
    for step in (0, settings.steps - 1) if settings.dense_fraction else (0,):
        jax.eval_shape(trainer.train_step, devices.abstract_state(trainer.state), trainer.put(trainer.draw(step)))


def _check_options(job: TrainJob) -> None:
    if job.resume and job.dry_run:
        raise ValueError("--dry-run plans a new run, --resume continues one: choose one of them")
    if job.init_from is not None and (job.resume or job.dry_run):
        raise ValueError("--init-from starts a new run: leave out --resume and --dry-run")
    if job.resume and job.name is None:
        raise ValueError("--resume needs the --name of the run to continue")
    if job.logging.wandb is not None and find_spec("wandb") is None:
        raise ValueError("--wandb needs a package: pip install wandb")


def _absolute(change: Mapping[str, Any]) -> dict[str, Any]:
    """Makes paths absolute, so that a run can be resumed from anywhere; URLs and published statistics stay."""
    return {
        key: str(Path(value).resolve())
        if key in _PATHS and isinstance(value, str) and "://" not in value and value not in _PUBLISHED
        else value
        for key, value in change.items()
    }


def _free_name(out: Path, stem: str) -> str:
    number = 1
    while (out / f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def _trained_settings(path: Path) -> TrainSettings:
    settings = RunDirectory.open(path).read_config().settings
    if settings is None:
        raise ValueError(f"{path} was not trained: --init-from {path} starts a new run from it")
    return settings


def _changes_beside_weights(path: Path, changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the changes that apply to a run from the weights of another, which has a model and scales of its own."""
    recipe, *others = changes
    if given := [key for change in others for key in change if key.split(".")[0] == "model"]:
        raise ValueError(f"{path} has a model of its own, got {', '.join(given)}")
    return [{key: value for key, value in recipe.items() if key not in ("model", "statistics", "split")}, *others]
