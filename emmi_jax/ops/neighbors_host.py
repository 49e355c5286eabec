"""Radius and k-nearest neighbours of supernodes in NumPy with SciPy's KD-tree, for input pipelines.

`neighbors` says what is found, to the last bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from emmi_jax.ops.neighbors import (
    LARGEST,
    Neighbors,
    check_arrays,
    check_k,
    check_radius,
    in_single,
    largest_squared,
    squared_distance,
)

_CHUNK_PAIRS = 2**21  # candidate pairs in memory at a time
_FIRST_POINTS = 2**8  # points that are tried first
_NUM_COUNTED = 256  # supernodes whose candidates are counted to estimate those of all


def radius_neighbors_host(
    points: npt.ArrayLike, supernode_idx: npt.ArrayLike, *, radius: float, max_degree: int = 32
) -> Neighbors:
    """Finds what `radius_neighbors` finds, from the same arguments."""
    check_radius(radius, max_degree)
    return _per_sample(functools.partial(_radius, radius=radius), points, supernode_idx, slots=max_degree)


def nearest_neighbors_host(points: npt.ArrayLike, supernode_idx: npt.ArrayLike, *, k: int) -> Neighbors:
    """Finds what `nearest_neighbors` finds, from the same arguments."""
    check_k(k)
    return _per_sample(_nearest, points, supernode_idx, slots=k)


def _per_sample(
    search: Callable[..., Iterator[tuple[Any, Any, Any]]], points: Any, supernode_idx: Any, *, slots: int
) -> Neighbors:
    """Fills in what search(points, centers, slots) yields: rows of centers, their slots, and the points in these."""
    points, supernode_idx = np.asarray(points), np.asarray(supernode_idx)
    check_arrays(points, supernode_idx)
    idx: Any = np.zeros((*supernode_idx.shape, slots), np.int32)
    mask: Any = np.zeros(idx.shape, np.bool_)
    with np.errstate(over="ignore"):
        for sample in np.ndindex(points.shape[:-2]):
            coordinates, centers = in_single(points[sample]), supernode_idx[sample]
            is_present = np.isfinite(coordinates).all(axis=1)
            present = np.flatnonzero(is_present)
            rows = np.flatnonzero((centers >= 0) & (centers < len(coordinates)))
            rows = rows[is_present[centers[rows]]]
            if rows.size:
                for row, slot, col in search(coordinates[present], coordinates[centers[rows]], slots):
                    idx[sample][rows[row], slot] = present[col]
                    mask[sample][rows[row], slot] = True
    return Neighbors(idx, mask)


def _radius(points: Any, centers: Any, slots: int, *, radius: float) -> Iterator[tuple[Any, Any, Any]]:
    from scipy.spatial import cKDTree

    limit = largest_squared(radius, points.shape[1])
    filled = np.zeros(len(centers), np.int64)
    start, stop = 0, _FIRST_POINTS
    # Later points are only searched for the supernodes that have slots left, so a large radius stays affordable.
    while start < len(points) and (filled < slots).any():
        left = np.flatnonzero(filled < slots)
        # Built faster, and as good for the one search that it is built for.
        tree = cKDTree(points[start:stop], balanced_tree=False, compact_nodes=False)
        for row, col in _pairs_within_radius(tree, centers[left], limit):
            slot = filled[left[row]] + _rank_in_run(row)
            is_free = slot < slots
            yield left[row[is_free]], slot[is_free], start + col[is_free]
            filled[left] += np.bincount(row, minlength=len(left))
        start, stop = stop, 4 * stop


def _nearest(points: Any, centers: Any, slots: int) -> Iterator[tuple[Any, Any, Any]]:
    from scipy.spatial import cKDTree

    # A point after as many copies of itself as there are slots is in none of them: thousands of copies cost no more.
    order = np.lexsort(points.T)
    is_new = np.append(True, (points[order[1:]] != points[order[:-1]]).any(axis=1))
    kept = np.sort(order[_rank_in_run(np.cumsum(is_new)) < slots])
    points = points[kept]
    tree = cKDTree(points)
    _, near = tree.query(centers, k=range(1, min(slots, len(points)) + 1))
    # Any k points bound the distance of the k nearest; among those within that bound are all ties.
    limits = squared_distance(np.moveaxis(points[near], 2, 0), centers.T[:, :, None], np.maximum).max(axis=1)
    for row, col, d2 in _pairs_within(tree, centers, np.minimum(limits, LARGEST)):
        order = np.lexsort((col, d2, row))
        slot = _rank_in_run(row)
        is_free = slot < slots
        yield row[is_free], slot[is_free], kept[col[order]][is_free]


def _pairs_within_radius(tree: Any, centers: Any, limit: np.float32) -> Iterator[tuple[Any, Any]]:
    """Yields what `_pairs_within` does for one limit, without lists of Python numbers."""
    from scipy.spatial import cKDTree

    reach = float(_reach(tree, limit))
    some = centers[:: -(-len(centers) // _NUM_COUNTED)]
    expected = len(centers) * tree.query_ball_point(some, reach, return_length=True).mean()
    size = max(int(len(centers) * _CHUNK_PAIRS / max(expected, 1)), 1)
    for start in range(0, len(centers), size):
        others = cKDTree(centers[start : start + size], balanced_tree=False, compact_nodes=False)
        pairs = others.sparse_distance_matrix(tree, reach, output_type="ndarray")
        row, col = start + pairs["i"], pairs["j"]
        is_within = squared_distance(tree.data[col].astype(np.float32).T, centers[row].T, np.maximum) <= limit
        row, col = row[is_within], col[is_within]
        order = np.argsort(row * tree.n + col)
        yield row[order], col[order]


def _reach(tree: Any, limits: Any) -> Any:
    """Returns how far a tree must search: it measures in float64, so as far as the rounding of a float32 d² may go."""
    return np.sqrt(np.float64(limits)) * (1 + (tree.m + 4) * float(np.finfo(np.float32).eps))


def _pairs_within(tree: Any, centers: Any, limits: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yields, in chunks of whole rows, all (row, point, d²) with d² <= limits[row], by ascending row and point."""
    reach = _reach(tree, limits)
    counts = tree.query_ball_point(centers, reach, return_length=True)
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // _CHUNK_PAIRS)) + 1
    for rows in np.split(np.arange(len(centers)), cuts):
        row = rows.repeat(counts[rows])
        members = tree.query_ball_point(centers[rows], reach[rows], return_sorted=True)
        col = np.fromiter(itertools.chain.from_iterable(members), np.int64, len(row))
        d2 = squared_distance(tree.data[col].astype(np.float32).T, centers[row].T, np.maximum)
        is_within = d2 <= limits[row]
        yield row[is_within], col[is_within], d2[is_within]


def _rank_in_run(sorted_values: Any) -> Any:
    return np.arange(len(sorted_values)) - np.searchsorted(sorted_values, sorted_values)
