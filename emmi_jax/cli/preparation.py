"""`emmi-jax prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of cases, as train --data takes it.")],
    out: Annotated[str, typer.Option(metavar="STORE", help="Folder of the store, or a URL that TensorStore opens.")],
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.json", help="Assigns cases to splits, as for train; kept in the store."),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="Type of the fields: float32 or float16.")] = "float32",
    workers: Annotated[int, typer.Option(help="Processes; each holds one case in memory.", min=1)] = 1,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out cases that are absent or cannot be read.")
    ] = False,
    no_cell_sizes: Annotated[
        bool, typer.Option("--no-cell-sizes", help="Leave out cell sizes, which only weighted draws need.")
    ] = False,
    surface_patches: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Patches of OpenFOAM cases; may be repeated; default: all walls."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time of OpenFOAM cases; default: the latest.")] = None,
) -> int:
    """Make a store of cases that train reads at disk speed.

    Rows are permuted once and statistics measured in the same pass. Run the
    command again to continue after an interruption, or to add cases.

    \b
    Example:
      emmi-jax prepare DrivAerML --out store --workers 4
      emmi-jax train --data store --recipe drivaerml
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.config import FoamSelection
    from emmi_jax.jobs.prepare import PrepareJob
    from emmi_jax.jobs.prepare import prepare as run

    job = PrepareJob(
        data=data,
        out=out,
        dtype=dtype,
        split=split,
        workers=workers,
        skip_unusable=skip_unusable,
        cell_sizes=not no_cell_sizes,
        foam=FoamSelection(tuple(surface_patches or ()), time),
    )
    run(job, console=Console(soft_wrap=False))
    return 0
