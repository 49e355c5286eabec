"""Attention on NVIDIA GPUs by cuDNN's flash attention."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, **_: object) -> jax.Array:
    """Computes softmax(q kᵀ / sqrt(H)) v in half precision; the mask, if any, is [B or 1, 1, 1, S or 1]."""
    num_queries, num_keys = q.shape[1], k.shape[1]
    # The backward pass supports even lengths only.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if mask is None and num_keys % 2 == 0:
        return attend(q, k, v)[:, :num_queries]
    if mask is None:
        num_real = jnp.full(q.shape[:1], num_keys, jnp.int32)
    else:
        # cuDNN would need a bias [T, S] for a mask. Attention does not depend on the order of its keys, so with the
        # real keys first it needs only their number.
        real = jnp.pad(jnp.broadcast_to(mask[:, 0, 0, :], (len(k), num_keys)), ((0, 0), (0, num_keys % 2)))
        num_real = real.sum(axis=1, dtype=jnp.int32)
        order = jnp.argsort(~real, axis=1)[:, :, None, None]
        is_real = jnp.arange(k.shape[1])[None, :, None, None] < num_real[:, None, None, None]
        k, v = (jnp.where(is_real, jnp.take_along_axis(x, order, axis=1), jnp.zeros_like(x)) for x in (k, v))
    y = attend(q, k, v, key_value_seq_lengths=jnp.maximum(num_real, 1))
    return jnp.where((num_real > 0)[:, None, None, None], y, jnp.zeros_like(y))[:, :num_queries]


def cudnn_limit(q: jax.Array, k: jax.Array) -> str | None:
    """Returns why the GPU and the installed cuDNN cannot compute attention of these arrays, or None."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16 (the arrays are {q.dtype})"
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), q, k, k)
    except (NotImplementedError, RuntimeError) as error:
        return f"does not serve these arrays ({error})"
    return None
