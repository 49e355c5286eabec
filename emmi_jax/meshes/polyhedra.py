"""Centroids and volumes of cells as OpenFOAM's `primitiveMesh` defines them, whatever the number of their faces.

A face is cut into triangles around the mean of its corners. Its vector is the sum of theirs; its centre is the mean of
their centres, weighted by area. A cell is cut into pyramids from its faces to the mean of their centres. For planar
faces this is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
        for part in np.array_split(rows, len(rows) // _ROWS + 1):
            of_face = points[corners[offsets[part, None] + np.arange(number)]]
            centre[part], vector[part] = (np.stack(xyz, axis=1) for xyz in fan(list(np.moveaxis(of_face, 2, 0))))
    return centre, vector


_ROWS = 1 << 13
"""Faces at once, so that they stay in the cache."""


def fan(xyz: list[Floats]) -> tuple[list[Floats], list[Floats]]:
    """Returns centres and vectors of polygons of one size.

    Args:
        xyz: Their corners [N, K] by axis.

    Returns:
        Centres and vectors [N] by axis.
    """
    number = xyz[0].shape[1]
    first = [axis[:, 0] for axis in xyz]
    a = [axis - axis[:, :1] for axis in xyz]  # relative, to keep digits far from the origin
    if number == 3:
        (x1, x2), (y1, y2), (z1, z2) = ((axis[:, 1], axis[:, 2]) for axis in a)
        vector = [0.5 * (y1 * z2 - z1 * y2), 0.5 * (z1 * x2 - x1 * z2), 0.5 * (x1 * y2 - y1 * x2)]
        return [start + (axis[:, 1] + axis[:, 2]) / 3 for start, axis in zip(first, a, strict=True)], vector
    mean = [axis.mean(axis=1, keepdims=True) for axis in a]
    b = [np.roll(axis, -1, axis=1) for axis in a]
    (dx, dy, dz), (ex, ey, ez) = (
        [following - axis for axis, following in zip(a, b, strict=True)],
        [middle - axis for axis, middle in zip(a, mean, strict=True)],
    )
    n = [dy * ez - dz * ey, dz * ex - dx * ez, dx * ey - dy * ex]
    area = np.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2)
    total = area.sum(axis=1)
    weight = area / np.where(total > 0, total, 1)[:, None]
    centre = []
    for start, axis, following, middle in zip(first, a, b, mean, strict=True):
        inside = ((axis + following) * weight).sum(axis=1) / 3 + middle[:, 0] / 3
        centre.append(start + np.where(total > 0, inside, middle[:, 0]))
    return centre, [0.5 * axis.sum(axis=1) for axis in n]


def poly_geometry(
    points: Floats, corners: Ints, offsets: Ints, owner: Ints, neighbour: Ints, num_cells: int
) -> tuple[Floats, Floats]:
    """Returns centroids [N, 3] and volumes [N] of cells from faces that point from the owner to the neighbour."""
    centre, vector = face_geometry(points, corners, offsets)
    face = np.concatenate([np.arange(len(owner)), np.arange(len(neighbour))])
    cell = np.concatenate([owner, neighbour])
    vector = np.concatenate([vector, -vector[: len(neighbour)]])
    return cell_geometry(centre[face], vector, cell, num_cells)


def cell_geometry(centre: Floats, vector: Floats, cell: Ints, num_cells: int) -> tuple[Floats, Floats]:
    """Returns centroids [N, 3] and volumes [N] of cells.

    Args:
        centre: Centres [E, 3] of the faces of all cells.
        vector: Their normals times areas, out of their cell; those of a cell that are not alike are taken so.
        cell: The cell [E] of each.
        num_cells: How many there are.
    """
    number = np.maximum(np.bincount(cell, minlength=num_cells), 1)
    guess = _sums(centre, cell, num_cells) / number[:, None]
    offset = centre - guess[cell]
    pyramid = (vector * offset).sum(axis=1)
    # The vectors of a closed cell sum to zero if they all point out, or all in.
    size = np.bincount(cell, np.abs(vector).sum(axis=1), num_cells)
    is_mixed = np.abs(_sums(vector, cell, num_cells)).sum(axis=1) > 1e-6 * size
    if is_mixed.any():
        pyramid = np.where(is_mixed[cell], np.abs(pyramid), pyramid)
    volume = np.bincount(cell, pyramid, num_cells)
    moment = _sums(0.75 * offset * pyramid[:, None], cell, num_cells)
    is_solid = np.abs(volume) > 1e-300
    inside = moment / np.where(is_solid, volume, 1)[:, None]
    return guess + np.where(is_solid[:, None], inside, 0), np.abs(volume) / 3


def _sums(values: Floats, cell: Ints, num_cells: int) -> Floats:
    return np.stack([np.bincount(cell, values[:, i], num_cells) for i in range(3)], axis=1)
