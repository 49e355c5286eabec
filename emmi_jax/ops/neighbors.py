"""Radius and k-nearest neighbours of supernodes, with static shapes, on the device and on the host.

Host and device return exactly the same neighbours of the same float32 coordinates. To the last bit:

- d² is the sum over the axes, first to last, of max((a - b)², 1.2e-38), each step rounded to float32. The floor is the
  smallest normal float32; only distances below 1e-14 notice it.
- A point is within the radius if d² <= radius², which is squared in float64 and then rounded to float32.
- Two points whose d² overflows float32, more than 1.8e19 apart, are not neighbours.
- A point with a coordinate that is not finite is absent: nobody's neighbour. A supernode that is absent, or whose index
  is not in 0 ... P - 1, has no neighbours. Either way serves as padding.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.typing import ArrayLike

_SMALLEST = np.float32(np.finfo(np.float32).tiny)
_LARGEST = np.float32(np.finfo(np.float32).max)
_GROUP = 32  # points in a group: the bits of a word
_BLOCK_WORDS = 2**20  # entries of the largest array while a block of supernodes is on the device
_BLOCK_PAIRS = 2**21  # candidate pairs that the host holds at a time
_FIRST_POINTS = 2**8  # points that the host tries first


class Neighbors(NamedTuple):
    """The neighbours of every supernode; on the host, NumPy's arrays.

    Attributes:
        idx: [..., M, K] int32, indices into the points of the same sample; 0 where masked.
        mask: [..., M, K] bool, True = a real neighbour; they come first.
    """

    idx: jax.Array
    mask: jax.Array


def radius_neighbors(points: ArrayLike, supernode_idx: ArrayLike, *, radius: float, max_degree: int = 32) -> Neighbors:
    """Finds the points within a radius of each supernode, on the device.

    A supernode is a point like any other: its own neighbour, unless the cap cuts it away. Memory grows with
    P + M * max_degree, never with P * M. A batch of points costs no more; `jax.vmap` costs as much for every sample.

    Args:
        points: [P, n] or [B, P, n], in the unit of the radius; compared in float32.
        supernode_idx: [M] or [B, M], indices into the points of the same sample.
        radius: a Python number; it is within itself.
        max_degree: K. Where more points are within the radius, those with the lowest indices stay, not the nearest.

    Returns:
        Neighbors of [..., M, K], by ascending index. Not differentiable.

    Raises:
        ValueError: a radius that is not positive, max_degree < 1, or shapes that do not fit.
    """
    _check_radius(radius, max_degree)
    points, supernode_idx = _device_arrays(points, supernode_idx)
    limit = _radius_squared(radius, points.shape[-1])
    return Neighbors(*_radius_neighbors(points, supernode_idx, limit, max_degree=max_degree))


def nearest_neighbors(points: ArrayLike, supernode_idx: ArrayLike, *, k: int) -> Neighbors:
    """Finds the k points nearest to each supernode, itself included, on the device.

    Memory grows with P + M * k, never with P * M. A batch of points costs no more; `jax.vmap` costs as much for every
    sample.

    Args:
        points: [P, n] or [B, P, n]; compared in float32.
        supernode_idx: [M] or [B, M], indices into the points of the same sample.
        k: the number of neighbours, K. With fewer points, the slots left over are masked.

    Returns:
        Neighbors of [..., M, K], by ascending distance, equal distances by index. Not differentiable.

    Raises:
        ValueError: k < 1, or shapes that do not fit.
    """
    _check_k(k)
    points, supernode_idx = _device_arrays(points, supernode_idx)
    return Neighbors(*_nearest_neighbors(points, supernode_idx, k=k))


def radius_neighbors_host(
    points: npt.ArrayLike, supernode_idx: npt.ArrayLike, *, radius: float, max_degree: int = 32
) -> Neighbors:
    """`radius_neighbors` in NumPy with SciPy's KD-tree, for input pipelines: same arguments, same neighbours."""
    _check_radius(radius, max_degree)
    return _per_sample_host(functools.partial(_radius_host, radius=radius), points, supernode_idx, slots=max_degree)


def nearest_neighbors_host(points: npt.ArrayLike, supernode_idx: npt.ArrayLike, *, k: int) -> Neighbors:
    """`nearest_neighbors` in NumPy with SciPy's KD-tree, for input pipelines: same arguments, same neighbours."""
    _check_k(k)
    return _per_sample_host(_nearest_host, points, supernode_idx, slots=k)


def _check_radius(radius: float, max_degree: int) -> None:
    if not radius > 0:
        raise ValueError(f"radius must be a positive number, got {radius}")
    if max_degree < 1:
        raise ValueError(f"max_degree must be at least 1, got {max_degree}")


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def _check_arrays(points: Any, supernode_idx: Any) -> None:
    got = f"got points {points.shape} and supernode_idx {supernode_idx.shape}"
    if points.ndim not in (2, 3) or supernode_idx.ndim != points.ndim - 1:
        raise ValueError(f"expected points [P, n] and supernode_idx [M], or [B, P, n] and [B, M]; {got}")
    if points.ndim == 3 and len(points) != len(supernode_idx):
        raise ValueError(f"points and supernode_idx must have the same batch size; {got}")
    if points.shape[-1] == 0:
        raise ValueError(f"points must have at least one coordinate; {got}")
    chex.assert_type([points, supernode_idx], [float, int])


def _radius_squared(radius: float, num_axes: int) -> np.float32:
    # Floored like every d², so that a point is within any radius of itself.
    return np.float32(min(max(float(radius) * float(radius), num_axes * float(_SMALLEST)), float(_LARGEST)))


def _squared_distance(a: Any, b: Any, maximum: Callable[[Any, Any], Any]) -> Any:
    """Returns d², as the module defines it, of a and b [n, ...]; `maximum` is NumPy's or JAX's.

    The floor makes the results equal everywhere: it stands between a product and a sum, which XLA would otherwise fuse
    into one multiply-add that rounds once instead of twice, and it hides that some platforms flush subnormal numbers.
    """
    total: Any = None
    for x, y in zip(a, b, strict=True):
        square = maximum((x - y) * (x - y), _SMALLEST)
        total = square if total is None else total + square
    return total


def _device_arrays(points: ArrayLike, supernode_idx: ArrayLike) -> tuple[jax.Array, jax.Array]:
    points, supernode_idx = jnp.asarray(points), jnp.asarray(supernode_idx)
    _check_arrays(points, supernode_idx)
    return lax.stop_gradient(points).astype(jnp.float32), supernode_idx.astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="max_degree")
def _radius_neighbors(
    points: jax.Array, supernode_idx: jax.Array, radius_squared: ArrayLike, *, max_degree: int
) -> Neighbors:
    def search(centers: jax.Array, groups: jax.Array) -> Neighbors:
        words = jnp.zeros((centers.shape[1], groups.shape[2]), jnp.uint32)
        for bit in range(_GROUP):
            is_within = _squared_distance(groups[:, bit], centers[:, :, None], jnp.maximum) <= radius_squared
            words |= is_within.astype(jnp.uint32) << np.uint32(bit)
        # Without a loop in between, XLA computes the words again for each of their readers.
        first = functools.partial(_first_set_bits, count=max_degree)
        return Neighbors(*lax.map(first, words, batch_size=-(-len(words) // 2)))

    return _per_supernode(search, points, supernode_idx, row_size=max_degree)


def _first_set_bits(words: jax.Array, count: int) -> Neighbors:
    """Returns the positions of the first `count` set bits of words [W] uint32, lowest first.

    Every slot walks down a binary tree of counts, at each node to the side that holds its bit, and on within the word.
    """
    words = jnp.pad(words, (0, (1 << (words.size - 1).bit_length()) - words.size))
    levels = [lax.population_count(words).astype(jnp.int32)]
    while levels[0].size > 1:
        levels.insert(0, levels[0][0::2] + levels[0][1::2])
    tree = jnp.concatenate(levels)

    def descend(_: jax.Array, walk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, rank = 2 * walk[0] + 1, walk[1]
        is_right = rank >= tree[left]
        return left + is_right.astype(jnp.int32), jnp.where(is_right, rank - tree[left], rank)

    slots = jnp.arange(count, dtype=jnp.int32)
    node, rank = lax.fori_loop(0, len(levels) - 1, descend, (jnp.zeros_like(slots), slots))
    position = node - (words.size - 1)
    word = words[position]
    for width in (16, 8, 4, 2, 1):
        low_bits = word & np.uint32((1 << width) - 1)
        low_count = lax.population_count(low_bits).astype(jnp.int32)
        is_high = rank >= low_count
        word = jnp.where(is_high, word >> np.uint32(width), low_bits)
        rank = jnp.where(is_high, rank - low_count, rank)
        position = 2 * position + is_high.astype(jnp.int32)
    mask = slots < tree[0]
    return Neighbors(jnp.where(mask, position, 0), mask)


@functools.partial(jax.jit, static_argnames="k")
def _nearest_neighbors(points: jax.Array, supernode_idx: jax.Array, *, k: int) -> Neighbors:
    def search(centers: jax.Array, groups: jax.Array) -> Neighbors:
        nearest = jnp.full((centers.shape[1], groups.shape[2]), np.inf, jnp.float32)
        for member in range(_GROUP):
            d2 = _squared_distance(groups[:, member], centers[:, :, None], jnp.maximum)
            nearest = jnp.where(d2 < nearest, d2, nearest)
        # The k nearest points lie in the k groups whose nearest points are nearest. Ties keep to the lowest index,
        # which top_k prefers, because the indices of a group are below those of the next.
        chosen = jnp.sort(lax.top_k(-nearest, min(k, nearest.shape[1]))[1])
        idx = _GROUP * chosen[:, :, None] + jnp.arange(_GROUP, dtype=jnp.int32)
        members = groups.swapaxes(1, 2)[:, chosen]
        d2 = _squared_distance(members, centers[:, :, None, None], jnp.maximum)
        d2 = d2.reshape(len(nearest), -1)
        closeness, order = lax.top_k(-d2, min(k, d2.shape[1]))
        mask = closeness > -np.inf
        idx = jnp.where(mask, jnp.take_along_axis(idx.reshape(len(nearest), -1), order, axis=1), 0)
        unused = ((0, 0), (0, k - mask.shape[1]))
        return Neighbors(jnp.pad(idx, unused), jnp.pad(mask, unused))

    return _per_supernode(search, points, supernode_idx, row_size=k * _GROUP * points.shape[-1])


def _per_supernode(
    search: Callable[[jax.Array, jax.Array], Neighbors], points: jax.Array, supernode_idx: jax.Array, *, row_size: int
) -> Neighbors:
    """Runs search(centers [n, rows], groups [n, 32, W]) on blocks of supernodes. Point i is groups[:, i % 32, i // 32].

    `row_size` is what a supernode takes beyond a word for each group of 32 points.
    """
    num_points, num_axes = points.shape[-2:]
    num_supernodes = supernode_idx.shape[-1]
    num_groups = max(-(-num_points // _GROUP), 1)
    max_rows = max(_BLOCK_WORDS // max(num_groups, row_size), 1)
    num_blocks = max(-(-num_supernodes // max_rows), 1)
    rows = max(-(-num_supernodes // num_blocks), 1)

    def search_sample(sample: tuple[jax.Array, jax.Array]) -> Neighbors:
        points, supernode_idx = sample
        points = jnp.where(jnp.isfinite(points).all(axis=1, keepdims=True), points, np.inf)
        points = jnp.pad(points, ((0, num_groups * _GROUP - num_points), (0, 0)), constant_values=np.inf)
        groups = points.reshape(num_groups, _GROUP, num_axes).transpose(2, 1, 0)
        supernode_idx = jnp.pad(supernode_idx, (0, num_blocks * rows - num_supernodes), constant_values=-1)
        is_inside = (supernode_idx >= 0) & (supernode_idx < num_points)
        centers = points[jnp.where(is_inside, supernode_idx, 0)]
        # Infinity minus minus infinity is infinity: absent supernodes are far from absent points, without a NaN.
        centers = jnp.where(is_inside[:, None] & jnp.isfinite(centers), centers, -np.inf)
        blocks = centers.reshape(num_blocks, rows, num_axes).swapaxes(1, 2)
        found = lax.map(lambda centers: search(centers, groups), blocks)
        return Neighbors(*(x.reshape(num_blocks * rows, x.shape[-1])[:num_supernodes] for x in found))

    if points.ndim == 2:
        return search_sample((points, supernode_idx))
    batch_size = max(max_rows // max(num_supernodes, 1), 1)
    return Neighbors(*lax.map(search_sample, (points, supernode_idx), batch_size=batch_size))


def _per_sample_host(
    search: Callable[..., Iterator[tuple[Any, Any, Any]]], points: Any, supernode_idx: Any, *, slots: int
) -> Neighbors:
    """Fills in what search(points, centers, slots) yields: rows of centers, their slots, and the points in these."""
    points, supernode_idx = np.asarray(points), np.asarray(supernode_idx)
    _check_arrays(points, supernode_idx)
    idx: Any = np.zeros((*supernode_idx.shape, slots), np.int32)
    mask: Any = np.zeros(idx.shape, np.bool_)
    with np.errstate(over="ignore"):
        for sample in np.ndindex(points.shape[:-2]):
            coordinates, centers = points[sample].astype(np.float32), supernode_idx[sample]
            is_present = np.isfinite(coordinates).all(axis=1)
            present = np.flatnonzero(is_present)
            rows = np.flatnonzero((centers >= 0) & (centers < len(coordinates)))
            rows = rows[is_present[centers[rows]]]
            if rows.size:
                for row, slot, col in search(coordinates[present], coordinates[centers[rows]], slots):
                    idx[sample][rows[row], slot] = present[col]
                    mask[sample][rows[row], slot] = True
    return Neighbors(idx, mask)


def _radius_host(points: Any, centers: Any, slots: int, *, radius: float) -> Iterator[tuple[Any, Any, Any]]:
    from scipy.spatial import cKDTree

    limit = _radius_squared(radius, points.shape[1])
    filled = np.zeros(len(centers), np.int64)
    start, stop = 0, _FIRST_POINTS
    # Later points are only searched for the supernodes that have slots left, so a large radius stays affordable.
    while start < len(points) and (filled < slots).any():
        left = np.flatnonzero(filled < slots)
        tree = cKDTree(points[start:stop])
        for row, col, _ in _pairs_within(tree, centers[left], np.full(len(left), limit)):
            slot = filled[left[row]] + _rank_in_run(row)
            is_free = slot < slots
            yield left[row[is_free]], slot[is_free], start + col[is_free]
            filled[left] += np.bincount(row, minlength=len(left))
        start, stop = stop, 4 * stop


def _nearest_host(points: Any, centers: Any, slots: int) -> Iterator[tuple[Any, Any, Any]]:
    from scipy.spatial import cKDTree

    # A point after as many copies of itself as there are slots is in none of them: thousands of copies cost no more.
    order = np.lexsort(points.T)
    is_new = np.append(True, (points[order[1:]] != points[order[:-1]]).any(axis=1))
    kept = np.sort(order[_rank_in_run(np.cumsum(is_new)) < slots])
    points = points[kept]
    tree = cKDTree(points)
    _, near = tree.query(centers, k=range(1, min(slots, len(points)) + 1))
    # Any k points bound the distance of the k nearest; among those within that bound are all ties.
    limits = _squared_distance(np.moveaxis(points[near], 2, 0), centers.T[:, :, None], np.maximum).max(axis=1)
    for row, col, d2 in _pairs_within(tree, centers, np.minimum(limits, _LARGEST)):
        order = np.lexsort((col, d2, row))
        slot = _rank_in_run(row)
        is_free = slot < slots
        yield row[is_free], slot[is_free], kept[col[order]][is_free]


def _pairs_within(tree: Any, centers: Any, limits: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yields, in blocks of whole rows, all (row, point, d²) with d² <= limits[row], by ascending row and point."""
    # The tree measures in float64: reach as far as the rounding of a float32 d² may go, then measure again.
    reach = np.sqrt(limits.astype(np.float64)) * (1 + (tree.m + 4) * float(np.finfo(np.float32).eps))
    counts = tree.query_ball_point(centers, reach, return_length=True)
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // _BLOCK_PAIRS)) + 1
    for rows in np.split(np.arange(len(centers)), cuts):
        row = rows.repeat(counts[rows])
        members = tree.query_ball_point(centers[rows], reach[rows], return_sorted=True)
        col = np.fromiter(itertools.chain.from_iterable(members), np.int64, len(row))
        d2 = _squared_distance(tree.data[col].astype(np.float32).T, centers[row].T, np.maximum)
        is_within = d2 <= limits[row]
        yield row[is_within], col[is_within], d2[is_within]


def _rank_in_run(sorted_values: Any) -> Any:
    return np.arange(len(sorted_values)) - np.searchsorted(sorted_values, sorted_values)
