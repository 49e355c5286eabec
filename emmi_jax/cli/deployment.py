"""`emmi-jax export` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path, typer.Option(metavar="FILE.emmi", help="The file.")],
    platforms: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Some of cpu,cuda,rocm,tpu; default: where JAX computes now."),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME", help="latest, or best: that with the lowest error on the validation cases.")
    ] = "latest",
    unit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=UNIT", help="Unit of position or <branch>/<field>; repeatable.")
    ] = None,
) -> int:
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

    export_run(
        run,
        out,
        platforms=[] if platforms is None else [name.strip() for name in platforms.split(",")],
        checkpoint=checkpoint,
        units=unit or [],
        console=Console(soft_wrap=True, highlight=False),
    )
    return 0


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
