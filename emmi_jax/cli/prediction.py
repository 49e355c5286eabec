"""`emmi-jax predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from emmi_jax.inference.meshes import ForceReference


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="Where fields go: a folder, or FILE.npz for points.")],
    points: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Positions (N, 3): an .npz file, or .npy files, as below.")
    ] = None,
    surface: Annotated[Path | None, typer.Option(metavar="MESH", help="Mesh of the branch surface.")] = None,
    volume: Annotated[Path | None, typer.Option(metavar="MESH", help="Mesh of the branch volume.")] = None,
    geometry: Annotated[
        Path | None, typer.Option(metavar="MESH", help="The body's surface; default: the run's, or --surface.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure errors against the arrays of the meshes.")
    ] = False,
    fields: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Which arrays these are; default: the fields' names.")
    ] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Draw the fields into .png files in OUT.")] = False,
    area: Annotated[
        float | None, typer.Option(help="Reference area in m2: print Cd (along x) and Cl (along z); with --speed.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Take the area from its column aRef instead of --area.")
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Speed of the stream in m/s.")] = None,
    density: Annotated[
        float | None, typer.Option(help="Its density in kg/m3; default 1, for pressure over density.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Points in one call of the model; default: by the device's memory.", min=1)
    ] = None,
) -> int:
    """Predict fields at any number of points, in physical units.

    \b
    RUN trained with --data: --points holds 'position'; OUT gets each field.
    RUN on the ellipsoids: --points holds, of one body,
      surface, volume    points to predict, either or both
      surface_anchors, volume_anchors, geometry
                         points that show the model the body and its
                         surroundings; each is drawn from the points to
                         predict where it is absent
    and OUT gets surface_pressure_coefficient, volume_velocity, ….
    In place of FILE.npz, --points takes a folder of .npy files called so, or
    one such file, and OUT may be a folder, which gets a .npy file a field;
    then neither positions nor fields need fit in memory.

    \b
    Meshes (.vtp, .vtu, .vtk, .stl, .ply, .obj) come back in the folder OUT
    with predicted_<field>, and with --compare error_<field> and
    comparison.json; --fields is like fields.json of emmi-jax train.

    \b
    Example:
      emmi-jax predict runs/first --points points.npz --out fields.npz
      emmi-jax predict runs/car --surface boundary.vtp --out fields
    """  # noqa: D301 - \b is the mark of an example
    meshes = {name: path for name, path in (("surface", surface), ("volume", volume)) if path is not None}
    forces = _force_reference(area, reference, speed, density)
    for_meshes = bool(meshes or geometry or compare or fields or figures or forces)
    if (points is None) == (not meshes) or (points is not None and for_meshes):
        raise ValueError("expected either --points, or --surface and --volume with the options of meshes")
    size: int | Literal["auto"] = "auto" if chunk_size is None else chunk_size
    from rich.console import Console

    from emmi_jax.jobs.predict_meshes import MeshJob, predict_meshes
    from emmi_jax.jobs.predict_points import PointJob, predict_points
    from emmi_jax.runs.directory import RunDirectory
    from emmi_jax.runs.load import load_run

    surrogate, console = load_run(run), Console(soft_wrap=False)
    if points is not None:
        predict_points(PointJob(points=points, out=out, chunk_size=size), surrogate, console=console)
        return 0
    job = MeshJob(
        meshes=meshes,
        out=out,
        geometry=geometry,
        compare=compare,
        fields=fields,
        forces=forces,
        chunk_size=size,
        use_figures=figures,
    )
    predict_meshes(job, surrogate, RunDirectory.open(run).read_config().field_sources(), console=console)
    return 0


def _force_reference(
    area: float | None, file: Path | None, speed: float | None, density: float | None
) -> ForceReference | None:
    """What forces are divided by; None if they are not asked for."""
    given = {"--area": area, "--reference": file, "--speed": speed, "--density": density}
    given = {option: value for option, value in given.items() if value is not None}
    if not given:
        return None
    from emmi_jax.inference.meshes import ForceReference
    from emmi_jax.meshes.reference_area import read_reference_area

    if speed is None or (area is None) == (file is None):
        raise ValueError(f"forces need --speed, and one of --area and --reference, got {', '.join(given)}")
    if area is None and file is not None:
        area = read_reference_area(file)
    return ForceReference(area=area or 0.0, speed=speed, density=1.0 if density is None else density)
