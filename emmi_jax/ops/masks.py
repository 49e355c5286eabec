"""Masks of attention: rectangles of the logits, keys that are not real, and numbers that a mask hides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from emmi_jax.ops.sharding import device_count, gather_axis

Rectangle: TypeAlias = tuple[int, int, int, int]
"""Queries from the first to before the second attend to keys from the third to before the fourth."""


def rectangle_mask(rectangles: Sequence[Rectangle], num_queries: int, num_keys: int) -> np.ndarray:
    """Returns the union of the rectangles as booleans [T, S]."""
    mask = np.zeros((num_queries, num_keys), bool)
    for query_start, query_stop, key_start, key_stop in rectangles:
        mask[query_start:query_stop, key_start:key_stop] = True
    return mask


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
