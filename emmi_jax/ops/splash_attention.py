"""Attention on TPU: JAX's Pallas kernel under a block-sparse mask that is never built in full.

Importing this module imports Pallas, so the package imports it only where the kernel runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    Mask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)

from emmi_jax.ops.masks import Rectangle, rectangle_mask

MAX_BLOCK = 512
"""Largest side of a tile, whose float32 logits then take 1 MiB of the 16 MiB of vector memory."""

LANES = 128
"""Width of a vector register: blocks and channels of the kernel are multiples of it."""


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    rectangles: Sequence[Rectangle] | None = None,
    key_mask: jax.Array | None = None,
    precision: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes softmax(q kᵀ / sqrt(H)) v in tiles and skips tiles in which no query attends to a key.

    Memory is linear in T and S, forward and backward. Differentiable once, in reverse mode.

    Args:
        q: Queries [B, T, N, H], float32 or bfloat16.
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        rectangles: Parts of the logits [T, S] that count, as (query start, query stop, key start, key stop); static;
            they may overlap. None means all. A query with nothing to attend to gives zeros.
        key_mask: Booleans [B, S], True = attend to this key; None means all.
        precision: Precision of the matrix products; the kernel treats ``high`` as ``highest``.
        interpret: Whether Pallas' interpreter runs the kernel, slowly and on any platform, instead of a TPU.

    Returns:
        Array [B, T, N, H] of q's dtype. Logits, softmax and sums are float32 whatever the dtype.

    Source: Dao et al. 2022, "FlashAttention" (arXiv 2205.14135), in JAX's ``splash_attention``.
    """
    if not q.size or not k.size:
        return jnp.zeros_like(q)
    _, num_queries, num_heads, head_dim = q.shape
    num_keys = k.shape[1]
    if rectangles is None:
        rectangles = ((0, num_queries, 0, num_keys),)
    rectangles = tuple(rectangle for rectangle in rectangles if _is_filled(rectangle))
    kernel = _kernel(rectangles, num_queries, num_keys, num_heads, interpret)
    (_, padded_queries), (_, padded_keys) = _blocks(num_queries), _blocks(num_keys)
    q_heads = _pad_heads(q * jnp.asarray(head_dim**-0.5, q.dtype), padded_queries)
    key_ids = None
    if key_mask is not None:
        # Zero weights do not silence NaN.
        k, v = (jnp.where(key_mask[:, :, None, None], x, jnp.zeros_like(x)) for x in (k, v))
        key_ids = jnp.pad((~key_mask).astype(jnp.int32), ((0, 0), (0, padded_keys - num_keys)))
    y = _run(kernel, precision, q_heads, _pad_heads(k, padded_keys), _pad_heads(v, padded_keys), key_ids)
    y = jnp.swapaxes(y[:, :, :num_queries, :head_dim], 1, 2)
    attends = _attends(rectangles, num_queries, key_mask)
    return y if attends is None else jnp.where(attends[:, :, None, None], y, jnp.zeros_like(y))


@dataclass(frozen=True)
class RectangleMask(Mask):
    """A union of rectangles in an array of `size` = [T, S]; only the requested blocks are ever built.

    Equal masks have equal hashes, on which the kernel's cache of derived tables relies.
    """

    rectangles: tuple[Rectangle, ...]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Sizes T and S."""
        return self.size

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        """Returns the block at these slices, read-only."""
        rows, columns = block
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        inside = [
            (
                slice(max(start_q, rows.start) - rows.start, min(stop_q, rows.stop) - rows.start),
                slice(max(start_k, columns.start) - columns.start, min(stop_k, columns.stop) - columns.start),
            )
            for start_q, stop_q, start_k, stop_k in self.rectangles
            if max(start_q, rows.start) < min(stop_q, rows.stop)
            and max(start_k, columns.start) < min(stop_k, columns.stop)
        ]
        if not inside or any((r.stop - r.start, c.stop - c.start) == shape for r, c in inside):
            return _constant(shape, bool(inside))
        mask = np.zeros(shape, bool)
        for part in inside:
            mask[part] = True
        return mask


@functools.lru_cache(maxsize=16)
def _constant(shape: tuple[int, int], value: bool) -> np.ndarray:
    block = np.full(shape, value)
    block.flags.writeable = False
    return block


@functools.lru_cache(maxsize=64)
def _kernel(rectangles: tuple[Rectangle, ...], num_queries: int, num_keys: int, num_heads: int, interpret: bool) -> Any:
    """Returns the kernel for padded arrays [N, T, H], with its tables as NumPy arrays, which any trace may use."""
    (block_q, padded_queries), (block_k, padded_keys) = _blocks(num_queries), _blocks(num_keys)
    rectangles = _fill_rows(rectangles, num_queries, padded_queries, block_k)
    mask = RectangleMask(rectangles, (padded_queries, padded_keys))
    blocks = BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_q_dq=block_q,
        block_kv_dq=block_k,
    )
    with jax.ensure_compile_time_eval():
        kernel = make_splash_mha(
            MultiHeadMask([mask] * num_heads), block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret
        )
    return jax.tree.map(np.asarray, kernel)


def _attend(
    kernel: Any, precision: str | None, q: jax.Array, k: jax.Array, v: jax.Array, key_ids: jax.Array | None
) -> jax.Array:
    """Runs the kernel on each sample of q, k, v [B, N, T or S, H]; queries attend to keys whose id in [B, S] is 0."""

    def sample(q: jax.Array, k: jax.Array, v: jax.Array, key_ids: jax.Array | None) -> jax.Array:
        ids = None if key_ids is None else SegmentIds(jnp.zeros(q.shape[1], key_ids.dtype), key_ids)
        return kernel(q, k, v, ids)

    with _precision(precision):
        return jax.vmap(sample)(q, k, v, key_ids)


def _attend_fwd(
    kernel: Any, precision: str | None, q: jax.Array, k: jax.Array, v: jax.Array, key_ids: jax.Array | None
) -> tuple[jax.Array, Any]:
    return jax.vjp(lambda q, k, v: _attend(kernel, precision, q, k, v, key_ids), q, k, v)


def _attend_bwd(kernel: Any, precision: str | None, pullback: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    # The kernel reads the precision from the context, which the backward pass has left by now.
    with _precision(precision):
        return (*pullback(cotangent), None)


_run = jax.custom_vjp(_attend, nondiff_argnums=(0, 1))
_run.defvjp(_attend_fwd, _attend_bwd)


def _precision(precision: str | None) -> contextlib.AbstractContextManager[None]:
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest" if precision == "high" else precision)


def _blocks(size: int) -> tuple[int, int]:
    """Returns a block size and `size` padded to a multiple of it, with less than one register of padding per block."""
    num_blocks = -(-size // MAX_BLOCK)
    block = -(-size // (num_blocks * LANES)) * LANES
    return block, num_blocks * block


def _pad_heads(x: jax.Array, size: int) -> jax.Array:
    """Returns x [B, T, N, H] as [B, N, size, H'], with H' a multiple of `LANES`."""
    x = jnp.swapaxes(x, 1, 2)
    return jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, -x.shape[3] % LANES)))


def _is_filled(rectangle: Rectangle) -> bool:
    start_q, stop_q, start_k, stop_k = rectangle
    return start_q < stop_q and start_k < stop_k


def _fill_rows(
    rectangles: tuple[Rectangle, ...], num_queries: int, padded_queries: int, block_k: int
) -> tuple[Rectangle, ...]:
    """Gives every row something to attend to: the kernel divides by the sum of weights and refuses an empty mask.

    Padded rows copy the last real row, which keeps the blocks simple; rows without keys attend to the first block.
    """
    rectangles = tuple((a, padded_queries if b == num_queries else b, c, d) for a, b, c, d in rectangles)
    empty = ~_rows(rectangles, padded_queries)
    edges = np.flatnonzero(np.diff(empty, prepend=False, append=False))
    return rectangles + tuple((int(a), int(b), 0, block_k) for a, b in edges.reshape(-1, 2))


def _rows(rectangles: Sequence[Rectangle], num_queries: int) -> np.ndarray:
    """Returns which queries [T] have a rectangle."""
    return rectangle_mask([(start, stop, 0, 1) for start, stop, _, _ in rectangles], num_queries, 1)[:, 0]


def _attends(
    rectangles: Sequence[Rectangle], num_queries: int, key_mask: jax.Array | None
) -> np.ndarray | jax.Array | None:
    """Returns which queries [B or 1, T] have a key, or None if all have."""
    if key_mask is None:
        rows = _rows(rectangles, num_queries)
        return None if rows.all() else rows[None]
    attends = jnp.zeros((key_mask.shape[0], num_queries), bool)
    for rectangle in rectangles:
        has_key = key_mask[:, rectangle[2] : rectangle[3]].any(axis=1, keepdims=True)
        attends = attends | (has_key & _rows([rectangle], num_queries))
    return attends
