"""`emmi-jax sensitivity` and `emmi-jax optimize`."""

from __future__ import annotations

from emmi_jax.config.design import OptimizationJob, SensitivityJob


def sensitivity(job: SensitivityJob) -> None:
    """Find where to push a surface to lower its drag.

    \b
    The folder OUT receives the surface with these arrays at its points:
      d_drag                  gradient: change of Cd per displacement
      d_drag_normal           its part along the outward normal, per area
      d_drag_normal_smoothed  the same, smoothed
    and d_drag.png (red: push in, blue: pull out) and sensitivity.json.

    \b
    Example:
      emmi-jax sensitivity runs/car --surface car.vtp --speed 38.889 \\
          --area 2.17 --out push
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.sensitivity import run_job

    run_job(job, console=Console(soft_wrap=False))


def optimize(job: OptimizationJob) -> None:
    """Change a shape until its predicted drag is lower.

    A box of control points around the surface deforms it. The model draws
    other anchors for every step, and stops at the edge of what it was
    trained on. Check the result with a solver.

    \b
    The folder OUT receives the new surface with displacement and with the
    fields before and after, the same as .stl, displacement.png, history.csv
    and optimization.json.

    \b
    Example:
      emmi-jax optimize runs/car --surface car.vtp --speed 38.889 \\
          --area 2.17 --lattice 6x4x4 --max-displacement 0.02 \\
          --keep volume --out lower
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.optimize import run_job

    run_job(job, console=Console(soft_wrap=False))
