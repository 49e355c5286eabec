"""Keys and values that are NaN or infinite where a mask hides them, as in padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def zero_non_finite(k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Replaces non-finite keys and values by zeros.

    A masked weight is zero, but zero times NaN is NaN. So the products run on zeros, and the caller writes NaN to the
    outputs of the queries that do attend to such a key.

    Args:
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        mask: Boolean, True = attend, each axis that of [B, N, T, S] or 1.

    Returns:
        Keys, values, and which outputs [B, T or 1, N, 1] attend to a key or value that is not finite.
    """
    finite = (jnp.isfinite(k) & jnp.isfinite(v)).all(axis=3)
    k, v = (jnp.where(finite[..., None], x, jnp.zeros_like(x)) for x in (k, v))
    reached = (mask & ~jnp.swapaxes(finite, 1, 2)[:, :, None]).any(axis=-1)
    return k, v, jnp.swapaxes(reached, 1, 2)[..., None]
