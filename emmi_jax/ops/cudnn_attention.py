"""Attention on NVIDIA GPUs by cuDNN's flash attention."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from emmi_jax.ops.masks import real_keys_first


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, **_: object) -> jax.Array:
    """Computes softmax(q kᵀ / sqrt(H)) v in half precision; the mask, if any, is [B or 1, 1, 1, S or 1]."""
    num_queries, num_keys = q.shape[1], k.shape[1]
    num_real = None
    if mask is not None:
        # cuDNN would need a bias [T, S] for a mask.
        k, v, num_real = real_keys_first(k, v, mask)
    elif num_keys % 2:
        num_real = jnp.full(q.shape[:1], num_keys, jnp.int32)
    # The backward pass supports even lengths only.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if num_real is None:
        return attend(q, k, v)[:, :num_queries]
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
