"""`emmi-jax predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from emmi_jax.inference.meshes import ForceReference


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="Output: a folder, or FILE.npz for points.")] = None,
    points: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Positions (N, 3): an .npz file or .npy files, see above.")
    ] = None,
    surface: Annotated[Path | None, typer.Option(metavar="MESH", help="Mesh for the surface fields.")] = None,
    volume: Annotated[Path | None, typer.Option(metavar="MESH", help="Mesh for the volume fields.")] = None,
    geometry: Annotated[
        Path | None, typer.Option(metavar="MESH", help="Surface of the body; default: the run's, or --surface.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Compare with the arrays of the meshes.")] = False,
    fields: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Maps these arrays to fields; default: the run's mapping.")
    ] = None,
    surface_patches: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Patches of an OpenFOAM case; may be repeated; default: the run's."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Time of an OpenFOAM case; default: the run's, or the latest.")
    ] = None,
    write_openfoam: Annotated[
        Path | None, typer.Option(metavar="CASE", help="Write the fields of all cells of a case, to start a solver.")
    ] = None,
    write_time: Annotated[str, typer.Option(metavar="TIME", help="Folder of CASE that receives them.")] = "0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace fields that are there.")] = False,
    figures: Annotated[
        str | None,
        typer.Option(metavar="[png|html]", help="Show the fields in OUT: .png pictures, or .html pages to turn."),
    ] = None,
    area: Annotated[
        float | None, typer.Option(help="Reference area in m2; with --speed, prints Cd (along x) and Cl (along z).")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Read the area from the column aRef of this table.")
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Free-stream speed in m/s.")] = None,
    density: Annotated[
        float | None, typer.Option(help="Free-stream density in kg/m3; default 1, for pressure over density.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Points per call of the model; default: by the memory of the device.", min=1)
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME", help="latest, or best: that with the lowest error on the validation cases.")
    ] = "latest",
) -> int:
    """Predict fields at any number of points, in physical units.

    \b
    --points holds these arrays:
      surface, volume    points to predict, either or both ('position' if the
                         model has one branch)
      surface_anchors, volume_anchors, geometry
                         points that show the case to the model; default:
                         those of the run, or drawn from the points above
    OUT receives surface_pressure, volume_velocity, … ('pressure' if the model
    has one branch). --points is an .npz file, a folder of .npy files with
    these names, or one such file. If OUT is a folder, it receives one .npy
    file per field, and neither positions nor fields need to fit in memory.

    \b
    Meshes (.vtp, .vtu, .vtk, .stl, .ply, .obj) are written to the folder OUT
    with predicted_<field>. --compare adds error_<field> and comparison.json.
    A MESH may also be the folder of an OpenFOAM case, or of foamToVTK.

    \b
    --write-openfoam writes U, p, … into CASE/0, with the boundary conditions
    that are there; CASE/0 is kept as CASE/0.orig.

    \b
    Example:
      emmi-jax predict runs/first --points points.npz --out fields.npz
      emmi-jax predict runs/car --surface boundary.vtp --out fields
    """  # noqa: D301 - \b keeps the lines of the example
    meshes = {name: path for name, path in (("surface", surface), ("volume", volume)) if path is not None}
    forces = force_reference(area, reference, speed, density)
    for_meshes = bool(meshes or geometry or compare or fields or figures or forces)
    if write_openfoam is not None:
        if points or meshes or out or compare or fields or figures or forces:
            raise ValueError("--write-openfoam takes no other input or output than --geometry and --surface-patches")
    elif (points is None) == (not meshes) or (points is not None and for_meshes):
        raise ValueError("expected either --points, or --surface and --volume with their options")
    folders = [path for path in (*meshes.values(), geometry, write_openfoam) if path is not None and path.is_dir()]
    if (surface_patches or time) and not folders:
        raise ValueError("--surface-patches and --time are for OpenFOAM cases, and no folder is given")
    target = out if write_openfoam is None else write_openfoam
    if target is None:
        raise ValueError("expected --out, or --write-openfoam")
    size: int | Literal["auto"] = "auto" if chunk_size is None else chunk_size
    from rich.console import Console

    from emmi_jax.jobs.predict_meshes import MeshJob, predict_meshes
    from emmi_jax.jobs.predict_openfoam import FoamJob
    from emmi_jax.jobs.predict_openfoam import write_openfoam as run_openfoam
    from emmi_jax.jobs.predict_points import PointJob, predict_points
    from emmi_jax.runs.directory import RunDirectory
    from emmi_jax.runs.load import load_run

    surrogate, console = load_run(run, checkpoint), Console(soft_wrap=False)
    config = RunDirectory.open(run).read_config()
    foam = config.foam(None if surface_patches is None else tuple(surface_patches), time)
    if write_openfoam is not None:
        foam_job = FoamJob(
            case=target,
            geometry=geometry,
            foam=foam,
            time=write_time,
            overwrite=overwrite,
            chunk_size=size,
        )
        run_openfoam(foam_job, surrogate, config.field_sources(), console=console)
        return 0
    if points is not None:
        predict_points(PointJob(points=points, out=target, chunk_size=size), surrogate, console=console)
        return 0
    job = MeshJob(
        meshes=meshes,
        out=target,
        geometry=geometry,
        compare=compare,
        fields=fields,
        forces=forces,
        foam=foam,
        chunk_size=size,
        figures=figures,
    )
    predict_meshes(job, surrogate, config.field_sources(), console=console)
    return 0


def force_reference(
    area: float | None, file: Path | None, speed: float | None, density: float | None
) -> ForceReference | None:
    """Returns what forces are divided by; None if no option asks for them."""
    given = {"--area": area, "--reference": file, "--speed": speed, "--density": density}
    given = {option: value for option, value in given.items() if value is not None}
    if not given:
        return None
    from emmi_jax.inference.meshes import ForceReference
    from emmi_jax.meshes.reference_area import read_reference_area

    if speed is None or (area is None) == (file is None):
        raise ValueError(f"forces need --speed and one of --area and --reference, got {', '.join(given)}")
    if area is None and file is not None:
        area = read_reference_area(file)
    return ForceReference(area=area or 0.0, speed=speed, density=1.0 if density is None else density)
