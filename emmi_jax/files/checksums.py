"""Checksums of arrays: numbers that show damage, whatever devices share an array."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_BLOCK = 1 << 18
"""Words that the host sums along both axes at once, so that they stay in its cache."""


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
    """Begins to compute `checksums` on the devices; those of arrays in the memory of the host are done when it returns.

    In a thread beside other Python code they would take three times as long, for the interpreter's lock.

    Args:
        tree: Arrays of JAX; they may be donated afterwards.

    Returns:
        A function that waits for them and returns them, in any thread.
    """

    def begin(array: jax.Array) -> Any:
        is_on_host = not _is_shared(array) and array.device.platform == "cpu"  # type: ignore[union-attr]
        return _host_sums(array) if is_on_host else _device_sums(array)

    pending = {path: begin(array) for path, array in jax.tree_util.tree_leaves_with_path(tree)}
    return lambda: {jax.tree_util.keystr(path): _joined(sums) for path, sums in pending.items()}


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


def _host_sums(array: jax.Array) -> list[int]:
    values = np.atleast_1d(np.asarray(array))
    words, mixed = np.ascontiguousarray(values).view(_WORDS[values.dtype.itemsize]), []
    while words.ndim > 1:
        rows, sums = _along_both(words.reshape(len(words), math.prod(words.shape[1:])))
        mixed.append(_mixed(rows, np))
        words = sums.reshape(words.shape[1:])
    return [*mixed, _mixed(words.astype(np.uint32), np)]


def _along_both(words: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    rows, sums = np.empty(len(words), np.uint32), np.zeros(words.shape[1], np.uint32)
    step = max(_BLOCK // max(words.shape[1], 1), 1)
    for start in range(0, len(words), step):
        block = words[start : start + step]
        np.sum(block, 1, np.uint32, out=rows[start : start + step])
        sums += np.sum(block, 0, np.uint32)
    return rows, sums


def _mixed(words: Any, numpy: Any) -> Any:
    mixed = words ^ (numpy.arange(len(words), dtype=np.uint32) * np.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return (mixed ^ (mixed >> np.uint32(16))).sum(dtype=np.uint32)
