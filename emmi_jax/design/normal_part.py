"""The part of a shape gradient that matters: along the normal, per area, and smoothed over a length."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.design.surface import Surface, Vertices

_TOLERANCE = 1e-6
_MAX_STEPS = 2000


class NormalPart(NamedTuple):
    """A gradient density on the vertices of a surface, per unit of length and area.

    Where it is positive, pushing the surface inwards lowers the functional.

    Attributes:
        raw: The gradient along the outward normal over the area of the vertex [V]; 0 for a vertex without area.
        smoothed: The same, smoothed [V]; its integral over the surface is that of `raw`.
    """

    raw: NDArray[np.float64]
    smoothed: NDArray[np.float64]


def normal_part(surface: Surface, gradient: Vertices, *, length: float) -> NormalPart:
    """Splits off the normal part of a gradient with respect to the vertices.

    The gradient of a single vertex says as much about the mesh and the drawn anchors as about the shape. Smoothing
    solves s - length² Δs = raw on the surface, which damps what is shorter than about the length and keeps the rest.

    Args:
        surface: The surface.
        gradient: Gradient [V, 3] with respect to its vertices.
        length: Length to smooth over, in the unit of the mesh; 0 for none.

    Raises:
        ValueError: The length is negative, or the shape of the gradient does not fit.
    """
    if not 0 <= length < np.inf:
        raise ValueError(f"length must be 0 or positive, got {length}")
    if gradient.shape != surface.vertices.shape:
        raise ValueError(f"gradient must have the shape {list(surface.vertices.shape)}, got {list(gradient.shape)}")
    place, group, triangles = _merged(surface)
    corners = place[triangles]
    vector_area, normal = _normals(triangles, corners, len(place))
    triangle_area = np.linalg.norm(vector_area, axis=1)
    area = _total(triangles, triangle_area / 3, len(place))
    total = np.stack([np.bincount(group, gradient[:, axis], len(place)) for axis in range(3)], axis=1)
    along = np.where(area > 0, np.einsum("vn,vn->v", total, normal), 0.0)
    mass = np.where(area > 0, area, 1.0)
    raw = along / mass
    smoothed = raw
    if length:
        smoothed = _solve(mass, length**2 * _stiffness(triangles, corners, triangle_area, len(place)), along)
    return NormalPart(raw[group], np.where(area > 0, smoothed, 0.0)[group])


def vertex_normals(surface: Surface) -> Vertices:
    """Returns the outward unit normals [V, 3] at the vertices, means of those of the cells by area; 0 without cells."""
    place, group, triangles = _merged(surface)
    return _normals(triangles, place[triangles], len(place))[1][group]


def _merged(surface: Surface) -> tuple[Vertices, NDArray[np.int64], NDArray[np.int64]]:
    """Returns different places [P, 3], that of each vertex [V] among them, and the triangles [F, 3] between them.

    Some files repeat the corners of every polygon: what lies in one place moves together.
    """
    place, group = np.unique(surface.vertices, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return place, group, group[surface.triangles()]


def _normals(triangles: NDArray[np.int64], corners: Vertices, num_places: int) -> tuple[Vertices, Vertices]:
    """Returns area times normal of the triangles [F, 3], and unit normals of the places [P, 3]."""
    vector_area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    normal = np.stack([_total(triangles, vector_area[:, axis], num_places) for axis in range(3)], axis=1)
    return vector_area, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _total(triangles: NDArray[np.int64], values: NDArray[np.float64], num_vertices: int) -> NDArray[np.float64]:
    """Adds a value of each triangle to its three corners."""
    return np.bincount(triangles.reshape(-1), np.repeat(values, 3), num_vertices).astype(np.float64)


def _stiffness(triangles: NDArray[np.int64], corners: Vertices, area: NDArray[np.float64], num_vertices: int) -> Any:
    """Returns the matrix of the Laplacian with linear elements (cotangent weights), positive semidefinite."""
    from scipy.sparse import coo_matrix, diags

    floor = np.finfo(np.float64).eps * max(float(area.max(initial=0.0)), np.finfo(np.float64).tiny)
    rows, columns, weights = [], [], []
    for corner in range(3):
        first, second = (corner + 1) % 3, (corner + 2) % 3
        edges = corners[:, first] - corners[:, corner], corners[:, second] - corners[:, corner]
        weights.append(np.einsum("tn,tn->t", *edges) / (4 * np.maximum(area, floor)))
        rows.append(triangles[:, first])
        columns.append(triangles[:, second])
    shape = (num_vertices, num_vertices)
    half = coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=shape)
    adjacency = (half + half.T).tocsr()
    return diags(np.asarray(adjacency.sum(axis=1)).reshape(-1)) - adjacency


def _solve(mass: NDArray[np.float64], stiffness: Any, right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solves (mass + stiffness) x = right by conjugate gradients."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import cg

    matrix = diags(mass) + stiffness
    diagonal = matrix.diagonal()
    solution, status = cg(matrix, right, right / diagonal, rtol=_TOLERANCE, maxiter=_MAX_STEPS, M=diags(1 / diagonal))
    if status:
        raise ValueError(f"smoothing did not converge in {_MAX_STEPS} steps: choose a shorter length")
    return np.asarray(solution)
