"""From meshes to the same meshes with predicted fields, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.case_folder import DRIVAERML, NUM_GEOMETRY_POINTS
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import SampleSizes
from emmi_jax.data.sampling import sample_points, sample_triangles
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.predict import GEOMETRY, GEOMETRY_BRANCH, encode_case, query_name
from emmi_jax.inference.streaming import iter_stream
from emmi_jax.meshes.mesh import FieldSource, Location, Mesh, read_mesh, write_mesh
from emmi_jax.meshes.surfaces import surface_triangles
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.points import Array, row_chunks

FieldArrays: TypeAlias = dict[str, NDArray[np.float32]]
Errors: TypeAlias = dict[str, dict[str, float]]
WRITABLE = (".vtp", ".vtu", ".vtk")


class BranchMesh(NamedTuple):
    """A mesh to predict on: where its queries are, [N, 3], and the values to compare with, [N, F] by field."""

    mesh: Mesh
    location: Location
    position: Array
    reference: dict[str, Array]


def read_branch_mesh(
    path: Path, fields: Mapping[str, int], *, compare: bool, sources: Mapping[str, FieldSource] | None
) -> BranchMesh:
    """Reads the mesh of a branch.

    Queries lie where the compared arrays are; else in the cells, unless there are none or only points carry arrays.

    Args:
        path: A mesh file.
        fields: Number of channels by field of the branch.
        compare: Whether to read values to compare with.
        sources: Where they are; None means the names of DrivAerML or those of the fields, whichever the mesh has.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is unusable, or nothing in it can be compared with.
    """
    mesh = read_mesh(path)
    if not compare:
        only_on_points = mesh.dataset.n_arrays and not mesh.dataset.cell_data.keys()
        location: Location = "points" if only_on_points or not mesh.dataset.n_cells else "cells"
        return BranchMesh(mesh, location, mesh.position(location), {})
    present = {*mesh.dataset.cell_data.keys(), *mesh.dataset.point_data.keys()}
    if sources is None:
        known = {name: source for named in DRIVAERML.values() for name, source in named.items()}
        candidates = {name: (known.get(name), FieldSource(name)) for name in fields}
        found = {n: [s for s in both if s is not None and s.array in present] for n, both in candidates.items()}
        sources = {name: there[0] for name, there in found.items() if there}
    sources = {name: source for name, source in sources.items() if name in fields}
    if not sources:
        raise ValueError(f"{path}: nothing to compare {list(fields)} with; the mesh has {sorted(present)}")
    points = mesh.points(sources)
    for name, values in points.fields.items():
        if values.shape[1] != fields[name]:
            raise ValueError(f"{path}: array of {name!r} has {values.shape[1]} channels, the model {fields[name]}")
    return BranchMesh(mesh, mesh.location_of(s.array for s in sources.values()), points.position, points.fields)


def body_points(path: Path) -> Array:
    """Draws points on the triangles of a surface, uniform in area, [P, 3]."""
    return sample_triangles(0, surface_triangles(read_mesh(path)), NUM_GEOMETRY_POINTS)


def predict_on_meshes(
    model: AnchoredBranchedUPT,
    params: Any,
    normalizer: Normalizer,
    meshes: Mapping[str, BranchMesh],
    given: Mapping[str, Array],
    *,
    sizes: SampleSizes,
    chunk_size: ChunkSize = "auto",
    advance: Callable[[int], object] = lambda num_points: None,
) -> dict[str, FieldArrays]:
    """Predicts every field of the branches that have a mesh.

    Args:
        model: The model.
        params: Its parameters.
        normalizer: Its scales.
        meshes: Meshes by branch.
        given: Anchors and geometry by the names of `predict_fields`; what is absent is drawn from the meshes.
        sizes: How many anchors, geometry points and supernodes to draw.
        chunk_size: Queries in one call of the model.
        advance: Called with the number of points of each piece that is done.

    Returns:
        Arrays [N, F] float32 in physical units by branch and field.
    """
    config = model.config
    names = {branch: query_name(branch, list(config.fields)) for branch in meshes}
    positions = {names[branch]: mesh.position for branch, mesh in meshes.items()} | dict(given)
    if config.has_geometry and GEOMETRY not in given and GEOMETRY_BRANCH in meshes:
        positions[GEOMETRY] = meshes[GEOMETRY_BRANCH].position
    if sizes.sampling == "weighted":
        positions = _anchors_by_size(meshes, sizes) | positions
    variables = {"params": params}
    cache = encode_case(model, variables, normalizer, positions, sizes=sizes)
    fields: dict[str, FieldArrays] = {
        branch: {name: np.empty((len(mesh.position), size), np.float32) for name, size in config.fields[branch].items()}
        for branch, mesh in meshes.items()
    }
    queries = {branch: mesh.position for branch, mesh in meshes.items()}
    for chunk in iter_stream(model, variables, cache, queries, chunk_size=chunk_size, normalizer=normalizer):
        for name, values in chunk.fields.items():
            fields[chunk.branch][name][chunk.start : chunk.start + len(values)] = values
        advance(chunk.num_points)
    return fields


def _anchors_by_size(meshes: Mapping[str, BranchMesh], sizes: SampleSizes) -> dict[str, Array]:
    """Draws the anchors of every branch uniformly in area or volume."""
    anchors = {}
    for number, (branch, mesh) in enumerate(sorted(meshes.items())):
        weights, num_anchors = mesh.mesh.cell_sizes(mesh.location), min(sizes.num_test_anchors, len(mesh.position))
        idx = sample_points(number, mesh.position, num_anchors, method="weighted", weights=weights)
        anchors[f"{branch}_anchors"] = mesh.position[idx]
    return anchors


def field_errors(predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh]) -> Errors:
    """Measures predictions against the arrays of the meshes, over all points and channels.

    Returns:
        By "branch/field": `relative_l2`, `mae` and `max` (of the absolute error), the last two in the field's unit.
    """
    return {
        f"{branch}/{name}": _field_error(predicted[branch][name], reference)
        for branch, mesh in meshes.items()
        for name, reference in mesh.reference.items()
    }


def _field_error(predicted: NDArray[np.float32], reference: Array) -> dict[str, float]:
    # In pieces, because float64 copies of a large mesh would be its largest arrays.
    squares, exact_squares, total, largest = 0.0, 0.0, 0.0, 0.0
    for part, there in zip(row_chunks(predicted), row_chunks(reference), strict=True):
        exact = np.asarray(there, dtype=np.float64)
        error = np.abs(part - exact)
        squares, exact_squares = squares + float(np.vdot(error, error)), exact_squares + float(np.vdot(exact, exact))
        total, largest = total + float(error.sum()), max(largest, float(error.max(initial=0.0)))
    return {
        "relative_l2": float(np.sqrt(squares / (exact_squares or 1.0))),
        "mae": total / max(reference.size, 1),
        "max": largest,
    }


def write_predictions(
    folder: Path, predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh]
) -> list[Path]:
    """Writes each mesh again, with `predicted_<field>`, and `error_<field>` where there is a value to compare with.

    Args:
        folder: Where to; it must exist. A file is called as that of the mesh; where its extension holds no fields, it
            becomes `.vtp`.
        predicted: Fields by branch.
        meshes: Meshes by branch.

    Returns:
        The paths of the files.
    """
    paths = []
    for branch, mesh in meshes.items():
        arrays = {f"predicted_{name}": values for name, values in predicted[branch].items()}
        for name, reference in mesh.reference.items():
            arrays[f"error_{name}"] = (predicted[branch][name] - reference).astype(np.float32)
        paths.append(folder / output_name(mesh.mesh.path))
        write_mesh(paths[-1], mesh.mesh, arrays, location=mesh.location)
    return paths


def largest_output(meshes: Mapping[str, BranchMesh], fields: Mapping[str, Mapping[str, int]]) -> int:
    """Returns how many bytes `write_predictions` writes at most; what compression saves is not known before.

    Args:
        meshes: Meshes by branch.
        fields: Number of channels by branch and field.
    """
    total = 0
    for branch, mesh in meshes.items():
        channels = sum(fields[branch].values()) + sum(fields[branch][name] for name in mesh.reference)
        new_arrays = np.dtype(np.float32).itemsize * channels * len(mesh.position)
        total += 1024 * mesh.mesh.dataset.GetActualMemorySize() + new_arrays
    return total


def output_name(path: Path) -> str:
    """Name of the file that a mesh with fields goes to."""
    return path.name if path.suffix.lower() in WRITABLE else f"{path.stem}.vtp"
