"""The whole of `emmi-jax predict` on meshes: reading, predicting, comparing, writing, forces."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from emmi_jax.data.case_folder import read_sources
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import SampleSizes
from emmi_jax.files.atomic import check_space, make_folder, write_json
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.mesh_forces import ForceReference, check_forces, surface_forces
from emmi_jax.inference.meshes import (
    BranchMesh,
    Errors,
    FieldArrays,
    body_points,
    field_errors,
    largest_output,
    output_name,
    predict_on_meshes,
    read_branch_mesh,
    write_predictions,
)
from emmi_jax.inference.predict import GEOMETRY, GEOMETRY_BRANCH
from emmi_jax.jobs.box_warning import warn_outside
from emmi_jax.jobs.progress import PredictionProgress
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.points import Array


@dataclass(frozen=True, kw_only=True)
class MeshJob:
    """What to predict on.

    Args:
        meshes: Mesh files by branch.
        out: Folder for the meshes with fields, `comparison.json` and `forces.json`; made if its parent exists.
        geometry: A surface that shows the body to a model with a geometry branch; None means the run's own points, or
            else those of the surface.
        compare: Whether to compare with the arrays of the meshes.
        fields: A `fields.json` that says which arrays these are.
        forces: What forces are divided by; None for no forces.
        chunk_size: Points in one call of the model.
        figures: Whether to draw the fields into `.png` files beside the meshes.
    """

    meshes: Mapping[str, Path]
    out: Path
    geometry: Path | None = None
    compare: bool = False
    fields: Path | None = None
    forces: ForceReference | None = None
    chunk_size: ChunkSize = "auto"
    figures: bool = False


def run_mesh_job(
    job: MeshJob,
    model: AnchoredBranchedUPT,
    params: Any,
    normalizer: Normalizer,
    fixed_points: Mapping[str, Array],
    *,
    sizes: SampleSizes,
    console: Console,
) -> None:
    """Predicts on meshes and leaves everything in a folder.

    Args:
        job: What to predict on.
        model: The model.
        params: Its parameters.
        normalizer: Its scales.
        fixed_points: Anchors and geometry that the run keeps, by the names of `predict_fields`.
        sizes: How many anchors, geometry points and supernodes to draw.
        console: Where progress, warnings and tables go.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is unusable or does not fit the model, or a mesh would be overwritten.
        UnwritableFileError: The disk is full, or too small for what would be written.
    """
    _check(job, model, fixed_points)
    sources = None if job.fields is None else read_sources(job.fields)
    meshes = {
        branch: read_branch_mesh(
            path,
            model.config.fields[branch],
            compare=job.compare,
            sources=None if sources is None else sources.get(branch, {}),
        )
        for branch, path in job.meshes.items()
    }
    if job.forces is not None:
        check_forces(meshes[GEOMETRY_BRANCH], model.config.fields[GEOMETRY_BRANCH])
    given = dict(fixed_points)
    if job.geometry is not None:
        given[GEOMETRY] = body_points(job.geometry)
    for mesh in meshes.values():
        warn_outside(normalizer, mesh.mesh.path, mesh.position, console)
    if job.geometry is not None:
        warn_outside(normalizer, job.geometry, given[GEOMETRY], console)
    check_space(job.out, largest_output(meshes, model.config.fields))
    make_folder(job.out)
    with PredictionProgress(console, sum(len(mesh.position) for mesh in meshes.values())) as progress:
        predicted = predict_on_meshes(
            model,
            params,
            normalizer,
            meshes,
            given,
            sizes=sizes,
            chunk_size=job.chunk_size,
            advance=progress.advance,
        )
    for path in write_predictions(job.out, predicted, meshes):
        console.print(str(path), highlight=False, soft_wrap=True)
    if job.compare:
        errors = field_errors(predicted, meshes)
        write_json(job.out / "comparison.json", dict(errors))
        console.print(comparison_table(errors))
    if job.forces is not None:
        _report_forces(job.forces, job.out, predicted, meshes, console)
    if job.figures:
        body = meshes[GEOMETRY_BRANCH].position if GEOMETRY_BRANCH in meshes else given.get(GEOMETRY)
        for path in draw_figures(job.out, predicted, meshes, body):
            console.print(str(path), highlight=False, soft_wrap=True)


def draw_figures(
    folder: Path, predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh], body: Array | None
) -> list[Path]:
    """Draws every field of every mesh; see `draw_mesh_fields`."""
    from emmi_jax.plots.meshes import MeshFields, draw_mesh_fields

    paths = []
    for branch, (mesh, location, position, reference) in meshes.items():
        fields = MeshFields(branch, mesh.dataset, location, position, predicted[branch], reference)
        paths += draw_mesh_fields(fields, folder, body=body)
    return paths


def comparison_table(errors: Errors) -> Table:
    """Lays out the errors of predicted fields, a row a field."""
    table = Table(title="Predicted against the arrays of the meshes", title_justify="left")
    table.add_column("field")
    for column in ("relative L2", "MAE", "max"):
        table.add_column(column, justify="right")
    for field, row in errors.items():
        table.add_row(field, f"{row['relative_l2']:.4f}", f"{row['mae']:.4g}", f"{row['max']:.4g}")
    return table


def _check(job: MeshJob, model: AnchoredBranchedUPT, fixed_points: Mapping[str, Array]) -> None:
    """Refuses what cannot work while there is nothing to clean up."""
    unknown = [branch for branch in job.meshes if branch not in model.config.fields]
    if unknown or not job.meshes:
        raise ValueError(f"the model has the branches {list(model.config.fields)}, got meshes for {list(job.meshes)}")
    for branch in model.config.fields:
        if branch not in job.meshes and f"{branch}_anchors" not in fixed_points:
            raise ValueError(f"the model needs a mesh for the branch {branch!r} too, to draw its anchors from")
    if job.geometry is not None and not model.config.has_geometry:
        raise ValueError(f"{job.geometry}: the model has no geometry branch to show it to")
    if job.forces is not None and GEOMETRY_BRANCH not in job.meshes:
        raise ValueError(f"forces need a mesh for the branch {GEOMETRY_BRANCH!r}, got {list(job.meshes)}")
    if job.fields is not None and not job.compare:
        raise ValueError(f"{job.fields}: which arrays are fields matters only to compare with them")
    if job.figures:
        importlib.import_module("matplotlib")
    if not job.out.parent.is_dir():
        raise FileNotFoundError(f"{job.out.parent}: no such folder")
    if job.out.exists() and not job.out.is_dir():
        raise ValueError(f"{job.out} is a file, expected a folder")
    outputs = [job.out / output_name(path) for path in job.meshes.values()]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"two meshes would become the same file {outputs[0]}")
    for path, output in zip(job.meshes.values(), outputs, strict=True):
        if output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"{output} would overwrite the mesh itself: give another folder")


def _report_forces(
    reference: ForceReference,
    out: Path,
    predicted: Mapping[str, FieldArrays],
    meshes: Mapping[str, BranchMesh],
    console: Console,
) -> None:
    surface = meshes[GEOMETRY_BRANCH]
    forces = surface_forces(predicted[GEOMETRY_BRANCH], surface, reference)
    if forces.num_open_edges:
        console.print(
            f"warning: {surface.mesh.path}: the surface is not closed, {forces.num_open_edges:,} edges are open: "
            "its outward side is a guess",
            highlight=False,
            soft_wrap=True,
        )
    for who, values in forces.coefficients.items():
        console.print(f"{who}: Cd {values['cd']:z.4f}  Cl {values['cl']:z.4f}", highlight=False)
    write_json(out / "forces.json", dict(forces.coefficients))
