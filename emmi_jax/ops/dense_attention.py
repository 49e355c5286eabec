"""Attention by its formula: every logit in memory at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emmi_jax.ops.masks import zero_non_finite


def dense_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    precision: str | None = None,
) -> jax.Array:
    """Computes softmax(q kᵀ / sqrt(H)) v; see `dot_product_attention` for arguments and result."""
    reached = None
    if mask is not None:
        k, v, reached = zero_non_finite(k, v, mask)
    logits = jnp.einsum("btnh,bsnh->bnts", q, k, precision=precision, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, -3e38), axis=-1), 0.0)
    if dropout_rate and dropout_rng is not None:
        keep = jax.random.bernoulli(dropout_rng, 1.0 - dropout_rate, weights.shape)
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    y = jnp.einsum(
        "bnts,bsnh->btnh", weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
    )
    return (y if reached is None else y * jnp.where(reached, jnp.nan, jnp.float32(1))).astype(q.dtype)
