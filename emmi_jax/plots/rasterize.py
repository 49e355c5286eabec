"""Rasterisation of triangles: which one shows at each pixel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_CANDIDATES_AT_ONCE = 500_000
# In barycentric coordinates: pixels on an edge belong to both neighbours rather than to neither.
_EDGE_TOLERANCE = 1e-9


class Window(NamedTuple):
    """A rectangle of the picture plane, in the unit of the positions."""

    left: float
    right: float
    bottom: float
    top: float

    @property
    def width(self) -> float:
        """Length along the picture's horizontal."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Length along the picture's vertical."""
        return self.top - self.bottom

    def num_pixels(self, longer_side: int) -> tuple[int, int]:
        """Returns the rows and columns of nearly square pixels, given the number along the longer side."""
        pixel = max(self.width, self.height) / longer_side
        return max(1, round(self.height / pixel)), max(1, round(self.width / pixel))


def rasterize(triangles: NDArray[np.floating[Any]], window: Window, *, num_pixels: int) -> NDArray[np.int64]:
    """Finds the triangle that a viewer sees at each pixel, in parallel projection.

    Args:
        triangles: Corners [T, 3, 3] in the viewer's frame: to the right, upwards, towards the viewer.
        window: What the picture shows.
        num_pixels: Pixels along its longer side.

    Returns:
        Indices of triangles [height, width], the bottom row first; -1 where there is none.
    """
    num_rows, num_columns = window.num_pixels(num_pixels)
    pixel_size = np.array([window.width / num_columns, window.height / num_rows])
    # In this frame the middles of the pixels are whole numbers.
    flat = (np.asarray(triangles[:, :, :2], np.float64) - [window.left, window.bottom]) / pixel_size - 0.5
    first = np.clip(np.ceil(flat.min(axis=1)), 0, None).astype(np.int64)
    last = np.minimum(np.floor(flat.max(axis=1)), [num_columns - 1, num_rows - 1]).astype(np.int64)
    size = np.maximum(last - first + 1, 0)
    candidates = size.prod(axis=1)
    shown = np.flatnonzero(candidates)
    depth = np.full(num_rows * num_columns, -np.inf)
    index = np.full(num_rows * num_columns, -1, dtype=np.int64)
    batch = np.cumsum(candidates[shown]) // _CANDIDATES_AT_ONCE
    for part in np.split(shown, np.flatnonzero(np.diff(batch)) + 1) if len(shown) else []:
        owner = np.repeat(part, candidates[part])
        start = np.repeat(np.cumsum(candidates[part]) - candidates[part], candidates[part])
        row, column = np.divmod(np.arange(len(owner)) - start, size[owner, 0])
        at = np.stack([column + first[owner, 0], row + first[owner, 1]], axis=1)
        weights, inside = _barycentric(flat[owner], at)
        owner, at, weights = owner[inside], at[inside], weights[inside]
        here = np.einsum("nc,nc->n", weights, triangles[owner, :, 2])
        where = at[:, 1] * num_columns + at[:, 0]
        before = depth.copy()
        np.maximum.at(depth, where, here)
        nearest = (here == depth[where]) & (here > before[where])
        index[where[nearest]] = owner[nearest]
    return index.reshape(num_rows, num_columns)


def _barycentric(
    triangles: NDArray[np.float64], at: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Weights [N, 3] of the corners of flat triangles [N, 3, 2] at positions [N, 2], and whether these are inside."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    ab, ac, ap = b - a, c - a, at - a
    twice_area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    safe = np.where(twice_area == 0, 1.0, twice_area)
    to_b = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / safe
    to_c = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / safe
    weights = np.stack([1 - to_b - to_c, to_b, to_c], axis=1)
    return weights, (twice_area != 0) & (weights >= -_EDGE_TOLERANCE).all(axis=1)
