"""Dropout that may be decided while a program runs: `nn.remat` and `nn.jit` turn `deterministic` into an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.ops.sharding import partition_automatically

Flag: TypeAlias = bool | jax.Array
"""A boolean, which a lifted transform may trace."""


def with_dropout(
    module: nn.Module, rate: float, deterministic: Flag, compute: Callable[[jax.Array | None], jax.Array]
) -> jax.Array:
    """Calls a function with a key for its dropout, or None where it has none.

    Args:
        module: The module whose rng ``dropout`` gives the key.
        rate: The rate of the dropout.
        deterministic: Whether it is off. If it is traced, both ways are compiled and one is run; where it turns out to
            be on without an rng, the result is NaN.
        compute: From a key or None to an array; it uses no module.
    """
    if not rate:
        return compute(None)
    if not isinstance(deterministic, jax.Array):
        return compute(None if deterministic else module.make_rng("dropout"))
    if not module.has_rng("dropout"):
        return jnp.where(deterministic, compute(None), jnp.nan)
    key = module.make_rng("dropout")
    dropped: jax.Array = jax.lax.cond(deterministic, lambda: compute(None), lambda: compute(key))
    return dropped


def drop(x: jax.Array, rate: float, key: jax.Array | None, *, whole_samples: bool = False) -> jax.Array:
    """Zeroes entries, or samples of [B, ...], at a rate and scales up the others; without a key, none."""
    if key is None:
        return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1) if whole_samples else x.shape

    def apply(x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, 1 - rate, shape), x / (1 - rate), jnp.zeros_like(x))

    return partition_automatically(apply, jax.typeof(x).sharding.spec, x)(x, key)
