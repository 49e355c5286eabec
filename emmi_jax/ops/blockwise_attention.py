"""Exact attention in tiles, with its own derivatives: memory linear in tokens, and fast on CPU."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from emmi_jax.ops import attention_passes
from emmi_jax.ops.attention_passes import Inputs, Outputs
from emmi_jax.ops.attention_tiles import Masks, Shares, Tiling
from emmi_jax.ops.linear_call import LinearFunction, linear_call
from emmi_jax.ops.masks import zero_non_finite
from emmi_jax.ops.sharding import device_count, gather_axis, num_shares, partition_automatically, vary_alike

# Tiles of at most 2048 x 2048 float32 logits: small enough to stay in the L3 cache until the next product reads them,
# large enough to keep all cores busy within one two-dimensional product (batched products run several times slower).
# The backward pass holds twice as many tiles at a time, so it halves them.
BLOCK_QUERIES = 2048
BLOCK_QUERIES_BACKWARD = 1024
BLOCK_KEYS = 2048
# A symbolic size is always padded to a multiple of its tile.
BLOCK_SYMBOLIC = 512


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

    First derivatives, forward and reverse, recompute the weights tile by tile. Higher ones are exact too, slower, and
    hold the logits of one block of queries at a time. Devices divide up a sharded batch, sharded heads and queries.

    `dot_product_attention` checks the arguments and says what they are. A query with nothing to attend to gives zero.
    NaN in a key or value reaches only the queries that attend to it. Which weights dropout drops depends on the number
    of devices. Logits, softmax and sums are float32 whatever the dtype.
    """
    rng = dropout_rng if dropout_rate else None
    if rng is not None and not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        rng = jax.random.wrap_key_data(rng)
    attend = functools.partial(_attend, dropout_rate=float(dropout_rate), precision=precision)
    return partition_automatically(attend, jax.typeof(q).sharding.spec, q, k, v)(q, k, v, mask, rng)


def _attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    rng: Array | None,
    *,
    dropout_rate: float,
    precision: lax.PrecisionLike,
) -> Array:
    num_devices = device_count(q, k, v)
    tiling = _tiling(q.shape, k.shape[1], num_devices, dropout_rate, precision)
    share_t, padded_t, padded_s = tiling.shares.queries, tiling.block_q * tiling.num_q, tiling.block_k * tiling.num_k
    if num_devices > 1:
        k, v = gather_axis(k, 1), gather_axis(v, 1)
    masks, reached = [], None
    if mask is not None:
        k, v, reached = zero_non_finite(k, v, mask)
        mask = _pad(mask, 2, share_t, padded_t) if mask.shape[2] != 1 else mask
        masks += [_pad(mask, 3, 1, padded_s) if mask.shape[3] != 1 else mask]
    # Symbolic sizes have no order, but they can be told apart.
    if padded_s != k.shape[1]:
        masks += [(jnp.arange(padded_s) < k.shape[1])[None, None, None]]
    padded = (_pad(q, 1, share_t, padded_t), _pad(k, 1, 1, padded_s), _pad(v, 1, 1, padded_s))
    out = _jitted_attention(*vary_alike((*padded, tuple(masks), rng)), tiling).out
    out = out.reshape(q.shape[0], share_t, padded_t, *q.shape[2:])[:, :, : q.shape[1] // share_t].reshape(q.shape)
    return out if reached is None else jnp.where(reached, jnp.nan, out)


def _tiling(
    shape: tuple[int, ...], num_keys: int, num_devices: int, dropout_rate: float, precision: lax.PrecisionLike
) -> Tiling:
    """Chooses the largest tiles that suit each device once the devices have divided up the shares."""
    batch, num_queries, num_heads, _ = shape
    shares = Shares(*(num_shares(size, num_devices) for size in (batch, num_heads, num_queries)))
    at_once = (shares.batch if isinstance(batch, int) else num_devices) * shares.heads
    block_k, num_k = _cut(num_keys, BLOCK_KEYS // math.isqrt(max(1, at_once // num_devices)))
    # Fewer keys leave the tile room for more queries; beyond four times as many nothing is gained.
    largest_q = BLOCK_QUERIES * min(4, BLOCK_KEYS // block_k) * num_devices // (at_once * shares.queries)
    block_q, num_q = _cut(num_queries // shares.queries, max(1, largest_q))
    is_large = block_q * at_once * shares.queries > BLOCK_QUERIES_BACKWARD * num_devices
    return Tiling(shares, block_q, num_q, block_k, num_k, is_large, dropout_rate, precision)


def _cut(size: int, largest: int) -> tuple[int, int]:
    """Cuts an axis into blocks of equal size, without padding where a few more blocks avoid it."""
    if not isinstance(size, int):
        block = min(largest, BLOCK_SYMBOLIC)
        return block, -(-size // block)
    fewest = -(-size // largest)
    num = next((num for num in range(fewest, 2 * fewest) if size % num == 0), fewest)
    return -(-size // num), num


def _pad(x: Array, axis: int, num_shares: int, size: int) -> Array:
    """Pads every share of an axis to a size."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    length = x.shape[axis] // num_shares
    x = x.reshape(*before, num_shares, length, *after)
    x = jnp.pad(x, [(0, size - length if a == axis + 1 else 0) for a in range(x.ndim)])
    return x.reshape(*before, num_shares * size, *after)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _attention(q: Array, k: Array, v: Array, masks: Masks, rng: Array | None, tiling: Tiling) -> Outputs:
    return attention_passes.forward(Inputs(q, k, v, masks, rng), tiling)


@functools.partial(_attention.defjvp, symbolic_zeros=True)
def _attention_jvp(tiling: Tiling, primals: Any, tangents: Any) -> tuple[Outputs, Outputs]:
    outputs = _attention(*primals, tiling)
    residuals, tree = jax.tree.flatten((Inputs(*primals), outputs))
    moved = [i for i in range(3) if not isinstance(tangents[i], SymbolicZero)]
    function = _derivative(tree, moved, tiling)
    (d_out,) = linear_call(function, residuals, [tangents[i] for i in moved])
    # Only derivatives read the statistics of the rows, and `linear_call` differentiates with respect to the inputs.
    return outputs, Outputs(d_out, *map(jnp.zeros_like, outputs[1:]))


def _derivative(tree: Any, moved: list[int], tiling: Tiling) -> LinearFunction:
    """Returns the derivative of the output along some of q, k and v; its residuals are inputs and outputs, flat."""

    def apply(residuals: list[Any], tangents: list[Array]) -> list[Array]:
        given = dict(zip(moved, tangents, strict=True))
        inputs, outputs = jax.tree.unflatten(tree, residuals)
        return [attention_passes.tangent(inputs, outputs, [given.get(i) for i in range(3)], tiling.for_derivatives())]

    def transpose(residuals: list[Any], cotangents: list[Array]) -> list[Array]:
        inputs, outputs = jax.tree.unflatten(tree, residuals)
        gradients = attention_passes.backward(inputs, outputs, cotangents[0], tiling.for_derivatives())
        return [gradients[i] for i in moved]

    def plain(residuals: list[Any]) -> tuple[Any, list[Array]]:
        inputs, _ = jax.tree.unflatten(tree, residuals)

        def attend(*arrays: Array) -> list[Array]:
            everything = list(inputs)
            for i, x in zip(moved, arrays, strict=True):
                everything[i] = x
            return [attention_passes.plain(Inputs(*everything), tiling.for_derivatives())]

        return attend, [inputs[i] for i in moved]

    def apply_plain(residuals: list[Any], tangents: list[Array]) -> list[Array]:
        attend, arrays = plain(residuals)
        return jax.jvp(attend, arrays, tangents)[1]

    def transpose_plain(residuals: list[Any], cotangents: list[Array]) -> list[Array]:
        attend, arrays = plain(residuals)
        return list(jax.vjp(attend, *arrays)[1](cotangents))

    return LinearFunction(apply, transpose, apply_plain, transpose_plain)


_jitted_attention = jax.jit(_attention, static_argnums=5)
