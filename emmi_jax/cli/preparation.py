"""`emmi-jax prepare`."""

from __future__ import annotations

from emmi_jax.config.jobs import PrepareJob


def prepare(job: PrepareJob) -> None:
    """Make a store of cases that train reads at disk speed.

    Rows are permuted once and statistics measured in the same pass. Run the
    command again to continue after an interruption, or to add cases.

    \b
    Example:
      emmi-jax prepare DrivAerML --out store --workers 4
      emmi-jax train --data store --recipe drivaerml
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.prepare import prepare as run_job

    run_job(job, console=Console(soft_wrap=False))
