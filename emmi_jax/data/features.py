"""Arrays of a case that a model takes as inputs instead of predicting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from emmi_jax.config import FrozenMapping
from emmi_jax.data.cases import Case
from emmi_jax.deploy.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.features import GEOMETRY, join_features
from emmi_jax.meshes.mesh import Location, Mesh
from emmi_jax.meshes.point_inputs import COMPUTED, DISTANCE, NORMAL, surface_distance, surface_normals
from emmi_jax.points import Array, PointSet

Channels = dict[str, dict[str, int]]
"""Numbers of channels by branch, and field or feature."""
Names: TypeAlias = Mapping[str, Sequence[str]]
"""Names of arrays by branch."""
NO_INPUTS: Names = FrozenMapping({})


def split_channels(arrays: Mapping[str, Mapping[str, int]], names: Names) -> tuple[Channels, Channels]:
    """Splits the arrays of data into fields to predict, and features that a model takes.

    Args:
        arrays: Numbers of channels by branch and array.
        names: Features by branch, or ``geometry``, whose arrays are those of the branch ``surface``.

    Returns:
        Numbers of channels of fields, and of features in the order of their names.

    Raises:
        ValueError: An array is missing, or a branch has nothing to predict.
    """
    features: Channels = {}
    for part, of_part in names.items():
        branch = GEOMETRY_BRANCH if part == GEOMETRY else part
        if branch not in arrays:
            raise ValueError(f"features name {part!r}, but the data have the branches {list(arrays)!r}")
        if missing := [name for name in of_part if name not in arrays[branch]]:
            what = f"features of {part!r}: the data have no array {missing[0]!r}, only {list(arrays[branch])!r}"
            raise ValueError(what + "; it is computed of meshes alone" * (missing[0] in COMPUTED))
        features[part] = {name: arrays[branch][name] for name in of_part}
    inputs = {part: set(of_part) for part, of_part in features.items()}
    # What the geometry takes is no field, either.
    taken = {branch: inputs.get(branch, set()) for branch in arrays}
    if GEOMETRY_BRANCH in taken:
        taken[GEOMETRY_BRANCH] |= inputs.get(GEOMETRY, set())
    fields = {b: {n: c for n, c in of.items() if n not in taken[b]} for b, of in arrays.items()}
    if empty := [branch for branch, of in fields.items() if not of]:
        raise ValueError(f"the branch {empty[0]!r} has no field left to predict beside its features")
    return fields, features


def with_features(name: str, case: Case, features: Mapping[str, Mapping[str, int]]) -> Case:
    """Returns a case whose features are no fields any more, joined in their order.

    Where the geometry has features, the points of the branch ``surface`` describe it.

    Args:
        name: Name of the case, for messages.
        case: The case as it was read.
        features: Numbers of channels by branch, or ``geometry``, and name.

    Raises:
        ValueError: An array is missing or has another shape.
    """
    if not features:
        return case
    points = {}
    of_geometry = features.get(GEOMETRY, {})
    for branch, part in case.points.items():
        inputs = features.get(branch, {})
        taken = {*inputs, *(of_geometry if branch == GEOMETRY_BRANCH else ())}
        fields = {field: values for field, values in part.fields.items() if field not in taken}
        joined = _joined(f"{name}: {branch}", part, inputs) if inputs else None
        points[branch] = part._replace(fields=fields, features=joined)
    if not of_geometry:
        return case._replace(points=points)
    surface = case.points[GEOMETRY_BRANCH]
    return case._replace(
        points=points,
        geometry=surface.position,
        geometry_features=_joined(f"{name}: {GEOMETRY}", surface, of_geometry),
    )


def with_normals(points: PointSet, mesh: Mesh, location: Location, inputs: Sequence[str]) -> PointSet:
    """Adds the outward normals of a surface to its fields, if they are wanted and it has none."""
    if NORMAL not in inputs or NORMAL in points.fields:
        return points
    return points._replace(fields={**points.fields, NORMAL: surface_normals(mesh, location)})


def with_distances(points: Mapping[str, PointSet], triangles: Array, inputs: Names) -> dict[str, PointSet]:
    """Adds the distance to triangles [F, 3, 3] to the fields of branches that want it and have none."""
    featured = dict(points)
    for branch, part in points.items():
        if DISTANCE in inputs.get(branch, ()) and DISTANCE not in part.fields:
            distance = surface_distance(part.position, triangles)
            featured[branch] = part._replace(fields={**part.fields, DISTANCE: distance})
    return featured


def _joined(what: str, part: PointSet, names: Mapping[str, int]) -> Array:
    return join_features(what, {n: part.fields[n] for n in names if n in part.fields}, names, len(part.position))
