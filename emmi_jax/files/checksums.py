"""Checksums of arrays: numbers that show damage, whatever devices share an array."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


def checksums(tree: Any) -> dict[str, int]:
    """Returns a checksum of every array in a tree, by the path of the array.

    The array's words are added along each axis, which costs little more than reading them. Each of these sums is mixed
    with its place by the finalizer of MurmurHash3, and the results are added: 32 bits for each axis. A changed word
    always changes all of them. Other changes are missed if they leave the sums along every axis as they were, and of
    the rest one in 2^32 is. The order of additions does not matter, so devices add up what they hold, and an array has
    the same checksum however it is sharded. Where several processes share the arrays, all of them must call this.

    Args:
        tree: Arrays of JAX. Those on one device are summed by the host, which compiles nothing.
    """
    arrays = jax.tree_util.tree_leaves_with_path(tree)
    sums = {path: _device_sums(array) if _is_shared(array) else _host_sums(array) for path, array in arrays}
    return {jax.tree_util.keystr(path): _joined(words) for path, words in sums.items()}


def begin_checksums(tree: Any) -> Callable[[], dict[str, int]]:
    """Begins to compute `checksums` on the devices; the host sums what is in its memory when it is asked for it.

    Args:
        tree: Arrays of JAX; they may be donated afterwards, since a view keeps those of the host.

    Returns:
        A function that waits for them and returns them, in any thread.
    """

    def begin(array: jax.Array) -> Callable[[], Any]:
        if not _is_shared(array) and array.device.platform == "cpu":  # type: ignore[union-attr]
            return partial(_host_sums, np.asarray(array))
        return partial(np.asarray, _device_sums(array))

    pending = {path: begin(array) for path, array in jax.tree_util.tree_leaves_with_path(tree)}
    return lambda: {jax.tree_util.keystr(path): _joined(wait()) for path, wait in pending.items()}


def _is_shared(array: jax.Array) -> bool:
    return len(array.sharding.device_set) > 1


def _joined(sums: Any) -> int:
    return int.from_bytes(np.asarray(sums, "<u4").tobytes(), "little")


def _device_sums(array: jax.Array) -> jax.Array:
    is_named = _is_shared(array) and isinstance(array.sharding, NamedSharding)
    everywhere = NamedSharding(array.sharding.mesh, P()) if is_named else None  # type: ignore[attr-defined]
    return _sums_on(everywhere)(array)


@cache
def _sums_on(sharding: NamedSharding | None) -> Any:
    return jax.jit(_sums, out_shardings=sharding)


def _sums(array: jax.Array) -> jax.Array:
    words, mixed = jnp.atleast_1d(array).view(_WORDS[array.dtype.itemsize]).astype(jnp.uint32), []
    while words.ndim > 1:
        mixed.append(_mixed(words.sum(tuple(range(1, words.ndim)), jnp.uint32), jnp))
        words = words.sum(0, jnp.uint32)
    return jnp.stack([*mixed, _mixed(words, jnp)])


def _host_sums(array: Any) -> list[int]:
    values = np.atleast_1d(np.asarray(array))
    words: Any = np.ascontiguousarray(values).view(_WORDS[values.dtype.itemsize])
    mixed = []
    # Few calls on much memory: each waits for the interpreter's lock, which other threads hold.
    while words.ndim > 1:
        mixed.append(_mixed(np.sum(words, tuple(range(1, words.ndim)), np.uint32), np))
        words = np.sum(words, 0, np.uint32)
    return [*mixed, _mixed(words.astype(np.uint32), np)]


def _mixed(words: Any, numpy: Any) -> Any:
    mixed = words ^ (numpy.arange(len(words), dtype=np.uint32) * np.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return (mixed ^ (mixed >> np.uint32(16))).sum(dtype=np.uint32)
