"""Surfaces of polygons, or of lines in a plane: areas, outward normals, and whether they are closed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.cavities import fans
from emmi_jax.meshes.cells import PIXEL, POLYGON, QUAD, TRIANGLE, flat_cells
from emmi_jax.meshes.content import cell_arrays, polydata
from emmi_jax.meshes.curves import curve_elements, segments
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.orientation import orient
from emmi_jax.meshes.vtk import import_pyvista, vtk_messages


class SurfaceElements(NamedTuple):
    """Cells of a surface.

    Args:
        area: Areas [N], in the squared unit of the positions; of lines, lengths.
        normal: Outward unit normals [N, 3]; zero for a cell without area.
        num_open_edges: Edges, or ends of lines, that do not join exactly two cells of one part; 0 for a closed surface.
        is_turned: Which cells [N] turn clockwise seen from outside.
        side: How the outward side was told, in words.
    """

    area: NDArray[np.float64]
    normal: NDArray[np.float64]
    num_open_edges: int
    is_turned: NDArray[np.bool_]
    side: str


def check_surface(mesh: Mesh) -> None:
    """Checks that a mesh is a surface of polygons, or of lines in a plane.

    Raises:
        ValueError: It is not.
    """
    if (ends := segments(mesh.dataset)) is None:
        polygons(mesh)
    else:
        _of_lines(mesh, ends, require_closed=False)


def is_surface(mesh: Mesh) -> bool:
    """Returns whether a mesh is a surface of polygons, or of lines, and nothing else."""
    try:
        check_surface(mesh)
    except ValueError:
        return False
    return True


def surface_elements(mesh: Mesh, *, require_closed: bool = True) -> SurfaceElements:
    """Computes areas and outward normals of the cells of a surface.

    Faces of OpenFOAM point out of the fluid, so into the body. Of other surfaces, the outward side is found for each
    connected part; see `orient`.

    Args:
        mesh: A surface of polygons. They should be planar; else area and normal are those of their boundary. Or of
            lines in a plane of two axes, whose areas are those per unit of span.
        require_closed: Whether to refuse a surface with open edges.

    Returns:
        Areas and normals in the order of the cells.

    Raises:
        ValueError: The mesh is not a surface of polygons, or must be closed but is not.
    """
    if (ends := segments(mesh.dataset)) is not None:
        return _of_lines(mesh, ends, require_closed=require_closed)
    connectivity, offsets = polygons(mesh)
    points = np.asarray(mesh.dataset.points, dtype=np.float64)
    points = points - (points.min(axis=0) + points.max(axis=0)) / 2
    vector_area = polygon_vectors(points, connectivity, offsets)
    orientation = orient(points, connectivity, offsets, vector_area)
    if require_closed and orientation.num_open_edges:
        raise ValueError(
            f"{mesh.path}: the surface is not closed: {orientation.num_open_edges} edges do not join exactly two "
            "cells, so it has no outward side"
        )
    is_turned, side = orientation.is_turned, orientation.side
    if mesh.is_patch:
        is_turned, side = np.ones(len(vector_area), bool), "faces of OpenFOAM point out of the fluid"
    area = np.linalg.norm(vector_area, axis=1)
    normal = np.where(is_turned, -1.0, 1.0)[:, None] * vector_area / np.where(area > 0, area, 1.0)[:, None]
    return SurfaceElements(area, normal, orientation.num_open_edges, is_turned, side)


def _of_lines(mesh: Mesh, ends: NDArray[np.int64], *, require_closed: bool) -> SurfaceElements:
    try:
        curves = curve_elements(np.asarray(mesh.dataset.points, dtype=np.float64), ends)
    except ValueError as error:
        raise ValueError(f"{mesh.path}: {error}") from None
    if require_closed and curves.num_ends:
        raise ValueError(f"{mesh.path}: {curves.num_ends} points do not join exactly two lines")
    lids = f", {curves.num_ends} ends joined by straight lines" if curves.num_ends else ""
    side = f"lines in the plane {curves.plane} around the body{lids}; forces are per unit of span"
    return SurfaceElements(curves.length, curves.normal, curves.num_ends, curves.is_turned, side)


def polygon_vectors(
    points: NDArray[np.float64], connectivity: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns normal times area of each polygon [N, 3], right-handed."""
    following = np.roll(connectivity, -1)
    following[offsets[1:] - 1] = connectivity[offsets[:-1]]
    # Edges are relative to the first corner of their polygon, to avoid cancellation far from the origin.
    first = np.repeat(points[connectivity[offsets[:-1]]], np.diff(offsets), axis=0)
    corners = np.cross(points[connectivity] - first, points[following] - first)
    return np.add.reduceat(corners, offsets[:-1], axis=0) / 2


def area_vectors(mesh: Mesh) -> tuple[NDArray[np.float64], str]:
    """Returns the outward normal of every cell times its area [N, 3], and how that side was told."""
    elements = surface_elements(mesh, require_closed=False)
    return elements.normal * elements.area[:, None], elements.side


def surface_triangles(mesh: Mesh) -> NDArray[np.float64]:
    """Cuts a surface into triangles and returns their corners, [F, 3, 3]; those of a line are its ends, the last twice.

    Raises:
        ValueError: The mesh is not a surface of polygons or lines.
    """
    if (ends := segments(mesh.dataset)) is not None:
        return np.asarray(mesh.dataset.points, dtype=np.float64)[ends[:, [0, 1, 1]]]
    with vtk_messages():
        triangles = Mesh(mesh.path, surface_dataset(mesh).triangulate())
    connectivity, _ = polygons(triangles)
    return np.asarray(triangles.dataset.points, dtype=np.float64)[connectivity.reshape(-1, 3)]


def surface_dataset(mesh: Mesh) -> Any:
    """Returns the cells of a surface as `pyvista.PolyData`, with its points and the order of its cells.

    Raises:
        ValueError: The mesh is not a surface of polygons or lines.
    """
    if (ends := segments(mesh.dataset)) is not None:
        made = polydata(mesh.dataset.points, ends.reshape(-1), 2 * np.arange(len(ends) + 1), dim=1)
        return mesh.dataset if mesh.dataset.IsA("vtkPolyData") else made
    arrays = polygons(mesh)
    return mesh.dataset if mesh.dataset.IsA("vtkPolyData") else polydata(mesh.dataset.points, *arrays)


def fan_triangles(dataset: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cuts convex polygons into triangles and returns which cell each came from.

    Args:
        dataset: A `pyvista.PolyData`; its lines and vertices are ignored.

    Returns:
        Indices of the corners [T, 3] among the points, and of the cells [T].
    """
    connectivity, offsets = cell_arrays(dataset.GetPolys())
    triangles, polygon = fans(connectivity, offsets, np.arange(len(offsets) - 1))
    # VTK numbers cells by kind: polygons come after vertices and lines.
    return triangles, polygon + dataset.GetNumberOfVerts() + dataset.GetNumberOfLines()


def polygons(mesh: Mesh) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the corners of all polygons among the points, and where each polygon starts and ends among them.

    Raises:
        ValueError: The mesh is not a surface of polygons.
    """
    dataset: Any = mesh.dataset
    if dataset.IsA("vtkPolyData"):
        arrays = cell_arrays(dataset.GetPolys()) if dataset.GetNumberOfPolys() == dataset.n_cells else None
    else:
        arrays = _flat_cells(dataset)
    if arrays is None or not dataset.n_cells:
        raise ValueError(f"{mesh.path}: expected a surface of polygons and no other cells, got {_kind(dataset)}")
    connectivity, offsets = arrays
    if np.diff(offsets).min() < 3:
        raise ValueError(f"{mesh.path}: a polygon has {np.diff(offsets).min()} corners, expected at least 3")
    return connectivity, offsets


def _flat_cells(dataset: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Returns the corners of the cells of any data set as polygons; None if a cell is none, or is curved."""
    grid = dataset.cast_to_unstructured_grid()
    kinds = np.asarray(grid.celltypes)
    if not np.isin(kinds, (TRIANGLE, POLYGON, PIXEL, QUAD)).all():
        return None
    return flat_cells(kinds, *cell_arrays(grid.GetCells()))


def _kind(dataset: Any) -> str:
    if not dataset.IsA("vtkPolyData"):
        grid = dataset.cast_to_unstructured_grid()
        kinds = [import_pyvista().CellType(kind).name.lower() for kind in np.unique(grid.celltypes)]
        return f"a {dataset.GetClassName()} of the cells {', '.join(kinds)}"
    polygons = f"{dataset.GetNumberOfPolys()} polygons among {dataset.n_cells} cells"
    longest = np.diff(cell_arrays(dataset.GetLines())[1]).max(initial=0)
    return polygons if longest <= 2 else f"{polygons}, and a line of {longest} points where each takes 2"
