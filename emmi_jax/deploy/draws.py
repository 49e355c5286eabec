"""Methods of drawing points (`uniform`, `weighted`, `farthest`), and the draw of a case that is to be predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

GEOMETRY_BRANCH = "surface"
"""Branch whose points describe the geometry where nothing else does."""


class Points(NamedTuple):
    """Points to draw anchors from: positions [N, n], and the cell sizes [N] that weight the draw.

    Features are [N, C] in the order of `ExportedSurrogate.features`, or an array for each of their names.
    """

    position: Array
    cell_size: Array | None = None
    features: Any = None


class Geometry(NamedTuple):
    """Point clouds and the supernodes among their points; a pytree.

    A model takes a batch of them. Clouds of different sizes share a batch: pad the points with NaN, and the supernodes
    with False in `mask`. `Surrogate.encode` takes one without the axis of the batch, in physical units.

    Attributes:
        position: Coordinates [B, P, n] in the unit of the pooling radius. A point with a coordinate that is not finite
            is absent.
        supernode_idx: Indices [B, M] of the supernodes among the points.
        neighbors: Points around each supernode, idx and mask [B, M, K]; searched for on the device if None. An exported
            model always searches, so it refuses them.
        features: Point features [B, P, F], if the pooling takes some; for `Surrogate.encode` as those of `Points`.
        mask: Booleans [B, M], True = real supernode; None means that all are.
    """

    position: Any
    supernode_idx: Any
    neighbors: Any = None
    features: Any = None
    mask: Any = None


class Sampling(NamedTuple):
    """Numbers of points of a case that the model sees, and their draws."""

    num_anchors: int
    num_geometry_points: int
    num_supernodes: int
    method: str
    supernode_method: str


def draw_anchors(rng: np.random.Generator, branch: str, available: Mapping[str, Points], sampling: Sampling) -> Points:
    """Returns drawn anchors of a branch.

    Raises:
        ValueError: There are no points to draw from, or they have no cell sizes to weight them.
    """
    points = available.get(branch)
    if points is None or not len(points.position):
        raise ValueError(f"no anchors for the branch {branch!r}: give them, or points to draw them from")
    if sampling.method == "weighted" and points.cell_size is None:
        raise ValueError("anchors are drawn by cell size, but the points have no cell sizes: pass the anchors instead")
    num_anchors = min(sampling.num_anchors, len(points.position))
    idx = draw(rng, sampling.method, points, num_anchors)
    return Points(np.asarray(points.position[idx]), features=rows_of(points.features, idx))


def draw_geometry(rng: np.random.Generator, points: Points, sampling: Sampling) -> Geometry:
    """Draws points of the geometry and supernodes among them, or as many as there are.

    Raises:
        ValueError: There are no points.
    """
    if not len(points.position):
        raise ValueError("the geometry has no points: expected at least one")
    num_points = min(sampling.num_geometry_points, len(points.position))
    idx = draw(rng, "uniform", points, num_points)
    position, features = points.position[idx], rows_of(points.features, idx)
    num_supernodes, method = min(sampling.num_supernodes, num_points), sampling.supernode_method
    if method == "uniform":
        # Drawn points are in no order, so the first are as good as any.
        return Geometry(position, np.arange(num_supernodes), features=features)
    return Geometry(position, draw(rng, method, Points(position), num_supernodes), features=features)


def as_points(what: str, points: Any) -> Points:
    """Returns positions, or an object with `position` and perhaps the rest, as `Points`; refuses all else."""
    position = getattr(points, "position", points)
    if not isinstance(getattr(position, "dtype", None), np.dtype) or len(position.shape) != 2:
        raise ValueError(f"the points of {what!r} must be an array [points, axes], got {type(position).__name__}")
    check_unmasked(f"the points of {what!r}", position)
    return Points(position, getattr(points, "cell_size", None), getattr(points, "features", None))


def rows_of(features: Any, rows: slice | NDArray[np.int64]) -> Any:
    """Returns the features of some points, given as an array or by name; None if there are none."""
    if isinstance(features, Mapping):
        return {name: array[rows] for name, array in features.items()}
    return None if features is None else features[rows]


def check_unmasked(what: str, array: Any) -> None:
    """Refuses a masked array, whose mask NumPy would drop."""
    if np.ma.is_masked(array):
        raise ValueError(
            f"{what} are masked: leave out the {np.count_nonzero(np.ma.getmaskarray(array))} masked values"
        )


def draw(rng: np.random.Generator, method: str, points: Points, num_points: int) -> NDArray[np.int64]:
    """Draws points without replacement: `uniform`, `weighted` by cell size, or `farthest` from one another."""
    num_all = len(points.position)
    if method == "weighted":
        return draw_weighted(rng, np.asarray(points.cell_size, np.float64), num_all, num_points)
    if method == "farthest":
        return draw_farthest(rng, points.position, num_points)
    return rng.choice(num_all, num_points, replace=False)


def draw_weighted(
    rng: np.random.Generator, weights: NDArray[np.float64], num_all: int, num_points: int
) -> NDArray[np.int64]:
    """Draws points one after another, each with a probability proportional to its weight among those left.

    Raises:
        ValueError: The weights are unusable, or too few points have one.
    """
    if weights.shape != (num_all,) or not np.all(np.isfinite(weights)) or np.any(weights < 0):
        extremes = f"{weights.min():g} … {weights.max():g}" if weights.size else "empty"
        raise ValueError(f"expected {num_all} finite weights >= 0, got shape {weights.shape}: {extremes}")
    if np.count_nonzero(weights) < num_points:
        raise ValueError(f"cannot draw {num_points} points: {np.count_nonzero(weights)} of {num_all} have a weight")
    # The order of exponential waiting times with these rates is that of successive draws with these weights.
    with np.errstate(divide="ignore"):
        waiting = rng.standard_exponential(num_all) / weights
    idx = np.argpartition(waiting, num_points)[:num_points] if num_points < num_all else np.arange(num_all)
    return idx[np.argsort(waiting[idx])]


def draw_farthest(rng: np.random.Generator, position: Array, num_points: int) -> NDArray[np.int64]:
    """Draws the first point at random, and each next one as far as possible from those drawn."""
    if position.dtype.kind != "f" or position.dtype.itemsize < 4:
        position = position.astype(np.float64)  # small integers overflow, and half precision has few digits
    idx = np.empty(num_points, np.int64)
    nearest = np.full(len(position), np.inf)
    for i in range(num_points):
        idx[i] = np.argmax(nearest) if i else rng.integers(len(position))
        np.minimum(nearest, np.square(position - position[idx[i]]).sum(axis=1), out=nearest)
        # Below every distance, so that no point is drawn twice where points coincide.
        nearest[idx[i]] = -1.0
    return idx
