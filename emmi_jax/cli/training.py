"""`emmi-jax train` and `ensemble`."""

from __future__ import annotations

from emmi_jax.config import TrainJob
from emmi_jax.config.jobs import EnsembleJob


def train(job: TrainJob) -> int:
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
    from emmi_jax.jobs.train import run_job

    return run_job(job)


def ensemble(job: EnsembleJob) -> None:
    """Join runs into one that predicts mean and deviation.

    The runs have the same model, scales and sampling, and other weights: those
    of different seeds, for instance.

    \b
    Example:
      emmi-jax ensemble runs/cars-1 runs/cars-2 runs/cars-3 --out runs/cars
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.ensemble import join_runs

    join_runs(job, console=Console(soft_wrap=False))
