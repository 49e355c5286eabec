"""Exact attention in tiles, with its own gradient: memory linear in tokens, and fast on CPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array, lax

# Tiles of at most 2048 x 2048 float32 logits: small enough to wait in the L3 cache for the product that consumes them,
# large enough to keep all cores busy within one two-dimensional product (batched products run several times slower).
# The backward pass holds twice as many tiles at a time, so it halves them.
BLOCK_QUERIES = 2048
BLOCK_QUERIES_BACKWARD = 1024
BLOCK_KEYS = 2048

SAFE_LOGIT = 40.0
"""While no logit exceeds this, exp needs no row maximum: float32 overflows at 88 and the sums have room to grow."""

LOG2_E = math.log2(math.e)

# 2**x on [-1/2, 1/2] by a polynomial, highest power first; its largest relative error is 8e-8.
EXP2_COEFFICIENTS = (0.00132764701, 0.00967554189, 0.0555071346, 0.240221202, 0.693146944, 1.00000012)

EMPTY_LSE = -1e30
"""Log-sum-exp of no logits at all; finite, so that differences of two of them are no NaN."""

State = tuple[Array, ...]
Masks = tuple[Array, ...]
Saved = tuple[Array, Array, Array, Masks, Array | None, Array, Array]


def blockwise_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: Array | None = None,
    precision: lax.PrecisionLike = None,
) -> Array:
    """Computes softmax(q kᵀ / sqrt(H)) v tile by tile, without ever holding a [T, S] array, forward or backward.

    The backward pass recomputes the weights from the saved log-sum-exp. Differentiable once and in reverse mode:
    forward mode (``jax.jvp``, ``jax.jacfwd``) and second derivatives raise, because the rule is a ``jax.custom_vjp``.

    Args:
        q: Queries [B, T, N, H]; float32, bfloat16 or float16.
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        mask: Boolean, True = attend, each axis that of [B, N, T, S] or 1. A query with nothing to attend to gives zero.
        dropout_rate: Rate of dropout on the attention weights; the kept ones are divided by 1 - rate.
        dropout_rng: Typed or raw key of the dropout, needed if the rate is not 0.
        precision: Precision of the matrix products.

    Returns:
        Array [B, T, N, H] of q's dtype. Logits, softmax and sums are float32 whatever the dtype.

    Raises:
        ValueError: The mask does not broadcast, the rate is outside [0, 1), or dropout lacks its key.

    Source: Milakov & Gimelshein 2018, arXiv:1805.02867 (online softmax); Rabe & Staats 2021, arXiv:2112.05682 (linear
    memory); Dao et al. 2022, arXiv:2205.14135 (gradient from the log-sum-exp, algorithm 4).
    """
    chex.assert_rank([q, k, v], 4)
    chex.assert_type([q, k, v], float)
    batch, num_queries, num_heads, head_dim = q.shape
    num_keys = k.shape[1]
    chex.assert_shape([k, v], (batch, num_keys, num_heads, head_dim))
    if mask is not None:
        chex.assert_type(mask, bool)
        full = (batch, num_heads, num_queries, num_keys)
        if mask.ndim != 4 or any(size not in (1, want) for size, want in zip(mask.shape, full, strict=True)):
            raise ValueError(f"mask has shape {mask.shape}, expected 1 or that of [B, N, T, S] = {full} on each axis")
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate={dropout_rate}, expected a rate in [0, 1)")
    if dropout_rate and dropout_rng is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs a dropout_rng")
    if not q.size or not k.size:
        return jnp.zeros_like(q)
    rng = dropout_rng if dropout_rate else None
    if rng is not None and not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    block_k, num_k = _cut(num_keys, BLOCK_KEYS)
    # Fewer keys leave the tile room for more queries; beyond four times as many nothing is gained.
    largest_q = BLOCK_QUERIES * min(4, BLOCK_KEYS // block_k)
    tiling = _Tiling(*_cut(num_queries, largest_q), block_k, num_k, float(dropout_rate), precision)
    padded_t, padded_s = tiling.block_q * tiling.num_q, tiling.block_k * tiling.num_k
    masks = []
    if mask is not None:
        masks += [_pad(_pad(mask, 2, padded_t if mask.shape[2] > 1 else 1), 3, padded_s if mask.shape[3] > 1 else 1)]
    if padded_s > num_keys:
        masks += [(jnp.arange(padded_s) < num_keys)[None, None, None]]
    q, k, v = _pad(q, 1, padded_t), _pad(k, 1, padded_s), _pad(v, 1, padded_s)
    return _jitted_attention(q, k, v, tuple(masks), rng, tiling)[:, :num_queries]


class _Place(NamedTuple):
    """Where a tile lies: batch entry, head, block of queries, block of keys."""

    b: Array
    n: Array
    i: Array
    j: Array


class _Tiling(NamedTuple):
    """How the logits of each head are cut into tiles, and what forward and backward do alike to every tile."""

    block_q: int
    num_q: int
    block_k: int
    num_k: int
    dropout_rate: float
    precision: lax.PrecisionLike

    def backward(self) -> _Tiling:
        """Smaller tiles; the same ones with dropout, which is drawn tile by tile."""
        if self.dropout_rate or self.block_q % 2 or self.block_q <= BLOCK_QUERIES_BACKWARD:
            return self
        return self._replace(block_q=self.block_q // 2, num_q=self.num_q * 2)

    def dot(self, a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, precision=self.precision)

    def mask(self, place: _Place, masks: Masks) -> Array | None:
        """The mask of a tile, each axis that of the tile or 1; None without masks."""
        starts = (place.b, place.n, place.i * self.block_q, place.j * self.block_k)
        sizes = (1, 1, self.block_q, self.block_k)
        tile = None
        for mask in masks:
            mask_starts = [0 if axis == 1 else start for axis, start in zip(mask.shape, starts, strict=True)]
            mask_sizes = [1 if axis == 1 else size for axis, size in zip(mask.shape, sizes, strict=True)]
            part = lax.dynamic_slice(mask, mask_starts, mask_sizes)[0, 0]
            tile = part if tile is None else tile & part
        return tile

    def keep(self, place: _Place, rng: Array | None) -> Array | None:
        """Which weights of a tile dropout keeps, by its place alone, so that none is stored; None without dropout."""
        if rng is None:
            return None
        for index in place:
            rng = jax.random.fold_in(rng, index)
        return jax.random.bernoulli(rng, 1.0 - self.dropout_rate, (self.block_q, self.block_k))

    def drop(self, keep: Array | None, tile: Array) -> Array:
        return tile if keep is None else jnp.where(keep, tile / (1.0 - self.dropout_rate), 0.0)


def _cut(size: int, largest: int) -> tuple[int, int]:
    """Blocks of equal size, without padding where a few more blocks avoid it."""
    fewest = -(-size // largest)
    num = next((num for num in range(fewest, 2 * fewest) if size % num == 0), fewest)
    return -(-size // num), num


def _pad(x: Array, axis: int, size: int) -> Array:
    return jnp.pad(x, [(0, size - length if a == axis else 0) for a, length in enumerate(x.shape)])


def _read(x: Array, b: Array, n: Array, block_idx: Array, block: int) -> Array:
    """One block of rows of one head of [B, T, N, H], as float32 [block, H]."""
    rows = lax.dynamic_slice(x, (b, block_idx * block, n, 0), (1, block, 1, x.shape[3]))
    return rows[0, :, 0].astype(jnp.float32)


def _write(x: Array, rows: Array, b: Array, n: Array, block_idx: Array) -> Array:
    """Counterpart of `_read`; XLA updates the carry of a loop in place."""
    rows = rows[None, :, None].astype(x.dtype)
    return lax.dynamic_update_slice(x, rows, (b, block_idx * rows.shape[1], n, 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q: Array, k: Array, v: Array, masks: Masks, rng: Array | None, tiling: _Tiling) -> Array:
    return _attention_forward(q, k, v, masks, rng, tiling)[0]


def _attention_forward(
    q: Array, k: Array, v: Array, masks: Masks, rng: Array | None, tiling: _Tiling
) -> tuple[Array, Saved]:
    def run(use_shift: bool) -> State:
        return _forward_tiles(q, k, v, masks, rng, tiling, use_shift=use_shift)

    bounded = _bounded(q, k)
    out, lse = run(True) if bounded is None else lax.cond(bounded, lambda: run(False), lambda: run(True))
    return out, (q, k, v, masks, rng, out, lse)


def _forward_tiles(
    q: Array, k: Array, v: Array, masks: Masks, rng: Array | None, tiling: _Tiling, *, use_shift: bool
) -> State:
    """Returns the output and the log-sum-exp of each row; the shift keeps exp from overflow and costs a pass."""
    num_heads, head_dim = q.shape[2:]

    def per_head(g: Array, state: State) -> State:
        b, n = g // num_heads, g % num_heads

        def per_keys(j: Array, state: State) -> State:
            k_rows, v_rows = (_read(x, b, n, j, tiling.block_k) for x in (k, v))

            def per_queries(i: Array, state: State) -> State:
                place = _Place(b, n, i, j)
                q_rows = _read(q, b, n, i, tiling.block_q) * (LOG2_E / math.sqrt(head_dim))
                logits, mask = tiling.dot(q_rows, k_rows.T), tiling.mask(place, masks)
                shift = _row_max(logits, mask) if use_shift else jnp.zeros_like(q_rows[:, :1])
                weights = _exp2(logits - shift if use_shift else logits, mask)
                total = weights.sum(1, keepdims=True)
                empty = total == 0.0
                weights = tiling.drop(tiling.keep(place, rng), weights)
                out = tiling.dot(weights, v_rows) / jnp.where(empty, 1.0, total)
                lse = jnp.where(empty, EMPTY_LSE, shift / LOG2_E + jnp.log(total))
                if tiling.num_k > 1:
                    old_out, old_lse = (_read(x, b, n, i, tiling.block_q) for x in state)
                    out = old_out + (out - old_out) * jax.nn.sigmoid(lse - old_lse)
                    lse = jnp.logaddexp(lse, old_lse)
                return tuple(_write(x, rows, b, n, i) for x, rows in zip(state, (out, lse), strict=True))

            return _loop(tiling.num_q, per_queries, state)

        return _loop(tiling.num_k, per_keys, state)

    zeros = jnp.zeros(q.shape, jnp.float32)
    out, lse = _loop(q.shape[0] * num_heads, per_head, (zeros, jnp.full_like(zeros[..., :1], EMPTY_LSE)))
    return out.astype(q.dtype), lse


def _loop(count: int, body: Callable[[Array, State], State], state: State) -> State:
    result: State = lax.fori_loop(0, count, body, state)
    return result


def _bounded(q: Array, k: Array) -> Array | None:
    """Whether no logit can exceed `SAFE_LOGIT`, by |q·k| <= |q| |k|; None where to ask costs more than it saves."""
    if k.shape[1] < 8 * k.shape[3]:
        return None
    longest_q, longest_k = (jnp.square(x.astype(jnp.float32)).sum(-1).max() for x in (q, k))
    return longest_q * longest_k < SAFE_LOGIT**2 * q.shape[3]


def _row_max(logits: Array, mask: Array | None) -> Array:
    top = (logits if mask is None else jnp.where(mask, logits, -jnp.inf)).max(1, keepdims=True)
    return jnp.where(top == -jnp.inf, 0.0, top)


def _exp2(x: Array, mask: Array | None) -> Array:
    """2**x of x <= 127 where the mask holds, else 0; below -126 it stays at 2**-126. XLA's own takes twice the time."""
    x = jnp.maximum(x, -126.0)
    whole = jnp.round(x)
    fraction = x - whole
    y = jnp.full_like(fraction, EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        y = y * fraction + coefficient
    y = y * lax.bitcast_convert_type((whole.astype(jnp.int32) + 127) << 23, jnp.float32)
    return y if mask is None else jnp.where(mask, y, 0.0)


def _attention_backward(tiling: _Tiling, saved: Saved, d_out: Array) -> tuple[Array, Array, Array, None, None]:
    q, k, v, masks, rng, out, lse = saved
    num_heads, head_dim = q.shape[2:]
    tiling = tiling.backward()
    dots = jnp.vecdot(out.astype(jnp.float32), d_out.astype(jnp.float32))[..., None]

    def per_head(g: Array, state: State) -> State:
        b, n = g // num_heads, g % num_heads

        def per_keys(j: Array, state: State) -> State:
            dq, dk, dv = state
            k_rows, v_rows = (_read(x, b, n, j, tiling.block_k) for x in (k, v))
            # On CPU a product with a transposed left operand runs at half speed. So the tiles are transposed, which
            # suits dk and dv, and dq transposes the small operand before and the result after. The barriers keep XLA
            # from folding these back into the product.
            (k_t,) = lax.optimization_barrier((k_rows.T,))

            def per_queries(i: Array, state: State) -> State:
                dq, dk_rows, dv_rows = state
                place = _Place(b, n, i, j)
                q_rows, do_rows, lse_rows, dot_rows = (_read(x, b, n, i, tiling.block_q) for x in (q, d_out, lse, dots))
                q_rows = q_rows * (LOG2_E / math.sqrt(head_dim))
                mask, keep = (None if m is None else m.T for m in (tiling.mask(place, masks), tiling.keep(place, rng)))
                weights = _exp2(tiling.dot(k_rows, q_rows.T) - lse_rows.T * LOG2_E, mask)
                d_weights = tiling.drop(keep, tiling.dot(v_rows, do_rows.T))
                d_logits = weights * (d_weights - dot_rows.T)
                (dq_t,) = lax.optimization_barrier((tiling.dot(k_t, d_logits),))
                dq_rows = dq_t.T / math.sqrt(head_dim)
                if tiling.num_k > 1:
                    dq_rows = dq_rows + _read(dq, b, n, i, tiling.block_q)
                dk_rows = dk_rows + tiling.dot(d_logits, q_rows)
                dv_rows = dv_rows + tiling.dot(tiling.drop(keep, weights), do_rows)
                return _write(dq, dq_rows, b, n, i), dk_rows, dv_rows

            zeros = jnp.zeros_like(k_rows)
            dq, dk_rows, dv_rows = _loop(tiling.num_q, per_queries, (dq, zeros, zeros))
            return dq, _write(dk, dk_rows / LOG2_E, b, n, j), _write(dv, dv_rows, b, n, j)

        return _loop(tiling.num_k, per_keys, state)

    state = (jnp.zeros(q.shape, jnp.float32), jnp.zeros_like(k), jnp.zeros_like(v))
    dq, dk, dv = _loop(q.shape[0] * num_heads, per_head, state)
    return dq.astype(q.dtype), dk, dv, None, None


_attention.defvjp(_attention_forward, _attention_backward)
_jitted_attention = jax.jit(_attention, static_argnums=5)
