"""Inputs of a model beside the positions of a mesh: its arrays, or what is computed of the surface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from emmi_jax.deploy.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.features import GEOMETRY, FeatureNames, join_features
from emmi_jax.meshes.branch_mesh import BranchMesh
from emmi_jax.meshes.components import found_arrays
from emmi_jax.meshes.mesh import FieldSource, Mesh
from emmi_jax.meshes.point_inputs import DISTANCE, NORMAL, surface_distance, surface_normals
from emmi_jax.meshes.surfaces import surface_triangles
from emmi_jax.points import Array, PointSet


def feature_sources(
    branch: str, features: FeatureNames, sources: Mapping[str, Mapping[str, FieldSource]]
) -> dict[str, FieldSource]:
    """Returns the arrays that hold features of a branch, and those of the geometry; the default is their own name."""
    names = [*features.get(branch, ()), *(features.get(GEOMETRY, ()) if branch == GEOMETRY_BRANCH else ())]
    return {name: sources.get(branch, {}).get(name, FieldSource(name)) for name in names}


def with_features(
    meshes: Mapping[str, BranchMesh],
    features: FeatureNames,
    sources: Mapping[str, Mapping[str, FieldSource]],
    geometry: Mesh | None,
) -> dict[str, BranchMesh]:
    """Returns meshes with the features that a model takes.

    Args:
        meshes: Meshes by branch.
        features: What the model takes.
        sources: The arrays of meshes by branch and name.
        geometry: The surface that distances are measured to; by default that of the branch ``surface``.

    Raises:
        ValueError: An array is missing, or cannot be computed.
    """
    return {
        branch: mesh._replace(features=_joined(mesh, branch, features[branch], meshes, sources, geometry))
        if branch in features
        else mesh
        for branch, mesh in meshes.items()
    }


def geometry_with_features(
    meshes: Mapping[str, BranchMesh],
    features: FeatureNames,
    sources: Mapping[str, Mapping[str, FieldSource]],
    geometry: Mesh | None,
    has_context: bool,
) -> PointSet | None:
    """Returns the points of the surface with the features of the geometry, where the model takes some.

    Raises:
        ValueError: Another mesh than the surface is the geometry, or there is no surface.
    """
    if GEOMETRY not in features or (GEOMETRY_BRANCH not in meshes and has_context):
        return None
    if geometry is not None and GEOMETRY_BRANCH in meshes and geometry.path != meshes[GEOMETRY_BRANCH].mesh.path:
        raise ValueError(
            f"{geometry.path}: the model takes features of the geometry, {', '.join(features[GEOMETRY])}, which the "
            "surface mesh has: leave out --geometry"
        )
    if GEOMETRY_BRANCH not in meshes:
        raise ValueError(f"the model takes features of the geometry, {', '.join(features[GEOMETRY])}: give --surface")
    mesh = meshes[GEOMETRY_BRANCH]
    joined = _joined(mesh, GEOMETRY_BRANCH, features[GEOMETRY], meshes, sources, geometry)
    return PointSet(mesh.position, {}, features=joined)


def _joined(
    mesh: BranchMesh,
    branch: str,
    names: Mapping[str, int],
    meshes: Mapping[str, BranchMesh],
    sources: Mapping[str, Mapping[str, FieldSource]],
    geometry: Mesh | None,
) -> Array:
    data = mesh.mesh.dataset.cell_data if mesh.location == "cells" else mesh.mesh.dataset.point_data
    present: Collection[str] = list(data.keys())
    arrays: dict[str, Any] = {}
    for name in names:
        source = sources.get(branch, {}).get(name, FieldSource(name))
        if found_arrays(source.array, present):
            arrays[name] = mesh.mesh.points({name: source}, location=mesh.location).fields[name]
        elif name == NORMAL and branch == GEOMETRY_BRANCH:
            arrays[name] = surface_normals(mesh.mesh, mesh.location)
        elif name == DISTANCE and (geometry is not None or GEOMETRY_BRANCH in meshes):
            arrays[name] = surface_distance(mesh.position, surface_triangles(geometry or meshes[GEOMETRY_BRANCH].mesh))
        else:
            raise ValueError(
                f"{mesh.mesh.path}: the model takes the feature {name!r} of {branch!r}: no array {source.array!r} on "
                f"{mesh.location}, which have {present}"
                + "; a surface to compute it from is given by --surface or --geometry"
                * (name == DISTANCE)
            )
    return join_features(f"{mesh.mesh.path}: {branch}", arrays, names, len(mesh.position))
