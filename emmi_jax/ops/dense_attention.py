"""Attention by its formula: every logit in memory at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp


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
    poison = None
    if mask is not None:
        k, v, poison = _set_aside_non_finite(k, v, mask)
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
    return (y if poison is None else y * poison).astype(q.dtype)


def _set_aside_non_finite(k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Replaces non-finite keys and values by zeros.

    A masked weight is zero, but zero times NaN is NaN. So the products run on zeros, and the outputs of queries that do
    attend to such a key are multiplied by NaN afterwards.

    Returns:
        Keys, values, and a factor of the outputs [B, T or 1, N or 1, 1]: NaN or 1.
    """
    finite = (jnp.isfinite(k) & jnp.isfinite(v)).all(axis=(2, 3))
    k, v = (jnp.where(finite[:, :, None, None], x, jnp.zeros_like(x)) for x in (k, v))
    reached = (mask & ~finite[:, None, None, :]).any(axis=-1)
    return k, v, jnp.where(jnp.swapaxes(reached, 1, 2)[..., None], jnp.nan, jnp.float32(1))
