"""`emmi-jax convert`, `data`, `info` and `stats`."""

from __future__ import annotations

from emmi_jax.config.jobs import ConvertJob, DataJob, InfoJob, StatsJob


def convert(job: ConvertJob) -> None:
    """Convert PyTorch weights of AB-UPT into a run.

    Pass the architecture with --preset or --config. The run works with
    predict, info and train --init-from.

    \b
    Example:
      emmi-jax convert ab-upt.th --preset drivaerml-tutorial --out runs/car
    """  # noqa: D301 - \b keeps the lines of the example
    from emmi_jax.jobs.convert import run_job

    run_job(job)


def data(job: DataJob) -> None:
    """Say which files of a published data set belong where.

    Its arrays with units, conditions, split, licence, size and source, and
    what of it was not compared with real files.

    \b
    Example:
      emmi-jax data
      emmi-jax data windsorml
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.data import run_job

    run_job(job, console=Console(soft_wrap=False))


def info(job: InfoJob) -> None:
    """List blocks, shapes and parameter counts.

    \b
    Example:
      emmi-jax info runs/first
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.info import run_job

    run_job(job, console=Console(soft_wrap=False))


def stats(job: StatsJob) -> None:
    """List count, min, max, mean and deviation of every array.

    Arrays of the same name in several files count as one. Files are read in
    chunks. Rows with NaN or infinite values are left out and reported. A folder
    is a case, or one of cases. A store has its statistics in itself, so nothing
    is read.

    \b
    Example:
      emmi-jax stats car.npz --out stats.json
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.stats import run_job

    run_job(job, console=Console(soft_wrap=False))
