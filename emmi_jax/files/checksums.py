"""Checksums of arrays: a number for each that shows damage, whatever devices share it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_BLOCK = 1 << 14
"""Words that the host mixes at once, so that they stay in its cache."""


def checksums(tree: Any, *, on_host: bool = False) -> dict[str, int]:
    """Returns a checksum of every array in a tree, by the path of the array.

    Each 32-bit word is mixed with its place in the array by the finalizer of MurmurHash3, and the results are added. A
    changed word always changes the sum; of other changes one in 2^32 does not. The order of the additions does not
    matter, so devices add up what they hold: an array has the same checksum however it is sharded. Where several
    processes share the arrays, all of them must call this.

    Args:
        tree: Arrays of JAX.
        on_host: Whether to compute on the host, which compiles nothing; for arrays on one device.
    """
    return begin_checksums(tree, on_host=on_host)()


def begin_checksums(tree: Any, *, on_host: bool = False) -> Callable[[], dict[str, int]]:
    """Begins to compute `checksums`; the arrays may be donated meanwhile.

    Returns:
        A function that waits for them and returns them, in any thread.
    """
    compute = _host_sum if on_host else _device_sum
    sums = {jax.tree_util.keystr(path): compute(array) for path, array in jax.tree_util.tree_leaves_with_path(tree)}
    return lambda: {path: int(total) for path, total in jax.device_get(sums).items()}


def _device_sum(array: jax.Array) -> jax.Array:
    is_shared = isinstance(array.sharding, NamedSharding) and len(array.sharding.device_set) > 1
    everywhere = NamedSharding(array.sharding.mesh, P()) if is_shared else None  # type: ignore[attr-defined]
    return _sums_on(everywhere)(array)


@cache
def _sums_on(sharding: NamedSharding | None) -> Any:
    return jax.jit(_sum, out_shardings=sharding)


def _sum(array: jax.Array) -> jax.Array:
    words = jnp.atleast_1d(array).view(_WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return _mixed(words, place).sum(dtype=jnp.uint32)


def _host_sum(array: jax.Array) -> int:
    flat = np.atleast_1d(np.ascontiguousarray(array)).reshape(-1)
    words, total = flat.view(_WORDS[flat.dtype.itemsize]), 0
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK].astype(np.uint32)
        place = np.arange(start, start + block.size, dtype=np.uint64).astype(np.uint32)
        total += int(_mixed(block, place).sum(dtype=np.uint64))
    return total % 2**32


def _mixed(words: Any, place: Any) -> Any:
    mixed = words ^ (place * np.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return mixed ^ (mixed >> np.uint32(16))
