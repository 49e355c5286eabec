"""`emmi-jax evaluate` and `calibrate`."""

from __future__ import annotations

from emmi_jax.config.jobs import CalibrationJob, EvaluationJob


def evaluate(job: EvaluationJob) -> None:
    """Compare a run with known cases.

    At every point of their meshes. Prints the mean over the cases, and writes evaluation_<split>.json and
    .csv with every case, and pictures of predicted over known values. Where
    the speed is known, also drag and lift, against the same sums over the
    known fields, and against those that a solver wrote beside the cases:
    forces.json with CdA and ClA, or force_mom_N.csv with Cd and Cl.

    \b
    Example:
      emmi-jax evaluate runs/cars-1 --speed 38.889
      emmi-jax evaluate runs/cars-1 --data new_cars --split all --repeats 5
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.evaluate import evaluate_run

    evaluate_run(job, console=Console(soft_wrap=False))


def calibrate(job: CalibrationJob) -> None:
    """Calibrate the intervals of a run on unseen cases.

    Compares the run with each case, and keeps the scores in the run, so that
    predict --interval 0.9 knows how wide an interval must be. Of n cases the
    finest level is n / (n + 1): 0.9 takes 9 of them, 0.95 takes 19.

    \b
    Example:
      emmi-jax calibrate runs/cars-1
      emmi-jax calibrate runs/cars-1 --data new_cars --split all --repeats 8
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.calibrate import calibrate_run

    calibrate_run(job, console=Console(soft_wrap=False))
