"""The formulas of centroids and volumes of polygons, hexahedra and polyhedra, as in OpenFOAM's `primitiveMesh`.

A face is cut into triangles around the mean of its corners. Its vector is the sum of theirs; its centre is the mean of
their centres, weighted by area. A cell is cut into pyramids from its faces to the mean of their centres. For planar
faces this is exact. Inside, arrays have the axis first, then corners or faces, so that sums run along rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_ROWS = 2560
"""Cells or faces at once, so that they stay in the cache, and BLAS needs no threads."""
_THREADS = min(8, os.cpu_count() or 1)
_FEW = 32
_QUAD_TERMS = np.array([[0.25, 0.25, 0.25, 0.25], [-1, -1, 1, 1], [-1, 1, 1, -1], [1, -1, 1, -1]])
"""The mean of four corners, twice the vectors between the middles of opposite sides, and what parallelograms lack."""
_BOX_ERRORS = np.array(
    [[1, -1, 1, -1, 0, 0, 0, 0], [1, 0, 0, -1, -1, 0, 0, 1], [1, -1, 0, 0, -1, 1, 0, 0], [2, -1, 0, -1, -1, 0, 1, 0]],
    np.float64,
)
"""Factors with which the corners of a parallelepiped sum to zero."""
_TINY, _ROUNDING = 1e-300, 8 * np.finfo(np.float64).eps


def face_geometry(points: Floats, corners: Ints, offsets: Ints) -> tuple[Floats, Floats]:
    """Returns centres and normals times areas of polygons, [N, 3] each.

    Args:
        points: Positions [V, 3].
        corners: Corners of all polygons among the points.
        offsets: Where each polygon starts among them, and the end, [N + 1].
    """
    size = np.diff(offsets)
    centre, vector = np.empty((len(size), 3)), np.empty((len(size), 3))
    columns = np.ascontiguousarray(points.T)
    for number in np.unique(size):
        rows = np.flatnonzero(size == number)

        def measure(start: int, rows: Ints = rows, number: int = number) -> None:
            part = rows[start : start + 4 * _ROWS]
            origin, relative = _relative(columns, corners[offsets[part] + np.arange(number)[:, None]])
            middle, normal = _polygons(relative)
            centre[part], vector[part] = (middle + origin).T, normal.T

        _in_blocks(measure, len(rows), 4 * _ROWS)
    return centre, vector


def shape_geometry(points: Floats, corners: Ints, faces: list[list[int]]) -> tuple[Floats, Floats]:
    """Returns centroids [N, 3] and volumes [N] of cells of one shape.

    Args:
        points: Positions [V, 3].
        corners: Corners [N, K] of the cells among the points.
        faces: The corners of each face among those of its cell; all turn alike.
    """
    centre, volume = np.empty((len(corners), 3)), np.empty(len(corners))
    are_hexahedra = corners.shape[1] == 8 and len(faces) == 6
    tables = [np.array([face for face in faces if len(face) == size]).T for size in sorted(set(map(len, faces)))]
    columns = np.ascontiguousarray(points.T)

    def measure(start: int) -> None:
        rows = slice(start, start + _ROWS)
        origin, relative = _relative(columns, np.ascontiguousarray(corners[rows].T))
        middle, volume[rows] = _hexahedra(origin, relative, tables) if are_hexahedra else _cells(relative, tables)
        centre[rows] = (middle + origin).T

    _in_blocks(measure, len(corners), _ROWS)
    return centre, volume


def _cells(corner: Floats, tables: list[Ints]) -> tuple[Floats, Floats]:
    """Returns centroids [3, N] and volumes [N] from corners [3, K, N], and those of the faces with as many corners."""
    parts = [_polygons(corner.take(table, axis=1)) for table in tables]
    offset, pyramid = parts[0] if len(parts) == 1 else (np.concatenate(of, axis=1) for of in zip(*parts, strict=True))
    guess = offset.mean(axis=1)
    offset -= guess[:, None]
    pyramid *= offset
    pyramids = pyramid[0]
    pyramids += pyramid[1]
    pyramids += pyramid[2]
    total = pyramids.sum(axis=0)
    offset *= pyramids
    guess += offset.sum(axis=1) * (0.75 / np.where(np.abs(total) > _TINY, total, np.inf))
    return guess, np.abs(total) / 3


def _hexahedra(origin: Floats, corner: Floats, tables: list[Ints]) -> tuple[Floats, Floats]:
    """Does as `_cells`; in most meshes nearly all hexahedra are boxes, and the first ones tell whether they are."""
    if 2 * np.count_nonzero(_is_warped(origin[:, :_FEW], few := corner[:, :, :_FEW])) > few.shape[2]:
        return _cells(corner, tables)
    a, b, c = corner[:, 1], corner[:, 3], corner[:, 4]
    middle, volume = 0.5 * (a + b + c), np.abs((a * _cross(b, c)).sum(axis=0))
    if len(warped := np.flatnonzero(_is_warped(origin, corner))):
        middle[:, warped], volume[warped] = _cells(corner[:, :, warped], tables)
    return middle, volume


def _is_warped(origin: Floats, corner: Floats) -> NDArray[np.bool_]:
    """Returns which hexahedra [3, 8, N] are no parallelepipeds; corners may differ by their rounding."""
    error = _BOX_ERRORS @ corner
    np.abs(error, out=error)
    return np.asarray(error.max(axis=(0, 1)) > _ROUNDING * (np.abs(origin).max() + np.abs(corner[:, 6]).max()))


def poly_geometry(
    points: Floats, corners: Ints, offsets: Ints, owner: Ints, neighbour: Ints, num_cells: int
) -> tuple[Floats, Floats]:
    """Returns centroids [N, 3] and volumes [N] of cells from faces that point from the owner to the neighbour."""
    centre, vector = face_geometry(points, corners, offsets)
    face = np.concatenate([np.arange(len(owner)), np.arange(len(neighbour))])
    vector = np.concatenate([vector, -vector[: len(neighbour)]])
    return cell_geometry(centre[face], vector, np.concatenate([owner, neighbour]), num_cells)


def cell_geometry(centre: Floats, vector: Floats, cell: Ints, num_cells: int) -> tuple[Floats, Floats]:
    """Returns centroids [N, 3] and volumes [N] of cells.

    Args:
        centre: Centres [E, 3] of the faces of all cells.
        vector: Their normals times areas. Those of a cell point all out or all in; else each is taken to point out.
        cell: The cell [E] of each.
        num_cells: How many there are.
    """
    number = np.maximum(np.bincount(cell, minlength=num_cells), 1)
    guess = _sums(centre, cell, num_cells) / number[:, None]
    offset = centre - guess[cell]
    pyramid = np.einsum("ni,ni->n", vector, offset)
    # The vectors of a closed cell sum to zero if they are alike.
    size = np.bincount(cell, np.abs(vector).sum(axis=1), num_cells)
    is_mixed = np.abs(_sums(vector, cell, num_cells)).sum(axis=1) > 1e-6 * size
    if is_mixed.any():
        pyramid = np.where(is_mixed[cell], np.abs(pyramid), pyramid)
    volume = np.bincount(cell, pyramid, num_cells)
    divisor = np.where(np.abs(volume) > _TINY, volume, np.inf)
    return guess + 0.75 * _sums(offset * pyramid[:, None], cell, num_cells) / divisor[:, None], np.abs(volume) / 3


def _in_blocks(measure: Callable[[int], None], num: int, size: int) -> None:
    def measure_some(first: int, step: int = size) -> None:
        for start in range(first, num, step):
            measure(start)

    if num <= size:
        measure_some(0)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda k: measure_some(k * size, _THREADS * size), range(_THREADS)))


def _relative(columns: Floats, corner: Ints) -> tuple[Floats, Floats]:
    """Returns the first corners [3, N], and corners [3, K, N] from them, which keep digits far from the origin."""
    relative = columns.take(corner, axis=1)
    origin = relative[:, 0].copy()
    relative -= origin[:, None]
    return origin, relative


def _polygons(corner: Floats) -> tuple[Floats, Floats]:
    """Returns centres and vectors [3, ...] of polygons, from their corners [3, K, ...]."""
    if (number := corner.shape[1]) == 4:
        return _quads(corner)
    ends = [corner[:, k] for k in range(number)]
    if number > 4:
        return _fan(ends)
    a, b, c = ends
    return (a + b + c) / 3, _cross(b - a, c - a) / 2


def _quads(corner: Floats) -> tuple[Floats, Floats]:
    """As a fan of four triangles that share terms: `across ± skew` is eight times the vectors of opposite ones."""
    terms = _QUAD_TERMS @ corner.reshape(3, 4, -1)  # faster than sums of corners
    centre, one, two, gap = (terms[:, k] for k in range(4))
    across, triangle = _cross(two, one), np.empty_like(gap)
    total, shares = np.zeros(gap.shape[1]), []
    for side in (one, two):
        skew = _cross(gap, side)
        before, after = (_lengths(combine(across, skew, out=triangle)) for combine in (np.subtract, np.add))
        total += before
        total += after
        shares.append(np.subtract(after, before, out=after))
    total *= 6
    total[total == 0] = np.inf
    centre += np.multiply(one, shares[0] / total, out=one)
    centre -= np.multiply(two, shares[1] / total, out=two)
    across *= 0.25
    shape = 3, *corner.shape[2:]
    return centre.reshape(shape), across.reshape(shape)


def _lengths(vector: Floats) -> Floats:
    """Returns lengths [N] of vectors [3, N], which it overwrites."""
    vector *= vector
    squares: Floats = vector[0] + vector[1]
    squares += vector[2]
    return np.sqrt(squares, out=squares)


def _fan(corner: list[Floats]) -> tuple[Floats, Floats]:
    mean = sum(corner[1:], start=corner[0]) / len(corner)
    spokes = [end - mean for end in corner]
    total, moment, vector = np.zeros_like(mean[0]), np.zeros_like(mean), np.zeros_like(mean)
    for here, after in zip(spokes, [*spokes[1:], spokes[0]], strict=True):
        normal = _cross(here, after)
        area = np.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2])
        total += area
        vector += normal
        moment += area * (here + after)
    return mean + moment / np.where(total > 0, 3 * total, np.inf), vector / 2


def _cross(a: Floats, b: Floats) -> Floats:
    product, term = np.empty_like(a), np.empty_like(a[0])
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        np.multiply(a[j], b[k], out=product[i])
        np.multiply(a[k], b[j], out=term)
        product[i] -= term
    return product


def _sums(values: Floats, cell: Ints, num_cells: int) -> Floats:
    return np.stack([np.bincount(cell, values[:, i], num_cells) for i in range(3)], axis=1)
