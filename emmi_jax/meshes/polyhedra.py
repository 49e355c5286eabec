"""Centroids and volumes of cells as OpenFOAM's `primitiveMesh` defines them, whatever the number of their faces.

A face is cut into triangles around the mean of its corners. Its vector is the sum of theirs; its centre is the mean of
their centres, weighted by area. A cell is cut into pyramids from its faces to the mean of their centres. For planar
faces this is exact. Arrays are lists by axis, with corners or faces first, so that sums run along rows.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Axes: TypeAlias = list[Floats]

_ROWS = 1 << 11
"""Cells or faces at once, so that they stay in the cache."""
_THREADS = min(8, os.cpu_count() or 1)
_TINY = 1e-300


def face_geometry(points: Floats, corners: Ints, offsets: Ints) -> tuple[Floats, Floats]:
    """Returns centres and normals times areas of polygons, [N, 3] each.

    Args:
        points: Positions [V, 3].
        corners: Corners of all polygons among the points.
        offsets: Where each polygon starts among them, and the end, [N + 1].
    """
    size = np.diff(offsets)
    centre, vector = np.empty((len(size), 3)), np.empty((len(size), 3))
    for number in np.unique(size):
        rows = np.flatnonzero(size == number)
        for start in range(0, len(rows), 4 * _ROWS):
            part = rows[start : start + 4 * _ROWS]
            corner = corners[offsets[part] + np.arange(number)[:, None]]
            origin = points[corner[0]]  # subtracted, to keep digits far from the origin
            axes = [axis - first for axis, first in zip(_axes(points, corner), origin.T, strict=True)]
            found = _fan(axes)
            centre[part], vector[part] = origin + np.stack(found[0], axis=1), np.stack(found[1], axis=1)
    return centre, vector


def shape_geometry(points: Floats, corners: Ints, faces: list[list[int]]) -> tuple[Floats, Floats]:
    """Returns centroids [N, 3] and volumes [N] of cells of one shape.

    Args:
        points: Positions [V, 3].
        corners: Corners [N, K] of the cells among the points.
        faces: The corners of each face among those of its cell; all turn alike.
    """
    centre, volume = np.empty((len(corners), 3)), np.empty(len(corners))
    tables = [np.array([face for face in faces if len(face) == size]) for size in sorted(set(map(len, faces)))]

    def measure(start: int) -> None:
        rows = slice(start, start + _ROWS)
        origin = points[corners[rows, 0]]
        axes = [axis - first for axis, first in zip(_axes(points, corners[rows].T), origin.T, strict=True)]
        found = [_fan([axis[table.T] for axis in axes]) for table in tables]
        centres, vectors = (
            [np.concatenate([of_size[which][i] for of_size in found]) for i in range(3)] for which in (0, 1)
        )
        guess = [axis.mean(axis=0) for axis in centres]
        offset = [axis - middle for axis, middle in zip(centres, guess, strict=True)]
        pyramid = offset[0] * vectors[0] + offset[1] * vectors[1] + offset[2] * vectors[2]
        total = pyramid.sum(axis=0)
        divisor = np.where(np.abs(total) > _TINY, total, np.inf)
        for i in range(3):
            centre[rows, i] = origin[:, i] + guess[i] + 0.75 * (offset[i] * pyramid).sum(axis=0) / divisor
        volume[rows] = np.abs(total) / 3

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(measure, range(0, len(corners), _ROWS)))
    return centre, volume


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


def _axes(points: Floats, corner: Ints) -> Axes:
    gathered = points[corner]
    return [np.ascontiguousarray(gathered[..., i]) for i in range(3)]


def _fan(xyz: Axes) -> tuple[Axes, Axes]:
    """Returns centres and vectors [...] by axis of polygons, from their corners [K, ...] by axis."""
    mean = [axis.mean(axis=0) for axis in xyz]
    spokes = [middle - axis for axis, middle in zip(xyz, mean, strict=True)]
    total, moment = np.zeros_like(mean[0]), [np.zeros_like(middle) for middle in mean]
    vector = [np.zeros_like(middle) for middle in mean]
    num_corners = len(spokes[0])
    for corner in range(num_corners):
        here, after = ([axis[k % num_corners] for axis in spokes] for k in (corner, corner + 1))
        normal = [here[i] * after[j] - here[j] * after[i] for i, j in ((1, 2), (2, 0), (0, 1))]
        area = np.sqrt(normal[0] * normal[0] + normal[1] * normal[1] + normal[2] * normal[2])
        total += area
        for i in range(3):
            vector[i] += normal[i]
            moment[i] += area * (here[i] + after[i])
    share = 1 / np.where(total > 0, 3 * total, np.inf)
    return [mean[i] - moment[i] * share for i in range(3)], [0.5 * axis for axis in vector]


def _sums(values: Floats, cell: Ints, num_cells: int) -> Floats:
    return np.stack([np.bincount(cell, values[:, i], num_cells) for i in range(3)], axis=1)
