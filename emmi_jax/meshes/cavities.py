"""Parts of a surface that lie inside others, and so are the walls of cavities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

COPY = 1e-5
"""Parts that differ less, as a share of their size, are copies of one another."""
_PROBES = 3


def is_inside_oddly(points: Floats, connectivity: Ints, offsets: Ints, part: Ints, is_closed: Bools) -> Bools:
    """Returns which parts lie inside an odd number of closed ones, by rays along x from points on them."""
    cell = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    low, high = (np.full((len(is_closed), 3), bound) for bound in (np.inf, -np.inf))
    np.minimum.at(low, part[cell], points[connectivity])
    np.maximum.at(high, part[cell], points[connectivity])
    by_part = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[by_part], np.arange(len(is_closed) + 1))
    depth = np.zeros(len(is_closed), np.int64)
    for outer in np.flatnonzero(is_closed):
        # There is a wall around a cavity on all sides, but none around a copy of the part or a body on its floor.
        wall = COPY * (high[outer] - low[outer]).max()
        within = (low > low[outer] + wall).all(axis=1) & (high < high[outer] - wall).all(axis=1)
        if not within.any():
            continue
        triangles = points[fans(connectivity, offsets, by_part[bounds[outer] : bounds[outer + 1]])[0]]
        around = triangles[:, :, 1:].min(axis=1), triangles[:, :, 1:].max(axis=1)
        for inner in np.flatnonzero(within):
            cells = by_part[bounds[inner] : bounds[inner + 1]][:_PROBES]
            # Weights without a pattern keep rays off edges.
            probes = np.einsum(
                "k,nkd->nd", [0.371, 0.417, 0.212], points[fans(connectivity, offsets, cells)[0][:_PROBES]]
            )
            depth[inner] += 2 * sum(_is_odd(probe, triangles, *around) for probe in probes) > len(probes)
    return depth % 2 == 1


def fans(connectivity: Ints, offsets: Ints, cells: Ints) -> tuple[Ints, Ints]:
    """Cuts polygons into triangles [T, 3] around their first corners, and returns which of `cells` each came from."""
    number = np.maximum(np.diff(offsets)[cells] - 2, 0)
    first = np.repeat(offsets[cells], number)
    step = np.arange(len(first)) - np.repeat(np.cumsum(number) - number, number)
    triangles = np.stack([connectivity[first], connectivity[first + step + 1], connectivity[first + step + 2]], axis=1)
    return triangles, np.repeat(np.arange(len(cells)), number)


def _is_odd(probe: Floats, triangles: Floats, low: Floats, high: Floats) -> bool:
    near = triangles[((low <= probe[1:]) & (high >= probe[1:])).all(axis=1)] - probe
    y, z = near[:, :, 1], near[:, :, 2]
    weight = y[:, [1, 2, 0]] * z[:, [2, 0, 1]] - z[:, [1, 2, 0]] * y[:, [2, 0, 1]]
    is_hit = (weight > 0).all(axis=1) | (weight < 0).all(axis=1)
    x: Any = (weight * near[:, :, 0])[is_hit].sum(axis=1) / weight[is_hit].sum(axis=1)
    return bool(np.count_nonzero(x > 0) % 2)
