"""Cells of VTK from the faces of OpenFOAM: tetrahedra, pyramids, wedges and hexahedra, and polyhedra for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.vtk import import_pyvista

Ints = NDArray[np.int64]

_TETRA, _HEXAHEDRON, _WEDGE, _PYRAMID, _POLYHEDRON = 10, 12, 13, 14, 42
_SHAPES = {_TETRA: (4, 0), _PYRAMID: (4, 1), _WEDGE: (2, 3), _HEXAHEDRON: (0, 6)}
"""Numbers of triangles and quadrilaterals by cell type."""


def foam_grid(
    points: NDArray[np.float64], corners: Ints, offsets: Ints, owner: Ints, neighbour: Ints, num_cells: int
) -> Any:
    """Builds a `pyvista.UnstructuredGrid` with the cells in their order; see `PolyMesh` for the arguments."""
    size = np.diff(offsets)
    face = np.concatenate([np.arange(len(owner)), np.arange(len(neighbour))])
    cell = np.concatenate([owner, neighbour])
    order = np.lexsort((face, size[face], cell))  # triangles first
    is_inward = order >= len(owner)
    face, cell = face[order], cell[order]
    first = np.searchsorted(cell, np.arange(num_cells + 1))
    triangles, quads = (np.bincount(cell, size[face] == n, num_cells).astype(np.int64) for n in (3, 4))
    is_simple = triangles + quads == np.diff(first)
    types, built = np.full(num_cells, _POLYHEDRON, np.uint8), {}
    for kind, (num_triangles, num_quads) in _SHAPES.items():
        cells = np.flatnonzero(is_simple & (triangles == num_triangles) & (quads == num_quads))
        rows = first[cells, None] + np.arange(num_triangles + num_quads)
        three = _outward(corners, offsets, face, is_inward, rows[:, :num_triangles], 3)
        four = _outward(corners, offsets, face, is_inward, rows[:, num_triangles:], 4)
        is_valid = _is_shape(kind, three, four)
        cells = cells[is_valid]
        types[cells] = kind
        built[kind] = cells, _vertices(kind, three[is_valid], four[is_valid])
    rest = np.flatnonzero(types == _POLYHEDRON)
    stream, lengths = _streams(corners, offsets, face, is_inward, first, rest)
    length = np.zeros(num_cells, np.int64)
    length[rest] = lengths
    for cells, vertices in built.values():
        length[cells] = vertices.shape[1]
    start = np.concatenate([[0], np.cumsum(length + 1)])
    flat = np.empty(start[-1], np.int64)
    flat[start[:-1]] = length
    for cells, vertices in built.values():
        flat[start[cells, None] + 1 + np.arange(vertices.shape[1])] = vertices
    if len(rest):
        flat[np.repeat(start[rest] + 1 - np.cumsum(lengths) + lengths, lengths) + np.arange(len(stream))] = stream
    return import_pyvista().UnstructuredGrid(flat, types, points)


def _outward(corners: Ints, offsets: Ints, face: Ints, is_inward: NDArray[np.bool_], rows: Ints, size: int) -> Ints:
    """Returns the corners [N, F, size] of faces, counter-clockwise seen from outside the cell."""
    step = np.arange(size)
    column = np.where(is_inward[rows][..., None], size - 1 - step, step)
    return corners[offsets[:-1][face[rows]][..., None] + column]


def _is_shape(kind: int, three: Ints, four: Ints) -> NDArray[np.bool_]:
    """Returns which cells have as many distinct corners as the shape, each in as many faces."""
    if not len(three):
        return np.zeros(0, bool)
    both = np.sort(np.concatenate([three.reshape(len(three), -1), four.reshape(len(four), -1)], axis=1), axis=1)
    num_distinct = (np.diff(both, axis=1) > 0).sum(axis=1) + 1
    expected = {_TETRA: 4, _PYRAMID: 5, _WEDGE: 6, _HEXAHEDRON: 8}[kind]
    is_even = num_distinct == expected
    if kind == _PYRAMID:  # the base and the apex have no corner in common
        return is_even & ((four[:, 0, :, None] == three[:, 0, None, :]).sum(axis=(1, 2)) == 2)
    is_even &= (both[:, ::3] == both[:, 2::3]).all(axis=1)
    if kind == _WEDGE:
        is_even &= ~(three[:, 0, :, None] == three[:, 1, None, :]).any(axis=(1, 2))
    return is_even


def _vertices(kind: int, three: Ints, four: Ints) -> Ints:
    """Returns the corners in VTK's order. Sums of numbers of corners tell the one that is not in the base."""
    if kind == _TETRA:
        base = three[:, 0, ::-1]
        return np.concatenate([base, (three.sum(axis=(1, 2)) // 3 - base.sum(axis=1))[:, None]], axis=1)
    if kind == _PYRAMID:
        base = four[:, 0, ::-1]
        total = three.sum(axis=(1, 2)) + four.sum(axis=(1, 2))
        return np.concatenate([base, ((total - 3 * base.sum(axis=1)) // 4)[:, None]], axis=1)
    base = three[:, 0] if kind == _WEDGE else four[:, 0, ::-1]
    beside = [faces for faces in (three, four) if faces.shape[1]]
    opposite = np.empty_like(base)
    for column in range(base.shape[1]):
        vertex = base[:, column, None, None]
        # A corner has three neighbours, each in two of its faces.
        around = sum(
            ((faces == vertex) * (np.roll(faces, 1, axis=2) + np.roll(faces, -1, axis=2))).sum(axis=(1, 2))
            for faces in beside
        )
        opposite[:, column] = around // 2 - np.roll(base, 1, axis=1)[:, column] - np.roll(base, -1, axis=1)[:, column]
    return np.concatenate([base, opposite], axis=1)


def _streams(
    corners: Ints, offsets: Ints, face: Ints, is_inward: NDArray[np.bool_], first: Ints, cells: Ints
) -> tuple[Ints, Ints]:
    """Returns the face streams of polyhedra, one after another, and the length of each."""
    number = np.diff(first)[cells]
    ends = np.cumsum(number)
    rows = np.repeat(first[cells] - ends + number, number) + np.arange(ends[-1] if len(ends) else 0)
    size = np.diff(offsets)[face[rows]]
    of_cell = np.repeat(np.arange(len(cells)), number)
    lengths = 1 + np.bincount(of_cell, size + 1, len(cells)).astype(np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)])
    stream = np.empty(start[-1], np.int64)
    stream[start[:-1]] = number
    # Faces follow one another, with the number of faces before those of each cell.
    place = np.cumsum(size + 1) - size - 1 + of_cell + 1
    stream[place] = size
    step = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    step_in_face = np.where(np.repeat(is_inward[rows], size), np.repeat(size, size) - 1 - step, step)
    stream[np.repeat(place + 1, size) + step] = corners[np.repeat(offsets[:-1][face[rows]], size) + step_in_face]
    return stream, lengths
