"""Radius and k-nearest neighbours of supernodes with static shapes, on the device.

`neighbors_host` finds exactly the same neighbours of the same float32 coordinates; those in float64 are first taken
relative to the lowest corner of their sample. To the last bit:

- d² is the sum over the axes, first to last, of max((a - b)², 1.2e-38), each step rounded to float32. The floor is the
  smallest normal float32; only distances below 1e-14 notice it.
- A point is within the radius if d <= radius, both float32: d is the square root of d², correctly rounded. No root is
  taken: d² is compared with the largest float32 whose root is within the radius.
- Two points whose d² overflows float32, more than 1.8e19 apart, are not neighbours.
- A point with a coordinate that is not finite is absent: it is nobody's neighbour. A supernode has no neighbours if it
  is absent or its index is not in 0 ... P - 1. Both serve as padding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from emmi_jax.ops.attention import platform
from emmi_jax.ops.sharding import device_count, gather_axis, num_shares, partition_automatically, vary_alike

SMALLEST = np.float32(np.finfo(np.float32).tiny)
LARGEST = np.float32(np.finfo(np.float32).max)
_GROUP = 32  # points in a group: the bits of a word
_CHUNK_WORDS = 2**20
"""Entries of the largest array that a device holds for a chunk of supernodes: what the caches of a CPU hold."""
_CHUNK_WORDS_GPU = 2**24
"""The same on a GPU, for which each step of a loop is a dozen launches."""


class Neighbors(NamedTuple):
    """The neighbours of every supernode; NumPy arrays where the host found them.

    Attributes:
        idx: [..., M, K] int32, indices into the points of the same sample; 0 where masked.
        mask: [..., M, K] bool, True = a real neighbour; these come first.
    """

    idx: jax.Array
    mask: jax.Array


def radius_neighbors(points: ArrayLike, supernode_idx: ArrayLike, *, radius: float, max_degree: int = 32) -> Neighbors:
    """Finds the points within a radius of each supernode, on the device.

    A supernode is a point like any other: its own neighbour, unless the cap cuts it off. Memory grows with
    P + M * max_degree, never with P * M. A batch takes no more memory, but `jax.vmap` takes as much for every sample.
    Devices divide up a sharded batch and sharded supernodes.

    Args:
        points: [P, n] or [B, P, n], in the unit of the radius; compared in float32.
        supernode_idx: [M] or [B, M], indices into the points of the same sample.
        radius: A Python number, compared in float32. A point at exactly this distance is within it; at radius 0, copies
            of the supernode are.
        max_degree: K. Where more points are within the radius, those with the lowest indices stay, not the nearest.

    Returns:
        Neighbors of [..., M, K], by ascending index. Not differentiable.

    Raises:
        ValueError: The radius is negative or not a number, max_degree < 1, or shapes or dtypes do not fit.
    """
    check_radius(radius, max_degree)
    limit = largest_squared(radius, np.shape(points)[-1])
    return _find(functools.partial(_radius_neighbors, limit=limit, max_degree=max_degree), points, supernode_idx)


def nearest_neighbors(points: ArrayLike, supernode_idx: ArrayLike, *, k: int) -> Neighbors:
    """Finds the k points nearest to each supernode, itself included, on the device.

    Memory grows with P + M * k, never with P * M. A batch takes no more memory, but `jax.vmap` takes as much for every
    sample. Devices divide up a sharded batch and sharded supernodes.

    Args:
        points: [P, n] or [B, P, n]; compared in float32.
        supernode_idx: [M] or [B, M], indices into the points of the same sample.
        k: The number of neighbours, K. With fewer points, the slots left over are masked.

    Returns:
        Neighbors of [..., M, K], by ascending distance, equal distances by index. Not differentiable.

    Raises:
        ValueError: k < 1, or shapes or dtypes do not fit.
    """
    check_k(k)
    return _find(functools.partial(_nearest_neighbors, k=k), points, supernode_idx)


def check_radius(radius: float, max_degree: int) -> None:
    """Raises ValueError for arguments that no search can have."""
    if not radius >= 0:
        raise ValueError(f"radius must be a number of at least 0, got {radius}")
    if max_degree < 1:
        raise ValueError(f"max_degree must be at least 1, got {max_degree}")


def check_k(k: int) -> None:
    """Raises ValueError if there is no slot for a neighbour."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def check_arrays(points: Any, supernode_idx: Any) -> None:
    """Raises ValueError if shapes or dtypes do not fit."""
    got = f"got points {points.shape} and supernode_idx {supernode_idx.shape}"
    if points.ndim not in (2, 3) or supernode_idx.ndim != points.ndim - 1:
        raise ValueError(f"expected points [P, n] and supernode_idx [M], or [B, P, n] and [B, M]; {got}")
    if points.ndim == 3 and points.shape[0] != supernode_idx.shape[0]:
        raise ValueError(f"points and supernode_idx must have the same batch size; {got}")
    if points.shape[-1] == 0:
        raise ValueError(f"points must have at least one coordinate; {got}")
    if not (jnp.issubdtype(points.dtype, jnp.floating) and jnp.issubdtype(supernode_idx.dtype, jnp.integer)):
        got = f"got points {points.dtype} and supernode_idx {supernode_idx.dtype}"
        raise ValueError(f"points must be floating and supernode_idx integers; {got}")


def largest_squared(radius: float, num_axes: int) -> np.float32:
    """Returns the largest d² within the radius, floored like every d²: a point is within any radius of itself."""
    with np.errstate(over="ignore"):
        reach = np.float32(radius)
        limit = np.minimum(reach * reach, LARGEST)
    # The square is rounded, so the last float32 whose root is within the radius lies up to two steps beside it.
    while np.sqrt(limit) > reach:
        limit = np.nextafter(limit, np.float32(0))
    while limit < LARGEST and np.sqrt(above := np.nextafter(limit, LARGEST)) <= reach:
        limit = above
    return max(limit, np.float32(num_axes * SMALLEST))


def squared_distance(a: Any, b: Any, maximum: Callable[[Any, Any], Any]) -> Any:
    """Returns d², as the module defines it, of a and b [n, ...]; `maximum` is NumPy's or JAX's.

    The floor makes the results equal everywhere: it stands between a product and a sum, which XLA would otherwise fuse
    into one multiply-add that rounds once instead of twice, and it hides that some platforms flush subnormal numbers.
    """
    total: Any = None
    for x, y in zip(a, b, strict=True):
        square = maximum((x - y) * (x - y), SMALLEST)
        total = square if total is None else total + square
    return total


def in_single(points: Any) -> Any:
    """Returns coordinates [..., P, n] in float32; those in float64 keep their digits far from the origin."""
    if points.dtype == np.float64 and points.shape[-2]:
        xp: Any = jnp if isinstance(points, jax.Array) else np
        lowest = xp.where(xp.isfinite(points), points, np.inf).min(axis=-2, keepdims=True)
        points = points - xp.where(xp.isfinite(lowest), lowest, 0.0)
    return points.astype(np.float32)


def _find(search: Callable[..., Neighbors], points: ArrayLike, supernode_idx: ArrayLike) -> Neighbors:
    if not isinstance(points, jax.Array):
        points = np.asarray(points)
    supernode_idx = jnp.asarray(supernode_idx)
    check_arrays(points, supernode_idx)
    points = lax.stop_gradient(jnp.asarray(in_single(points)))
    supernode_idx = supernode_idx.astype(jnp.int32)
    spec = P(*jax.typeof(supernode_idx).sharding.spec, None)
    arrays = partition_automatically(search, spec, points, supernode_idx)(*vary_alike((points, supernode_idx)))
    return Neighbors(*arrays)


@functools.partial(jax.jit, static_argnames="max_degree")
def _radius_neighbors(points: jax.Array, supernode_idx: jax.Array, limit: ArrayLike, *, max_degree: int) -> Neighbors:
    def search(centers: jax.Array, groups: jax.Array) -> Neighbors:
        words = jnp.zeros((centers.shape[1], groups.shape[2]), jnp.uint32)
        for bit in range(_GROUP):
            is_within = squared_distance(groups[:, bit, None], centers[:, :, None], jnp.maximum) <= limit
            words |= is_within.astype(jnp.uint32) << np.uint32(bit)
        # Without a loop in between, XLA computes the words again for each of their readers.
        first = functools.partial(_first_set_bits, count=max_degree)
        return Neighbors(*lax.map(first, words, batch_size=-(-len(words) // 2)))

    return _per_supernode(search, points, supernode_idx, row_size=max_degree)


def _first_set_bits(words: jax.Array, count: int) -> Neighbors:
    """Returns the positions of the first `count` set bits of words [W] uint32, lowest first.

    Every slot walks down a binary tree of counts, at each node to the side that holds its bit, then on within the word.
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

    slots, tree = vary_alike((jnp.arange(count, dtype=jnp.int32), tree))
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
    # The partitioner gathers the operand of `top_k`, but not that of the approximate search, exact at full recall.
    is_shared = device_count(points, supernode_idx) > 1
    top_k = functools.partial(lax.approx_max_k, recall_target=1.0) if is_shared else lax.top_k

    def search(centers: jax.Array, groups: jax.Array) -> Neighbors:
        nearest = jnp.full((centers.shape[1], groups.shape[2]), np.inf, jnp.float32)
        for member in range(_GROUP):
            d2 = squared_distance(groups[:, member, None], centers[:, :, None], jnp.maximum)
            nearest = jnp.where(d2 < nearest, d2, nearest)
        # The k nearest points lie in the k groups whose nearest points are nearest. Ties keep to the lowest index,
        # which top_k prefers, because the indices of a group are below those of the next.
        chosen = jnp.sort(top_k(-nearest, min(k, nearest.shape[1]))[1])
        idx = _GROUP * chosen[:, :, None] + jnp.arange(_GROUP, dtype=jnp.int32)[None, None]
        members = groups.swapaxes(1, 2)[:, chosen]
        d2 = squared_distance(members, centers[:, :, None, None], jnp.maximum)
        d2 = d2.reshape(len(nearest), -1)
        closeness, order = top_k(-d2, min(k, d2.shape[1]))
        mask = closeness > -np.inf
        idx = jnp.where(mask, jnp.take_along_axis(idx.reshape(len(nearest), -1), order, axis=1), 0)
        unused = ((0, 0), (0, k - mask.shape[1]))
        return Neighbors(jnp.pad(idx, unused), jnp.pad(mask, unused))

    return _per_supernode(search, points, supernode_idx, row_size=k * _GROUP * points.shape[-1])


def _per_supernode(
    search: Callable[[jax.Array, jax.Array], Neighbors], points: jax.Array, supernode_idx: jax.Array, *, row_size: int
) -> Neighbors:
    """Runs search(centers [n, rows], groups [n, 32, W]) on chunks of supernodes. Point i is groups[:, i % 32, i // 32].

    `row_size` is what a supernode takes beyond a word for each group of 32 points.
    """
    if points.ndim == 2:
        return Neighbors(*(x[0] for x in _per_supernode(search, points[None], supernode_idx[None], row_size=row_size)))
    (batch, num_points, num_axes), num_supernodes = points.shape, supernode_idx.shape[1]
    # Batch and supernodes are cut into shares that devices can divide up: a loop over shares would run on every device.
    num_devices = device_count(points, supernode_idx)
    shares = [num_shares(size, num_devices) for size in (batch, num_supernodes)]
    num_supernodes //= shares[1]
    num_groups = max(-(-num_points // _GROUP), 1)
    at_once = shares[1] * (shares[0] if isinstance(batch, int) else num_devices)
    words = _CHUNK_WORDS_GPU if platform() in ("cuda", "rocm") else _CHUNK_WORDS
    max_rows = max(words * num_devices // (max(num_groups, row_size) * at_once), 1)
    num_chunks = max(-(-num_supernodes // max_rows), 1)
    rows = max(-(-num_supernodes // num_chunks), 1)

    def search_share(points: jax.Array, supernode_idx: jax.Array) -> Neighbors:
        points = jnp.where(jnp.isfinite(points).all(axis=1, keepdims=True), points, np.inf)
        points = jnp.pad(points, ((0, num_groups * _GROUP - num_points), (0, 0)), constant_values=np.inf)
        groups = points.reshape(num_groups, _GROUP, num_axes).transpose(2, 1, 0)
        supernode_idx = jnp.pad(supernode_idx, (0, num_chunks * rows - num_supernodes), constant_values=-1)
        is_inside = (supernode_idx >= 0) & (supernode_idx < num_points)
        centers = points[jnp.where(is_inside, supernode_idx, 0)]
        # Infinity minus minus infinity is infinity: absent supernodes are far from absent points, without a NaN.
        centers = jnp.where(is_inside[:, None] & jnp.isfinite(centers), centers, -np.inf)
        chunks = centers.reshape(num_chunks, rows, num_axes).swapaxes(1, 2)
        arrays = lax.map(lambda centers: search(centers, groups), chunks)
        return Neighbors(*(x.reshape(num_chunks * rows, x.shape[-1])[:num_supernodes] for x in arrays))

    batch_size = max(max_rows // max(num_supernodes, 1), 1) if isinstance(batch, int) else None
    search_sample = search_share if shares[1] == 1 else jax.vmap(search_share, (None, 0))

    def search_samples(points: jax.Array, supernode_idx: jax.Array) -> Neighbors:
        samples = (points, supernode_idx)
        return Neighbors(*lax.map(lambda sample: search_sample(*sample), samples, batch_size=batch_size))

    if num_devices > 1:
        points = gather_axis(points, 1)
    if shares[1] != 1:
        supernode_idx = supernode_idx.reshape(batch, shares[1], num_supernodes)
    if shares[0] != 1:
        search_samples = jax.vmap(search_samples)
        points, supernode_idx = (
            x.reshape(shares[0], batch // shares[0], *x.shape[1:]) for x in (points, supernode_idx)
        )
    arrays = search_samples(points, supernode_idx)
    return Neighbors(*(x.reshape(batch, shares[1] * num_supernodes, x.shape[-1]) for x in arrays))
