"""Fields and forces predicted on meshes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.readers.reader import NUM_GEOMETRY_POINTS
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.deploy.encoded_set import EncodedSet, Watch, watch_nothing
from emmi_jax.deploy.spread import Spread
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.intervals import SINGLE, Certainty
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.meshes.branch_mesh import BranchMesh
from emmi_jax.meshes.forces import ForceReference, ForceSurface, force_fields
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.surfaces import check_surface, surface_elements, surface_triangles
from emmi_jax.points import Array, PointSet, is_unknown

FieldArrays: TypeAlias = dict[str, NDArray[np.float32]]


class Forces(NamedTuple):
    """Force coefficients of the `predicted` and, where known, the `reference` fields.

    Attributes:
        coefficients: Those of the whole surface, by name.
        patches: The share of each patch in them, where the surface has several.
        side: How the outward side of the surface was told, in words.
        spreads: The predicted ones of all draws.
        has_shear: Whether friction is part of them.
        notes: Along which directions pressure gives no force, and where the known fields are NaN, a line each.
    """

    coefficients: dict[str, dict[str, float]]
    patches: dict[str, dict[str, dict[str, float]]]
    side: str
    spreads: dict[str, Spread]
    has_shear: bool
    notes: Sequence[str]


def geometry_points(mesh: Mesh) -> Array:
    """Draws points on the triangles of a surface, uniform in area, [P, 3]."""
    return sample_triangles(0, surface_triangles(mesh), NUM_GEOMETRY_POINTS)


def _in_memory(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.empty(shape, np.float32)


def predict_on_meshes(
    surrogate: Surrogate,
    meshes: Mapping[str, BranchMesh],
    *,
    only: Collection[str] | None = None,
    geometry: PointSet | Array | None = None,
    certainty: Certainty = SINGLE,
    watch: Watch = watch_nothing,
    on_encoded: Callable[[EncodedSet], object] = lambda encoded: None,
    chunk_size: ChunkSize = "auto",
    new_array: Callable[[tuple[int, ...]], NDArray[np.float32]] = _in_memory,
    advance: Callable[[int], object] = lambda num_points: None,
) -> dict[str, FieldArrays]:
    """Predicts every field of the branches that have a mesh.

    Args:
        surrogate: The surrogate; anchors that its context lacks are drawn from the meshes.
        meshes: Meshes by branch.
        only: Branches to predict; by default all that have a mesh.
        geometry: Points [P, 3] of the geometry; by default those of the context, or of the surface mesh.
        certainty: Draws to average over, and intervals.
        watch: Called with the fields of each draw, chunk by chunk.
        on_encoded: Called with the case before it is predicted.
        chunk_size: Queries per call of the model.
        new_array: Returns an array of a shape, which is filled with a field; by default in memory.
        advance: Called with the number of points of each chunk that is done.

    Returns:
        Arrays [N, F] float32 in physical units by branch and field; with several draws also their deviations, and with
        intervals ``<field>_low`` and ``<field>_high``.
    """
    is_weighted = surrogate.sampling.method == "weighted"
    points = {branch: mesh.points(with_cell_sizes=is_weighted) for branch, mesh in meshes.items()}
    features = {branch: mesh.features for branch, mesh in meshes.items() if mesh.features is not None}
    encoded = surrogate.encode_draws(certainty.repeats, intervals=certainty.intervals, points=points, geometry=geometry)
    on_encoded(encoded)
    queries = {branch: mesh.position for branch, mesh in meshes.items() if only is None or branch in only}
    features = {branch: features[branch] for branch in queries if branch in features}
    arrays = {
        branch: {name: new_array((len(position), channels)) for name, channels in encoded.fields[branch].items()}
        for branch, position in queries.items()
    }
    out = {f"{branch}_{name}": array for branch, of_branch in arrays.items() for name, array in of_branch.items()}
    encoded.predict(queries, query_features=features, out=out, chunk_size=chunk_size, advance=advance, watch=watch)
    return arrays


def check_case(surrogate: Surrogate, meshes: Collection[str], geometry: Path | None) -> None:
    """Refuses a case without a mesh of a branch that needs one, or with a geometry that the model does not take."""
    config, stored = surrogate.model.config, {} if surrogate.context is None else surrogate.context.anchors
    for branch in config.branches:
        if branch not in meshes and branch not in stored:
            raise ValueError(f"the model needs a mesh for the branch {branch!r} too, to draw its anchors from")
    if geometry is not None and not config.has_geometry:
        raise ValueError(f"{geometry}: the model has no geometry branch to show it to")


def check_forces(surface: BranchMesh, fields: Collection[str]) -> None:
    """Refuses what `surface_forces` cannot integrate, before predicting."""
    if surface.location != "cells":
        raise ValueError(f"{surface.mesh.path}: forces need fields in the cells of the surface, they are on its points")
    check_surface(surface.mesh)
    force_fields(fields)


def surface_forces(predicted: Mapping[str, Array], surface: BranchMesh, reference: ForceReference) -> Forces:
    """Integrates the forces on a surface from its pressure, or pressure coefficient, and its wall shear stress.

    Args:
        predicted: Fields [N, F] or [members, draws, N, F] of the surface: one of `PRESSURES`, and perhaps one of
            `SHEAR_SIGNS`.
        surface: The surface, with fields in its cells.
        reference: What forces are divided by.

    Raises:
        ValueError: There is no pressure, the fields are not in cells, or the mesh is not a surface.
    """
    check_forces(surface, predicted)
    elements, names = surface_elements(surface.mesh, require_closed=False), force_fields(predicted)
    whole = ForceSurface(normal=elements.normal, area=elements.area, reference=reference, patches=surface.mesh.patches)
    spreads = coefficient_spreads(predicted, whole.coefficients)
    coefficients = {"predicted": {name: float(spread.mean) for name, spread in spreads.items()}}
    mean = {name: predicted[name].reshape(-1, *predicted[name].shape[-2:]).mean(axis=0) for name in names}
    patches = {"predicted": whole.by_patch(mean)}
    exact, notes = {name: surface.reference[name] for name in names if name in surface.reference}, whole.notes(mean)
    unknown = {name: number for name, values in exact.items() if (number := int(is_unknown(values).sum()))}
    notes += [f"no forces of the known fields: {name} is NaN in {number:,} cells" for name, number in unknown.items()]
    if len(exact) == len(names) and not unknown:
        coefficients["reference"] = whole.coefficients(exact)
        patches["reference"] = whole.by_patch(exact)
    return Forces(coefficients, patches, elements.side, spreads, len(names) > 1, notes)


def coefficient_spreads(
    fields: Mapping[str, Array], coefficients: Callable[[Mapping[str, Array]], dict[str, float]]
) -> dict[str, Spread]:
    """Returns the coefficients of fields [N, F] or [members, draws, N, F] of a surface.

    Args:
        fields: The fields that forces are integrated from, and perhaps others.
        coefficients: Returns the coefficients of fields [N, F].
    """
    each = {name: fields[name].reshape(-1, *fields[name].shape[-2:]) for name in force_fields(fields)}
    shape = next(iter(fields[name] for name in each)).shape[:-2] or (1, 1)
    of_each = [coefficients({name: values[place] for name, values in each.items()}) for place in range(np.prod(shape))]
    return {name: Spread.of(np.array([one[name] for one in of_each]).reshape(shape)) for name in of_each[0]}
