"""Features of points near a surface: its outward normal, and the distance to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.mesh import Location, Mesh
from emmi_jax.meshes.surfaces import surface_elements
from emmi_jax.points import Array, row_chunks

NORMAL, DISTANCE = "normal", "distance"
COMPUTED = (NORMAL, DISTANCE)
"""Arrays that are computed where the files of a case have none of this name."""

_NEIGHBORS = 8
_MOST_PAIRS = 1 << 19


def input_names(names: Mapping[str, Iterable[str]], surface: str = "surface") -> dict[str, tuple[str, ...]]:
    """Returns the arrays that a model takes by branch; those of ``geometry`` are the surface's."""
    by_branch: dict[str, tuple[str, ...]] = {}
    for part, of_part in names.items():
        branch = surface if part == "geometry" else part
        by_branch[branch] = tuple(dict.fromkeys([*by_branch.get(branch, ()), *of_part]))
    return by_branch


def surface_normals(mesh: Mesh, location: Location) -> NDArray[np.float64]:
    """Returns the outward unit normals [N, 3] of the cells of a surface.

    Raises:
        ValueError: The mesh is no surface of polygons, or its arrays are on points.
    """
    if location != "cells":
        raise ValueError(f"{mesh.path}: {NORMAL!r} is computed in the cells of a surface, its arrays are on points")
    return surface_elements(mesh, require_closed=False).normal


def surface_distance(position: Array, triangles: Array) -> NDArray[np.float64]:
    """Returns the distances [N, 1] of points [N, 3] to the nearest of triangles [F, 3, 3], in the unit of both."""
    from scipy.spatial import cKDTree

    center = triangles.mean(axis=1)
    reach = float(np.linalg.norm(triangles - center[:, None], axis=2).max())
    tree = cKDTree(center)

    def nearest(points: NDArray[np.float64], number: int) -> NDArray[np.float64]:
        """Returns distances, exact once those to `number` nearest centres say that no other triangle is nearer."""
        number = min(number, len(center))
        distances, size = np.empty(len(points)), max(_MOST_PAIRS // number, 1)
        for start in range(0, len(points), size):
            here = points[start : start + size]
            to_center, idx = tree.query(here, k=range(1, number + 1))
            distance = _to_triangles(here[:, None], triangles[idx]).min(axis=1)
            is_open = to_center[:, -1] - reach < distance
            if number < len(center) and is_open.any():
                distance[is_open] = nearest(here[is_open], 4 * number)
            distances[start : start + size] = distance
        return distances

    return np.concatenate([nearest(np.asarray(rows, np.float64), _NEIGHBORS) for rows in row_chunks(position)])[:, None]


def _to_triangles(point: NDArray[np.float64], triangles: Array) -> NDArray[np.float64]:
    """Returns distances [...] of points [..., 3] to triangles [..., 3, 3]."""
    a, edges = triangles, np.roll(triangles, -1, axis=-2) - triangles
    along = np.square(edges).sum(axis=-1)
    offset = point[..., None, :] - a
    share = np.clip((offset * edges).sum(axis=-1) / np.where(along > 0, along, 1.0), 0, 1)
    to_edge = np.linalg.norm(offset - share[..., None] * edges, axis=-1).min(axis=-1)
    normal = np.cross(edges[..., 0, :], edges[..., 1, :])
    area = np.linalg.norm(normal, axis=-1)
    is_inside = ((np.cross(edges, offset) * normal[..., None, :]).sum(axis=-1) >= 0).all(axis=-1) & (area > 0)
    height = np.abs((offset[..., 0, :] * normal).sum(axis=-1)) / np.where(area > 0, area, 1.0)
    return np.where(is_inside, height, to_edge)
