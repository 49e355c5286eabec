"""`emmi-jax export` and `doctor`."""

from __future__ import annotations

from emmi_jax.config.jobs import ExportJob


def export(job: ExportJob) -> None:
    """Write a run to one file that runs without emmi_jax.

    emmi_jax.deploy.load opens it with jax, numpy and flatbuffers alone. The
    run's own sizes get the attention kernels of each platform; any other
    number of points runs too. Export for cuda on a machine with an NVIDIA
    GPU, which alone can choose cuDNN's kernel.

    \b
    Example:
      emmi-jax export runs/car --out car.emmi --platforms cpu,cuda \\
          --unit position=m --unit volume/velocity=m/s
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.export import export_run

    export_run(job, console=Console(soft_wrap=True, highlight=False))


def doctor() -> int:
    """Check versions, devices and numbers of this installation.

    Computes a tiny model with every attention kernel that runs here and
    compares it with recorded numbers; the exit status is 1 if they are wrong.

    \b
    Example:
      emmi-jax doctor
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.doctor import examine

    return 0 if examine(Console(soft_wrap=False, highlight=False)) else 1
