"""`emmi-jax evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emmi_jax.data.case_split import SPLITS

_SPLITS = (*SPLITS, "all")


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder of a case or of several, or a store; default: the run's.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help=f"Which of several cases: {', '.join(_SPLITS)}.")] = "test",
    repeats: Annotated[int, typer.Option(help="Draws of anchors to average the metrics over.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Output; default: the run's folder.")] = None,
    surface_patches: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Patches of OpenFOAM cases; may be repeated; default: the run's."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time of OpenFOAM cases; default: the run's, or the latest.")] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME", help="latest, or best: that with the lowest error on the validation cases.")
    ] = "latest",
) -> int:
    """Compare a run with known cases, at every point of their meshes.

    Prints the mean over the cases, and writes evaluation_<split>.json and
    .csv with every case.

    \b
    Example:
      emmi-jax evaluate runs/cars-1
      emmi-jax evaluate runs/cars-1 --data new_cars --split all --repeats 5
    """  # noqa: D301 - \b keeps the lines of the example
    if split not in _SPLITS:
        raise ValueError(f"--split must be one of {', '.join(_SPLITS)}, got {split!r}")
    from rich.console import Console

    from emmi_jax.jobs.evaluate import EvaluationJob, evaluate_run

    job = EvaluationJob(
        data=data,
        split=split,
        repeats=repeats,
        out=out,
        checkpoint=checkpoint,
        surface_patches=None if surface_patches is None else tuple(surface_patches),
        time=time,
    )
    evaluate_run(run, job, console=Console(soft_wrap=False))
    return 0
