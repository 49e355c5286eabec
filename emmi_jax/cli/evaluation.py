"""`emmi-jax evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emmi_jax.cli.vectors import parse_vector
from emmi_jax.data.case_split import SPLITS

_SPLITS = (*SPLITS, "all")


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder of a case or of several, or a store; default: the run's.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help=f"Which of several cases: {', '.join(_SPLITS)}.")] = "test",
    repeats: Annotated[int, typer.Option(help="Draws of anchors to average the metrics over.", min=1)] = 1,
    speed: Annotated[
        float | None, typer.Option(help="Free-stream speed in m/s, for forces; default: that of forces.json.")
    ] = None,
    area: Annotated[
        float | None,
        typer.Option(help="Reference area in m2; default: aRef of geo_ref_N.csv, or CdA and ClA in m2 are given."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(
            help="Free-stream density in kg/m3; default: that of forces.json, or 1 for pressure over density."
        ),
    ] = None,
    drag_direction: Annotated[str, typer.Option(metavar="X,Y,Z", help="Direction of the stream.")] = "1,0,0",
    lift_direction: Annotated[str, typer.Option(metavar="X,Y,Z", help="Direction of the lift.")] = "0,0,1",
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out cases that are absent or cannot be read.")
    ] = False,
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
    if split not in _SPLITS:
        raise ValueError(f"--split must be one of {', '.join(_SPLITS)}, got {split!r}")
    from rich.console import Console

    from emmi_jax.jobs.evaluate import EvaluationJob, evaluate_run
    from emmi_jax.jobs.evaluation_forces import ForceOptions

    forces = ForceOptions(
        speed=speed,
        area=area,
        density=density,
        drag_direction=parse_vector("--drag-direction", drag_direction),
        lift_direction=parse_vector("--lift-direction", lift_direction),
    )
    job = EvaluationJob(
        data=data,
        split=split,
        repeats=repeats,
        forces=forces,
        out=out,
        checkpoint=checkpoint,
        skip_unusable=skip_unusable,
        surface_patches=None if surface_patches is None else tuple(surface_patches),
        time=time,
    )
    evaluate_run(run, job, console=Console(soft_wrap=False))
    return 0
