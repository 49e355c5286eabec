"""Key padding for kernels that take the number of real keys in place of a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emmi_jax.ops.sharding import device_count, gather_axis


def real_keys_first(k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sorts the real keys before the others: attention does not depend on their order.

    Args:
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        mask: Boolean, True = attend, [B or 1, 1, 1, S or 1].

    Returns:
        Keys and values, those that are not real replaced by zeros, and the number of real ones [B] int32.
    """
    if device_count(k, v) > 1:
        k, v = gather_axis(k, 1), gather_axis(v, 1)
    real = jnp.broadcast_to(mask[:, 0, 0, :], k.shape[:2])
    num_real = real.sum(axis=1, dtype=jnp.int32)
    order = jnp.argsort(~real, axis=1)[:, :, None, None]
    is_real = jnp.arange(k.shape[1])[None, :, None, None] < num_real[:, None, None, None]
    k, v = (jnp.where(is_real, jnp.take_along_axis(x, order, axis=1), jnp.zeros_like(x)) for x in (k, v))
    return k, v, num_real
