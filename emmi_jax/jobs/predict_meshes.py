"""`emmi-jax predict` on meshes: read, predict, compare, write, integrate forces, draw."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.mesh_dataset import Sources, read_sources
from emmi_jax.data.notes import Box, box_warnings
from emmi_jax.data.readers.openfoam import describe_foam
from emmi_jax.deploy.encoded_set import EncodedSet, Watch, collect, shown_columns, watch_nothing
from emmi_jax.files.atomic import JsonDict, check_space, make_folder, write_json
from emmi_jax.files.npy import scratch_array
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.intervals import SINGLE, Certainty
from emmi_jax.inference.mesh_features import feature_sources, geometry_with_features, with_features
from emmi_jax.inference.meshes import (
    FieldArrays,
    check_case,
    check_forces,
    geometry_points,
    predict_on_meshes,
    surface_forces,
)
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.familiarity import report_familiarity
from emmi_jax.jobs.force_report import report_forces
from emmi_jax.jobs.mesh_outputs import (
    DRAW,
    check_figures,
    check_outputs,
    largest_output,
    mesh_metrics,
    num_unknown,
    write_predictions,
)
from emmi_jax.jobs.progress import (
    ProgressBar,
    metrics_table,
    print_left_out,
    print_paths,
    print_sides,
    print_warnings,
    say,
    warn_few_anchors,
    warn_outside,
)
from emmi_jax.meshes.branch_mesh import BranchMesh, geometry_mesh, output_name, query_mesh, reference_mesh
from emmi_jax.meshes.forces import ForceReference, force_fields
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.openfoam import is_foam
from emmi_jax.meshes.parts import parts_suffix
from emmi_jax.meshes.parts_writing import WRITABLE_PARTS
from emmi_jax.points import Array


@dataclass(frozen=True, kw_only=True)
class MeshJob:
    """Options of a prediction on meshes.

    Args:
        meshes: Mesh files, or folders of OpenFOAM cases, by branch.
        out: Folder for the meshes with fields, `comparison.json` and `forces.json`; made if it is missing.
        geometry: A surface that shows the geometry to the model; by default the run's context, or the
            surface mesh.
        compare: Whether to compare with the arrays of the meshes.
        fields: A `fields.json` that maps these arrays to fields; None means the mapping that the run was trained with.
        forces: What forces are divided by; None means no forces.
        foam: The patches and the time of OpenFOAM cases.
        chunk_size: Points per call of the model.
        figures: How to show the fields beside the meshes: `png` for pictures, `html` for pages; None for neither.
        certainty: Draws to average over, and intervals.
        mask_nan: Whether arrays to compare with may be NaN at some points, which are left out and counted.
    """

    meshes: Mapping[str, Path]
    out: Path
    geometry: Path | None = None
    compare: bool = False
    fields: Path | None = None
    forces: ForceReference | None = None
    foam: FoamSelection = DEFAULT_SELECTION
    chunk_size: ChunkSize = "auto"
    figures: str | None = None
    certainty: Certainty = SINGLE
    mask_nan: bool = False


def predict_meshes(job: MeshJob, surrogate: Surrogate, sources: Sources, *, console: Console) -> None:
    """Predicts on meshes and writes everything to a folder.

    Args:
        job: What to predict on.
        surrogate: What predicts.
        sources: The arrays that the run was trained on, by branch and field.
        console: Where progress, warnings and tables are printed.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is unusable or does not fit the model, or a mesh would be overwritten.
        UnwritableFileError: The disk is full, or too small for the output.
    """
    fields = surrogate.model.config.fields
    check_mesh_job(job, surrogate)
    sources = sources if job.fields is None else read_sources(job.fields)
    shown = shown_geometry(job, surrogate)
    meshes = read_meshes(job, surrogate, sources, shown)
    geometry = None if shown is None else geometry_points(shown)
    with_inputs = geometry_with_features(meshes, surrogate.features, sources, shown, surrogate.context is not None)
    _print_read(job, meshes, shown, console)
    if job.forces is not None:
        check_forces(meshes[GEOMETRY_BRANCH], fields[GEOMETRY_BRANCH])
    _warn(job, surrogate, meshes, geometry, console)
    check_space(job.out, largest_output(meshes, fields, num_columns=_num_columns(job, surrogate)))
    each: dict[str, NDArray[np.float32]] = {}
    watch: Watch = watch_nothing
    if job.forces is not None:
        names = force_fields(fields[GEOMETRY_BRANCH])
        each, watch = collect(GEOMETRY_BRANCH, len(meshes[GEOMETRY_BRANCH].position), names)
    familiarity: JsonDict = {}

    def report(encoded: EncodedSet) -> None:
        if job.certainty.familiarity is not None:
            familiarity.update(report_familiarity(job.certainty.familiarity, encoded, console))

    make_folder(job.out)
    with ExitStack() as scratch:
        # A large volume need not fit in memory a second time.
        with ProgressBar(console, sum(len(mesh.position) for mesh in meshes.values())) as progress:
            predicted = predict_on_meshes(
                surrogate,
                meshes,
                geometry=geometry if with_inputs is None else with_inputs,
                certainty=job.certainty,
                watch=watch,
                on_encoded=report,
                chunk_size=job.chunk_size,
                new_array=lambda shape: scratch.enter_context(scratch_array(job.out, shape)),
                advance=progress.advance,
            )
        _write(job, predicted, meshes, geometry, console)
    if familiarity:
        write_json(job.out / "familiarity.json", familiarity)
    if job.forces is not None:
        _print_forces(job, job.forces, each, meshes[GEOMETRY_BRANCH], console)


def _write(
    job: MeshJob,
    predicted: Mapping[str, FieldArrays],
    meshes: Mapping[str, BranchMesh],
    geometry: Array | None,
    console: Console,
) -> None:
    """Writes meshes with fields, and metrics and figures where they are asked for."""
    print_paths(write_predictions(job.out, predicted, meshes), console)
    if job.compare:
        metrics = mesh_metrics(predicted, meshes)
        unknown = num_unknown(meshes)
        write_json(job.out / "comparison.json", {**metrics, **({"masked": unknown} if unknown else {})})
        print_warnings([f"{field} is NaN at {number:,} points" for field, number in unknown.items()], console)
        console.print(metrics_table("Predictions against the arrays of the meshes", metrics))
    if job.figures is not None:
        drawn = {branch: shown_columns(arrays) for branch, arrays in predicted.items()}
        print_paths(DRAW[job.figures](job.out, drawn, meshes, geometry), console)


def _num_columns(job: MeshJob, surrogate: Surrogate) -> int:
    """Returns how many arrays are written per field."""
    return 1 + bool(surrogate.others) + (job.certainty.repeats > 1) + 2 * (job.certainty.intervals is not None)


def _print_forces(
    job: MeshJob, reference: ForceReference, each: Mapping[str, Any], surface: BranchMesh, console: Console
) -> None:
    """Prints the forces on the surface, and what was assumed for them."""
    forces = surface_forces(each, surface, reference)
    print_sides({str(surface.mesh.path): forces.side}, console)
    print_warnings(forces.notes, console)
    report_forces(job.out, forces, reference, job.certainty.intervals, console)


def _print_read(job: MeshJob, meshes: Mapping[str, BranchMesh], shown: Mesh | None, console: Console) -> None:
    """Prints what is read of OpenFOAM cases, what is not read, and what is written to another type of file."""
    for path in dict.fromkeys(path for path in (*job.meshes.values(), job.geometry) if path and is_foam(path)):
        say(console, describe_foam(path, job.foam))
    for branch, path in job.meshes.items():
        if (suffix := parts_suffix(path)) not in (None, *WRITABLE_PARTS):
            say(console, f"{path}: {suffix} files are not written, so the fields go to {output_name(path, branch)}")
    for mesh in filter(None, (*(mesh.mesh for mesh in meshes.values()), shown)):
        print_left_out(mesh.left_out, console, mesh.path)


def check_mesh_job(job: MeshJob, surrogate: Surrogate) -> None:
    """Refuses what cannot work while there is nothing to clean up."""
    config = surrogate.model.config
    unknown = [branch for branch in job.meshes if branch not in config.fields]
    if unknown or not job.meshes:
        raise ValueError(f"the model has the branches {list(config.branches)}, got meshes for {list(job.meshes)}")
    check_case(surrogate, job.meshes, job.geometry)
    if job.forces is not None and GEOMETRY_BRANCH not in job.meshes:
        raise ValueError(f"forces need a mesh for the branch {GEOMETRY_BRANCH!r}, got {list(job.meshes)}")
    if job.fields is not None and not job.compare:
        raise ValueError(f"{job.fields}: a mapping of arrays to fields is only used to compare with them")
    check_figures(job.figures)
    check_outputs(job.out, list(job.meshes.values()), list(job.meshes))


def shown_geometry(job: MeshJob, surrogate: Surrogate) -> Mesh | None:
    """Returns the geometry, the patches of a case as in training; None for the points that the model finds."""
    path, surface = job.geometry, job.meshes.get(GEOMETRY_BRANCH)
    if path is None and surrogate.context is None and surrogate.model.config.has_geometry:
        path = surface if surface is not None and surface.is_dir() else None
    return None if path is None else geometry_mesh(path, job.foam)


def read_meshes(job: MeshJob, surrogate: Surrogate, sources: Sources, shown: Mesh | None) -> dict[str, BranchMesh]:
    """Returns the meshes of a job by branch, with features, and with the arrays to compare with if it asks for that."""
    fields = surrogate.model.config.fields
    inputs = {branch: feature_sources(branch, surrogate.features, sources) for branch in job.meshes}
    if not job.compare:
        for_forces = None if job.forces is None else GEOMETRY_BRANCH
        meshes = {
            branch: query_mesh(path, branch, job.foam, in_cells=branch == for_forces, inputs=inputs[branch])
            for branch, path in job.meshes.items()
        }
    else:
        meshes = {
            branch: reference_mesh(
                path,
                fields[branch],
                sources.get(branch, {}),
                branch,
                job.foam,
                inputs=inputs[branch],
                mask_nan=job.mask_nan,
            )
            for branch, path in job.meshes.items()
        }
    return with_features(meshes, surrogate.features, sources, shown)


def _warn(
    job: MeshJob, surrogate: Surrogate, meshes: Mapping[str, BranchMesh], geometry: Array | None, console: Console
) -> None:
    for mesh in meshes.values():
        warn_outside(surrogate.normalizer, mesh.mesh.path, mesh.position, console)
    if job.geometry is not None and geometry is not None:
        warn_outside(surrogate.normalizer, job.geometry, geometry, console)
        boxes = {"geometry": geometry} | {branch: mesh.position for branch, mesh in meshes.items()}
        print_warnings(box_warnings({name: Box.of(position) for name, position in boxes.items()}), console)
    if surrogate.context is None:
        warn_few_anchors(surrogate.sampling, {branch: mesh.position for branch, mesh in meshes.items()}, console)
