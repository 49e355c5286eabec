"""The passes of tiled attention over its logits: forward, tangent, backward, and a plain one that JAX differentiates.

Source: Milakov & Gimelshein 2018, arXiv:1805.02867 (online softmax); Rabe & Staats 2021, arXiv:2112.05682 (linear
memory); Dao et al. 2022, arXiv:2205.14135 (gradient from the statistics of the rows, algorithm 4).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from emmi_jax.ops.attention_tiles import At, Masks, Place, Tiling, transpose
from emmi_jax.ops.sharding import vary_alike

SAFE_LOGIT = 40.0
"""Up to this logit exp needs no row maximum: float32 overflows at 88, which leaves room for the sums."""

LOG2_E = math.log2(math.e)

# Polynomial for 2**x on [-1/2, 1/2], highest power first; its largest relative error is 8e-8.
EXP2_COEFFICIENTS = (0.00132764701, 0.00967554189, 0.0555071346, 0.240221202, 0.693146944, 1.00000012)

NO_LOGIT = -1e30
"""The maximum of no logits; finite, so that the difference of two of them is not NaN."""

State = tuple[Array, ...]


class Inputs(NamedTuple):
    """Inputs of attention: queries [B, T, N, H], keys and values [B, S, N, H], masks, key of the dropout.

    Queries and keys fill whole blocks.
    """

    q: Array
    k: Array
    v: Array
    masks: Masks
    rng: Array | None


class Outputs(NamedTuple):
    """The output [B, T, N, H], and what the weights of each row are recomputed from.

    A weight is 2**(logit - shift) * inverse_sum, with logits to base 2. One number could hold both, but beside a large
    shift the logarithm of the sum would lose its digits. Both are float32 [B, T, N, 1].
    """

    out: Array
    shift: Array
    inverse_sum: Array


def forward(inputs: Inputs, tiling: Tiling) -> Outputs:
    """Computes attention and the statistics of its rows."""
    bounded = _bounded(inputs, tiling)
    if bounded is None:
        return _forward(inputs, tiling, use_shift=True)
    outputs: Outputs = lax.cond(
        bounded,
        lambda: _forward(inputs, tiling, use_shift=False),
        lambda: _forward(inputs, tiling, use_shift=True),
    )
    return outputs


def _bounded(inputs: Inputs, tiling: Tiling) -> Array | None:
    """Returns whether |q·k| <= |q| |k| keeps logits below `SAFE_LOGIT`; None where this costs more than it saves."""
    q, k = inputs.q, inputs.k
    # Devices that share the work would have to agree on an answer.
    if not isinstance(k.shape[1], int) or k.shape[1] < 8 * k.shape[3] or tiling.shares != (1, 1, 1):
        return None
    longest_q, longest_k = (jnp.square(x.astype(jnp.float32)).sum(-1).max() for x in (q, k))
    return longest_q * longest_k < SAFE_LOGIT**2 * q.shape[3]


def _forward(inputs: Inputs, tiling: Tiling, *, use_shift: bool) -> Outputs:
    """Computes attention; the shift keeps exp from overflowing and costs a pass over each tile."""
    q, k, v = _cut(inputs, tiling)

    def per_keys(b: Array, n: Array, j: Array, state: State) -> State:
        k_rows, v_rows = (tiling.read(x, (b, n, j), is_key=True) for x in (k, v))

        def per_queries(i: Array, state: State) -> State:
            place = Place(b, n, i, j)
            q_rows = _read_scaled(q, (b, n, i), tiling)
            logits, mask = tiling.dot(q_rows, transpose(k_rows)), tiling.mask(place, inputs.masks)
            old_out, old_shift, old_total = (tiling.read(x, (b, n, i)) for x in state)
            shift = jnp.maximum(old_shift, _row_max(logits, mask)) if use_shift else old_shift
            weights = _exp2(logits - shift if use_shift else logits, mask)
            total = weights.sum(-1, keepdims=True)
            out = tiling.dot(tiling.drop(tiling.keep(place, inputs.rng), weights), v_rows)
            if tiling.num_k != 1:
                rescale = jnp.exp2(old_shift - shift) if use_shift else 1.0
                out, total = old_out * rescale + out, old_total * rescale + total
            return tuple(tiling.write(x, rows, (b, n, i)) for x, rows in zip(state, (out, shift, total), strict=True))

        return _loop(tiling.num_q, per_queries, state)

    zeros = jnp.zeros(q.shape, jnp.float32)
    rows = zeros[..., :1]
    state = (zeros, jnp.full_like(rows, NO_LOGIT if use_shift else 0.0), rows)
    out, shift, total = map(tiling.join, _per_tile(per_keys, inputs, tiling, state))
    inverse_sum = jnp.where(total == 0.0, 0.0, 1.0 / total)
    return Outputs((out * inverse_sum).astype(q.dtype), jnp.where(total == 0.0, 0.0, shift), inverse_sum)


def tangent(inputs: Inputs, outputs: Outputs, tangents: Sequence[Array | None], tiling: Tiling) -> Array:
    """Computes the derivative of the output along tangents of q, k and v; None is a tangent of zero."""
    (q, k, v), shift = _cut(inputs, tiling), tiling.cut(outputs.shift)
    dq, dk, dv = (None if x is None else tiling.cut(x, is_key=i > 0) for i, x in enumerate(tangents))

    def per_keys(b: Array, n: Array, j: Array, state: State) -> State:
        k_rows, v_rows = (tiling.read(x, (b, n, j), is_key=True) for x in (k, v))
        dk_rows, dv_rows = (None if x is None else tiling.read(x, (b, n, j), is_key=True) for x in (dk, dv))

        def per_queries(i: Array, state: State) -> State:
            place = Place(b, n, i, j)
            q_rows = _read_scaled(q, (b, n, i), tiling)
            keep = tiling.keep(place, inputs.rng)
            logits = tiling.dot(q_rows, transpose(k_rows))
            weights = _exp2(logits - tiling.read(shift, (b, n, i)), tiling.mask(place, inputs.masks))
            d_out, d_total = (tiling.read(x, (b, n, i)) for x in state)
            if dv_rows is not None:
                d_out = d_out + tiling.dot(tiling.drop(keep, weights), dv_rows)
            d_logits = []
            if dq is not None:
                d_logits += [tiling.dot(_read_scaled(dq, (b, n, i), tiling), transpose(k_rows))]
            if dk_rows is not None:
                d_logits += [tiling.dot(q_rows, transpose(dk_rows))]
            if d_logits:
                d_weights = weights * (sum(d_logits[1:], d_logits[0]) / LOG2_E)
                d_total = d_total + d_weights.sum(-1, keepdims=True)
                d_out = d_out + tiling.dot(tiling.drop(keep, d_weights), v_rows)
            return tiling.write(state[0], d_out, (b, n, i)), tiling.write(state[1], d_total, (b, n, i))

        return _loop(tiling.num_q, per_queries, state)

    zeros = jnp.zeros(q.shape, jnp.float32)
    d_out, d_total = map(tiling.join, _per_tile(per_keys, inputs, tiling, (zeros, zeros[..., :1])))
    return ((d_out - d_total * outputs.out.astype(jnp.float32)) * outputs.inverse_sum).astype(q.dtype)


def backward(inputs: Inputs, outputs: Outputs, d_out: Array, tiling: Tiling) -> State:
    """Computes the cotangents of q, k and v from that of the output."""
    d_out = d_out.astype(jnp.float32) * outputs.inverse_sum
    dots = jnp.vecdot(outputs.out.astype(jnp.float32), d_out)[..., None]
    of_queries = [tiling.cut(x) for x in (d_out, outputs.shift, dots)]
    q, k, v = _cut(inputs, tiling)

    def per_keys(b: Array, n: Array, j: Array, state: State) -> State:
        dq, dk, dv = state
        k_rows, v_rows = (tiling.read(x, (b, n, j), is_key=True) for x in (k, v))

        def per_queries(i: Array, state: State) -> State:
            dq, dk_t, dv_t = state
            place = Place(b, n, i, j)
            q_rows = _read_scaled(q, (b, n, i), tiling)
            do_rows, shift, dot_rows = (tiling.read(x, (b, n, i)) for x in of_queries)
            mask, keep = tiling.mask(place, inputs.masks), tiling.keep(place, inputs.rng)
            weights = _exp2(tiling.dot(q_rows, transpose(k_rows)) - shift, mask)
            d_logits = weights * (tiling.drop(keep, tiling.dot(do_rows, transpose(v_rows))) - dot_rows)
            dq_rows = tiling.dot(d_logits, k_rows) / math.sqrt(q.shape[-1])
            if tiling.num_k != 1:
                dq_rows = dq_rows + tiling.read(dq, (b, n, i))
            # On CPU a product with a transposed left operand runs at half speed. So the small operand is transposed
            # before, and the result after. The barrier keeps XLA from folding this back into the product.
            q_t, do_t = lax.optimization_barrier((transpose(q_rows), transpose(do_rows)))
            dk_t = dk_t + tiling.dot(q_t, d_logits)
            dv_t = dv_t + tiling.dot(do_t, tiling.drop(keep, weights))
            return tiling.write(dq, dq_rows, (b, n, i)), dk_t, dv_t

        # Every share of queries has a sum of its own, added up once per block of keys.
        zeros = jnp.zeros((*tiling.several, *transpose(k_rows).shape[-2:]))
        dq, *sums = _loop(tiling.num_q, per_queries, vary_alike((dq, zeros, zeros)))
        dk_rows, dv_rows = map(transpose, lax.optimization_barrier(sums))
        if tiling.shares.queries > 1:
            dk_rows, dv_rows = (x.sum(-3, keepdims=True) for x in (dk_rows, dv_rows))
        dk = tiling.write(dk, dk_rows / LOG2_E, (b, n, j), is_key=True)
        return dq, dk, tiling.write(dv, dv_rows, (b, n, j), is_key=True)

    state = (jnp.zeros(q.shape, jnp.float32), jnp.zeros_like(k), jnp.zeros_like(v))
    dq, dk, dv = _per_tile(per_keys, inputs, tiling, state)
    return tiling.join(dq.astype(q.dtype)), tiling.join(dk, is_key=True), tiling.join(dv, is_key=True)


def plain(inputs: Inputs, tiling: Tiling) -> Array:
    """Computes the same output block by block of queries, so that JAX can differentiate it in memory linear in keys."""
    whole_rows = tiling._replace(block_k=inputs.k.shape[1], num_k=1)
    q, k, v = _cut(inputs, tiling)
    batch, num_heads = _num_heads(inputs, tiling)

    @jax.checkpoint
    def per_queries(step: Array) -> Array:
        (g, i), j = jnp.divmod(step, tiling.num_q), jnp.zeros_like(step)
        place = Place(g // num_heads, g % num_heads, i, j)
        q_rows = tiling.read(q, place[:3])
        k_rows, v_rows = (whole_rows.read(x, (*place[:2], j), is_key=True) for x in (k, v))
        logits, mask = (
            tiling.dot(q_rows, transpose(k_rows)) / math.sqrt(q.shape[-1]),
            whole_rows.mask(place, inputs.masks),
        )
        weights = jax.nn.softmax(logits if mask is None else jnp.where(mask, logits, NO_LOGIT))
        weights = weights if mask is None else jnp.where(mask, weights, 0.0)
        if inputs.rng is not None:
            keep = [tiling.keep(place._replace(j=j + block), inputs.rng) for block in range(tiling.num_k)]
            weights = tiling.drop(jnp.concatenate([m for m in keep if m is not None], axis=-1), weights)
        return tiling.dot(weights, v_rows).astype(q.dtype)

    rows = lax.map(per_queries, jnp.arange(batch * num_heads * tiling.num_q))
    rows = rows.reshape(batch, num_heads, tiling.num_q, *tiling.shares, tiling.block_q, q.shape[-1])
    return rows.transpose(3, 0, 5, 2, 6, 4, 1, 7).reshape(inputs.q.shape)


def _cut(inputs: Inputs, tiling: Tiling) -> tuple[Array, Array, Array]:
    return tiling.cut(inputs.q), tiling.cut(inputs.k, is_key=True), tiling.cut(inputs.v, is_key=True)


def _num_heads(inputs: Inputs, tiling: Tiling) -> tuple[int, int]:
    """Returns how many batch entries and heads a share has."""
    return inputs.q.shape[0] // tiling.shares.batch, inputs.q.shape[2] // tiling.shares.heads


def _per_tile(body: Callable[..., State], inputs: Inputs, tiling: Tiling, state: State) -> State:
    """Runs body(b, n, j, state) for each batch entry, head and block of keys of a share."""
    batch, num_heads = _num_heads(inputs, tiling)

    def per_head(g: Array, state: State) -> State:
        return _loop(tiling.num_k, functools.partial(body, g // num_heads, g % num_heads), state)

    return _loop(batch * num_heads, per_head, vary_alike((inputs.q, state))[1])


def _loop(count: int, body: Callable[[Array, State], State], state: State) -> State:
    result: State = lax.fori_loop(0, count, body, state)
    return result


def _read_scaled(q: Array, at: At, tiling: Tiling) -> Array:
    """Reads queries so that their products with keys are logits to base 2."""
    return tiling.read(q, at) * (LOG2_E / math.sqrt(q.shape[-1]))


def _row_max(logits: Array, mask: Array | None) -> Array:
    return (logits if mask is None else jnp.where(mask, logits, NO_LOGIT)).max(-1, keepdims=True)


def _exp2(x: Array, mask: Array | None = None) -> Array:
    """Returns 2**x for x <= 127, at least 2**-126, and 0 where masked. XLA's own exp2 takes twice the time."""
    x = jnp.maximum(x, -126.0)
    whole = jnp.round(x)
    fraction = x - whole
    y = jnp.full_like(fraction, EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        y = y * fraction + coefficient
    y = y * lax.bitcast_convert_type((whole.astype(jnp.int32) + 127) << 23, jnp.float32)
    return y if mask is None else jnp.where(mask, y, 0.0)
