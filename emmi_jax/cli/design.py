"""`emmi-jax sensitivity` and `emmi-jax optimize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from emmi_jax.cli.prediction import force_reference
from emmi_jax.cli.vectors import parse_vector


def sensitivity(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    surface: Annotated[Path, typer.Option(metavar="MESH", help="The surface, a closed mesh of polygons.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Output.")],
    speed: Annotated[float, typer.Option(help="Free-stream speed in m/s.")],
    functional: Annotated[str, typer.Option(metavar="NAME", help="drag, lift, side_force or moment.")] = "drag",
    area: Annotated[float | None, typer.Option(help="Reference area in m2.")] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Read the area from the column aRef of this table.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Free-stream density in kg/m3; default 1, for pressure over density.")
    ] = None,
    length: Annotated[float | None, typer.Option(help="Reference length in m, for the moment about y.")] = None,
    about: Annotated[str, typer.Option(metavar="X,Y,Z", help="A point on the axis of the moment, in m.")] = "0,0,0",
    geometry: Annotated[
        Path | None, typer.Option(metavar="MESH", help="Surface that the model sees; default: --surface.")
    ] = None,
    volume: Annotated[
        Path | None, typer.Option(metavar="MESH", help="Mesh to draw volume anchors from; default: the run's.")
    ] = None,
    figures: Annotated[
        str, typer.Option(metavar="[png|html]", help="Show where to push: a .png picture, or an .html page to turn.")
    ] = "png",
    smoothing: Annotated[
        float | None, typer.Option(help="Length to smooth over; default: 2% of the longest side.")
    ] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Guess the outside of an open surface.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the drawn anchors.")] = 0,
    chunk_size: Annotated[
        int | None, typer.Option(help="Points per call of the model; default: by the memory of the device.", min=1)
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME", help="latest, or best: that with the lowest error on the validation cases.")
    ] = "latest",
) -> int:
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
    forces = force_reference(area, reference, speed, density)
    if forces is None:
        raise ValueError("forces need --speed and one of --area and --reference")
    size: int | Literal["auto"] = "auto" if chunk_size is None else chunk_size
    from rich.console import Console

    from emmi_jax.jobs.sensitivity import SensitivityJob, differentiate_surface
    from emmi_jax.runs.load import load_run

    job = SensitivityJob(
        surface=surface,
        out=out,
        functional=functional.replace("-", "_"),
        reference=forces,
        length=length,
        about=parse_vector("--about", about),
        geometry=geometry,
        volume=volume,
        smoothing=smoothing,
        figures=figures,
        allow_open=allow_open,
        seed=seed,
        chunk_size=size,
    )
    differentiate_surface(job, load_run(run, checkpoint), console=Console(soft_wrap=False))
    return 0


def optimize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    surface: Annotated[Path, typer.Option(metavar="MESH", help="The surface, a closed mesh of polygons.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Output.")],
    lattice: Annotated[str, typer.Option(metavar="NxNxN", help="Control points along x, y and z.")],
    max_displacement: Annotated[float, typer.Option(help="How far a point may move, in the unit of the mesh.")],
    speed: Annotated[float, typer.Option(help="Free-stream speed in m/s.")],
    functional: Annotated[str, typer.Option(metavar="NAME", help="drag, lift, side_force or moment.")] = "drag",
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1)] = 50,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What stays: volume, or clearance of the ground; may be repeated."),
    ] = None,
    symmetry: Annotated[
        str | None, typer.Option(metavar="AXIS", help="Axis to stay symmetric along; y for a car.")
    ] = None,
    area: Annotated[float | None, typer.Option(help="Reference area in m2.")] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Read the area from the column aRef of this table.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Free-stream density in kg/m3; default 1, for pressure over density.")
    ] = None,
    length: Annotated[float | None, typer.Option(help="Reference length in m, for the moment about y.")] = None,
    about: Annotated[str, typer.Option(metavar="X,Y,Z", help="A point on the axis of the moment, in m.")] = "0,0,0",
    geometry: Annotated[
        Path | None, typer.Option(metavar="MESH", help="Surface that the model sees; default: --surface.")
    ] = None,
    volume: Annotated[
        Path | None, typer.Option(metavar="MESH", help="Mesh to draw volume anchors from; default: the run's.")
    ] = None,
    allow_open: Annotated[bool, typer.Option("--allow-open", help="Guess the outside of an open surface.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the drawn anchors.")] = 0,
    chunk_size: Annotated[
        int | None, typer.Option(help="Points per call of the model; default: by the memory of the device.", min=1)
    ] = None,
) -> int:
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
    forces = force_reference(area, reference, speed, density)
    if forces is None:
        raise ValueError("forces need --speed and one of --area and --reference")
    size: int | Literal["auto"] = "auto" if chunk_size is None else chunk_size
    from rich.console import Console

    from emmi_jax.jobs.optimize import OptimizationJob, optimize_surface
    from emmi_jax.runs.load import load_run

    job = OptimizationJob(
        surface=surface,
        out=out,
        functional=functional.replace("-", "_"),
        reference=forces,
        length=length,
        about=parse_vector("--about", about),
        lattice=_lattice(lattice),
        max_displacement=max_displacement,
        steps=steps,
        keep=tuple(keep or ()),
        symmetry=symmetry,
        geometry=geometry,
        volume=volume,
        allow_open=allow_open,
        seed=seed,
        chunk_size=size,
    )
    optimize_surface(job, load_run(run), console=Console(soft_wrap=False))
    return 0


def _lattice(text: str) -> tuple[int, int, int]:
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--lattice must be three numbers such as 6x4x4, got {text!r}")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])
