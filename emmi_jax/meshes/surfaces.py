"""Surfaces of polygons: areas, outward normals, and whether they are closed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.content import cell_arrays, polydata
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.vtk import import_pyvista, vtk_messages

_TRIANGLE, _POLYGON, _PIXEL, _QUAD = 5, 7, 8, 9


class SurfaceElements(NamedTuple):
    """Cells of a surface.

    Args:
        area: Areas [N], in the squared unit of the positions.
        normal: Outward unit normals [N, 3]; zero for a cell without area.
        num_open_edges: Edges that do not join exactly two consistently oriented cells; 0 for a closed surface.
        orientation: 1 if the polygons turn counter-clockwise seen from outside, else -1.
    """

    area: NDArray[np.float64]
    normal: NDArray[np.float64]
    num_open_edges: int
    orientation: float


def check_surface(mesh: Mesh) -> None:
    """Checks that a mesh is a surface of polygons.

    Raises:
        ValueError: It is not.
    """
    polygons(mesh)


def is_surface(mesh: Mesh) -> bool:
    """Returns whether a mesh is a surface of polygons and nothing else."""
    try:
        polygons(mesh)
    except ValueError:
        return False
    return True


def surface_elements(mesh: Mesh, *, require_closed: bool = True) -> SurfaceElements:
    """Computes areas and outward normals of the cells of a surface.

    Outward is the side that makes the enclosed volume positive, so the orientation of the polygons does not matter, as
    long as it is consistent; all parts of a body must share it.

    Args:
        mesh: A surface of polygons. They should be planar; else area and normal are those of their boundary.
        require_closed: Whether to refuse a surface with open edges. If not, outward is a guess, away from the middle of
            the box on average: right for a body with small gaps, such as a car on its tyres. A sheet, which has no
            inside, keeps the orientation of its polygons.

    Returns:
        Areas and normals in the order of the cells.

    Raises:
        ValueError: The mesh is not a surface of polygons, or must be closed but is not.
    """
    connectivity, offsets = polygons(mesh)
    points = np.asarray(mesh.dataset.points, dtype=np.float64)
    points = points - (points.min(axis=0) + points.max(axis=0)) / 2
    following = _following(len(connectivity), offsets)
    start, end = points[connectivity], points[connectivity[following]]
    # Edges are relative to the first corner of their polygon, to avoid cancellation far from the origin.
    first = np.repeat(points[connectivity[offsets[:-1]]], np.diff(offsets), axis=0)
    vector_area = np.add.reduceat(np.cross(start - first, end - first), offsets[:-1], axis=0) / 2
    area = np.linalg.norm(vector_area, axis=1)
    volume = np.einsum("ni,ni->", points[connectivity[offsets[:-1]]], vector_area) / 3
    num_open = _num_open_edges(points, connectivity, following)
    if require_closed and num_open:
        raise ValueError(
            f"{mesh.path}: the surface is not closed: {num_open} edges do not join exactly two consistently oriented "
            "cells, so it has no outward side"
        )
    sign = -1.0 if volume < -1e-9 * area.sum() * np.abs(points).max() else 1.0
    return SurfaceElements(area, sign * vector_area / np.where(area > 0, area, 1.0)[:, None], num_open, sign)


def area_vectors(mesh: Mesh) -> NDArray[np.float64]:
    """Returns the outward normal of every cell times its area [N, 3]; see `surface_elements`, if it is not closed."""
    elements = surface_elements(mesh, require_closed=False)
    return elements.normal * elements.area[:, None]


def surface_triangles(mesh: Mesh) -> NDArray[np.float64]:
    """Cuts a surface into triangles and returns their corners, [F, 3, 3].

    Raises:
        ValueError: The mesh is not a surface of polygons.
    """
    with vtk_messages():
        triangles = Mesh(mesh.path, surface_dataset(mesh).triangulate())
    connectivity, _ = polygons(triangles)
    return np.asarray(triangles.dataset.points, dtype=np.float64)[connectivity.reshape(-1, 3)]


def surface_dataset(mesh: Mesh) -> Any:
    """Returns the polygons of a surface as `pyvista.PolyData`, with its points and the order of its cells.

    Raises:
        ValueError: The mesh is not a surface of polygons.
    """
    found = polygons(mesh)
    return mesh.dataset if mesh.dataset.IsA("vtkPolyData") else polydata(mesh.dataset.points, *found)


def fan_triangles(dataset: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cuts convex polygons into triangles and returns which cell each came from.

    Args:
        dataset: A `pyvista.PolyData`; its lines and vertices are ignored.

    Returns:
        Indices of the corners [T, 3] among the points, and of the cells [T].
    """
    connectivity, offsets = cell_arrays(dataset.GetPolys())
    corners = np.diff(offsets)
    num_triangles = np.maximum(corners - 2, 0)
    polygon = np.repeat(np.arange(len(corners)), num_triangles)
    number = np.arange(len(polygon)) - np.repeat(np.cumsum(num_triangles) - num_triangles, num_triangles)
    first = offsets[:-1][polygon]
    triangles = np.stack([connectivity[i] for i in (first, first + number + 1, first + number + 2)], axis=1)
    # VTK numbers cells by kind: polygons come after vertices and lines.
    return triangles, polygon + dataset.GetNumberOfVerts() + dataset.GetNumberOfLines()


def polygons(mesh: Mesh) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the corners of all polygons among the points, and where each polygon starts and ends among them.

    Raises:
        ValueError: The mesh is not a surface of polygons.
    """
    dataset: Any = mesh.dataset
    if dataset.IsA("vtkPolyData"):
        found = cell_arrays(dataset.GetPolys()) if dataset.GetNumberOfPolys() == dataset.n_cells else None
    else:
        found = _flat_cells(dataset)
    if found is None or not dataset.n_cells:
        raise ValueError(f"{mesh.path}: expected a surface of polygons and no other cells, got {_kind(dataset)}")
    connectivity, offsets = found
    if np.diff(offsets).min() < 3:
        raise ValueError(f"{mesh.path}: a polygon has {np.diff(offsets).min()} corners, expected at least 3")
    return connectivity, offsets


def _flat_cells(dataset: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Returns the corners of the cells of any data set as polygons; None if a cell is none, or is curved."""
    grid = dataset.cast_to_unstructured_grid()
    kinds = np.asarray(grid.celltypes)
    if not np.isin(kinds, (_TRIANGLE, _POLYGON, _PIXEL, _QUAD)).all():
        return None
    connectivity, offsets = cell_arrays(grid.GetCells())
    if len(pixels := offsets[:-1][kinds == _PIXEL]):  # rows of a lattice, not a loop
        connectivity = connectivity.copy()
        connectivity[pixels + 2], connectivity[pixels + 3] = connectivity[pixels + 3], connectivity[pixels + 2]
    return connectivity, offsets


def _kind(dataset: Any) -> str:
    if not dataset.IsA("vtkPolyData"):
        grid = dataset.cast_to_unstructured_grid()
        kinds = [import_pyvista().CellType(kind).name.lower() for kind in np.unique(grid.celltypes)]
        return f"a {dataset.GetClassName()} of the cells {', '.join(kinds)}"
    return f"{dataset.GetNumberOfPolys()} polygons among {dataset.n_cells} cells"


def _following(num_corners: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    following = np.arange(1, num_corners + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    return following


def _num_open_edges(points: NDArray[np.float64], connectivity: NDArray[np.int64], following: NDArray[np.int64]) -> int:
    num_open = _num_unpaired(connectivity, following)
    if num_open:
        # Some writers repeat the corners of every polygon, so no edges match by index.
        _, same = np.unique(points, axis=0, return_inverse=True)
        num_open = _num_unpaired(same.reshape(-1)[connectivity], following)
    return num_open


def _num_unpaired(corner: NDArray[np.int64], following: NDArray[np.int64]) -> int:
    """Counts edges that are not traversed exactly twice, once in each direction."""
    start, end = corner, corner[following]
    low, high = np.minimum(start, end), np.maximum(start, end)
    _, edge, count = np.unique(low * (high.max() + 1) + high, return_inverse=True, return_counts=True)
    balance = np.bincount(edge.reshape(-1), weights=np.where(start < end, 1.0, -1.0))
    return int(np.count_nonzero((count != 2) | (balance != 0)))
