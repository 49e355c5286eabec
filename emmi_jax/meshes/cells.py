"""Centroids and sizes of the cells of any VTK data set, kind by kind: VTK's own depend on its version."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.content import cell_arrays
from emmi_jax.meshes.polyhedra import Floats, Ints, cell_geometry, face_geometry, shape_geometry
from emmi_jax.meshes.vtk import import_pyvista

POSITIONS = "faces and pyramids"
"""Name of the way that centroids are computed; a store that says otherwise has other positions."""

TRIANGLE, POLYGON, PIXEL, QUAD = 5, 7, 8, 9
_FLAT = (TRIANGLE, POLYGON, PIXEL, QUAD)
_LOWER = (1, 2, 3, 4)  # vertices and lines
_VOXEL, _HEXAHEDRON, _POLYHEDRON = 11, 12, 42
_OF_VOXEL = [0, 1, 3, 2, 4, 5, 7, 6]
"""The corners of a voxel in the order of those of a hexahedron."""

_SOLIDS: dict[int, list[list[int]]] = {
    10: [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]],
    12: [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [2, 3, 7, 6], [0, 4, 7, 3], [1, 2, 6, 5]],
    13: [[0, 1, 2], [3, 5, 4], [0, 3, 4, 1], [1, 4, 5, 2], [2, 5, 3, 0]],
    14: [[0, 3, 2, 1], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]],
    15: [[0, 4, 3, 2, 1], [5, 6, 7, 8, 9]] + [[i, (i + 1) % 5, (i + 1) % 5 + 5, i + 5] for i in range(5)],
    16: [[0, 5, 4, 3, 2, 1], [6, 7, 8, 9, 10, 11]] + [[i, (i + 1) % 6, (i + 1) % 6 + 6, i + 6] for i in range(6)],
}
"""Faces of VTK's shapes, all turning alike, by cell type."""


class CellGeometry(NamedTuple):
    """Centroids [N, 3] of cells, and their sizes [N]: lengths, areas or volumes, 0 for vertices."""

    centre: Floats
    size: Floats


def measure_cells(dataset: Any) -> CellGeometry:
    """Computes centroids and sizes of cells.

    Args:
        dataset: A `pyvista.DataSet`.

    Raises:
        ValueError: A cell is curved, or of an unknown kind.
    """
    points = np.asarray(dataset.points, np.float64, order="F")
    if dataset.IsA("vtkPolyData") and dataset.GetNumberOfPolys() == dataset.n_cells:
        return _flat(points, *cell_arrays(dataset.GetPolys()))
    grid = dataset.cast_to_unstructured_grid()
    kinds, geometry = np.asarray(grid.celltypes), CellGeometry(np.empty((grid.n_cells, 3)), np.zeros(grid.n_cells))
    corners, offsets = cell_arrays(grid.GetCells())
    for kind in np.unique(kinds):
        cells = np.flatnonzero(kinds == kind)
        if kind == _POLYHEDRON:
            parts: Any = _polyhedra(points, grid, cells)
        elif kind in (*_SOLIDS, _VOXEL):
            faces = _SOLIDS[_HEXAHEDRON if kind == _VOXEL else kind]
            number = 1 + max(map(max, faces))
            here = corners.reshape(-1, number) if len(cells) == len(kinds) else None
            here = corners[offsets[cells, None] + np.arange(number)] if here is None else here
            parts = shape_geometry(points, here[:, _OF_VOXEL] if kind == _VOXEL else here, faces)
        elif kind in _FLAT:
            parts = _flat(points, *flat_cells(kinds[cells], *taken(corners, offsets, cells)))
        elif kind in _LOWER:
            parts = _lower(points, *taken(corners, offsets, cells), is_line=kind > 2)
        else:
            name = import_pyvista().CellType(kind).name.lower()
            raise ValueError(f"{len(cells):,} cells are of the kind {name}, expected linear ones")
        if len(cells) == len(kinds):
            return CellGeometry(*parts)
        geometry.centre[cells], geometry.size[cells] = parts
    return geometry


def flat_cells(kinds: NDArray[np.uint8], corners: Ints, offsets: Ints) -> tuple[Ints, Ints]:
    """Returns flat cells as polygons: the corners of a pixel are rows of a lattice, no loop."""
    if len(pixels := offsets[:-1][kinds == PIXEL]):
        corners = corners.copy()
        corners[pixels + 2], corners[pixels + 3] = corners[pixels + 3], corners[pixels + 2]
    return corners, offsets


def taken(corners: Ints, offsets: Ints, cells: Ints) -> tuple[Ints, Ints]:
    """Returns corners and offsets of some cells."""
    if len(cells) == len(offsets) - 1:
        return corners, offsets
    number = np.diff(offsets)[cells]
    ends = np.concatenate([[0], np.cumsum(number)])
    return corners[np.repeat(offsets[cells] - ends[:-1], number) + np.arange(ends[-1])], ends


def _flat(points: Floats, corners: Ints, offsets: Ints) -> CellGeometry:
    centre, vector = face_geometry(points, corners, offsets)
    return CellGeometry(centre, np.linalg.norm(vector, axis=1))


def _lower(points: Floats, corners: Ints, offsets: Ints, *, is_line: bool) -> CellGeometry:
    """Vertices and lines: the mean of the corners, and the length of lines from the first to the last."""
    step = np.linalg.norm(np.diff(points[corners], axis=0, append=points[corners[-1:]]), axis=1)
    step[offsets[1:] - 1] = 0.0  # from one cell to the next
    number = np.diff(offsets)
    centre = np.add.reduceat(points[corners], offsets[:-1], axis=0) / number[:, None]
    return CellGeometry(centre, np.add.reduceat(step, offsets[:-1]) * is_line)


def _polyhedra(points: Floats, grid: Any, cells: Ints) -> CellGeometry:
    corners, offsets, number = polyhedron_faces(grid, cells)
    centre, vector = face_geometry(points, corners, offsets)
    return CellGeometry(*cell_geometry(centre, vector, np.repeat(np.arange(len(cells)), number), len(cells)))


def polyhedron_faces(grid: Any, cells: Ints) -> tuple[Ints, Ints, Ints]:
    """Returns corners of all faces of polyhedra, cell by cell; where each face starts; and the number of faces [N].

    Raises:
        ValueError: They have none.
    """
    if hasattr(grid, "GetPolyhedronFaces"):  # VTK 9.4
        if grid.GetPolyhedronFaces() is None:
            raise ValueError("damaged: its polyhedra have no faces")
        face, ends = taken(*cell_arrays(grid.GetPolyhedronFaceLocations()), cells)
        corners, offsets = taken(*cell_arrays(grid.GetPolyhedronFaces()), face)
        return corners, offsets, np.diff(ends)
    to_numpy = importlib.import_module("vtkmodules.util.numpy_support").vtk_to_numpy
    stream, first = (to_numpy(array).astype(np.int64) for array in (grid.GetFaces(), grid.GetFaceLocations()))
    return stream_faces(stream, first[cells])


def stream_faces(stream: Ints, first: Ints) -> tuple[Ints, Ints, Ints]:
    """Decodes the face streams of older versions of VTK: `[faces, corners, corner, …, corners, corner, …]` per cell.

    Args:
        stream: All streams.
        first: Where that of each cell begins, [N].

    Returns:
        Corners of all faces, cell by cell; where each face starts, and the end; and the number of faces [N].
    """
    number, place = stream[first], first + 1
    start = np.empty(number.sum(), np.int64)
    of_cell = np.cumsum(number) - number
    for step in range(number.max(initial=0)):
        cells = np.flatnonzero(number > step)
        start[of_cell[cells] + step] = place[cells]
        place[cells] += 1 + stream[place[cells]]
    sizes = stream[start]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return stream[np.repeat(start + 1 - offsets[:-1], sizes) + np.arange(offsets[-1])], offsets, number
