"""The encoded anchors of one case, and the fingerprint that ties them to a model, its parameters and a condition."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from emmi_jax.config import AbUptConfig

_FREE_TO_CHANGE = ("implementation", "precision", "remat")
"""Settings that change how a model computes, not what."""


@jax.tree_util.register_static
@dataclass(frozen=True)
class Fingerprint:
    """Hashes of what a cache was computed with; a static pytree node."""

    model: int
    parameters: int
    condition: int


class AnchorCache(NamedTuple):
    """Keys and values of the anchors and the geometry of one case; a pytree of arrays.

    Attributes:
        entries: Flax's ``cache`` collection.
        fingerprint: What it was computed with.
    """

    entries: Any
    fingerprint: Fingerprint


def fingerprint(config: AbUptConfig, variables: Mapping[str, Any], condition: Any) -> Fingerprint:
    """Hashes the model's configuration, its parameters bit by bit (on their devices), and the condition."""
    described = {name: value for name, value in config.to_dict().items() if name not in _FREE_TO_CHANGE}
    digest = hashlib.sha256(json.dumps(described).encode()).digest()
    parameters, conditions = _hash_leaves(variables["params"]), _hash_leaves(condition)
    return Fingerprint(int.from_bytes(digest[:8], "big") >> 1, int(parameters), int(conditions))


def check_cache(cache: Any, config: AbUptConfig, variables: Mapping[str, Any], condition: Any) -> None:
    """Refuses a cache that was computed with anything else.

    Raises:
        ValueError: The cache is not from `encode`, or belongs to another model, other parameters or another condition.
    """
    if not isinstance(cache, AnchorCache):
        raise ValueError(f"cache must come from `encode`, got {type(cache).__name__}")
    expected = fingerprint(config, variables, condition)
    differing = [name for name in vars(expected) if getattr(cache.fingerprint, name) != getattr(expected, name)]
    if differing:
        raise ValueError(f"the cache was encoded with another {' and '.join(differing)}: encode the anchors again")


@jax.jit
def _hash_leaves(tree: Any) -> jax.Array:
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = jnp.asarray(leaf)
        bits = lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32).ravel()
        place = lax.iota(jnp.uint32, bits.size) * jnp.uint32(0x9E3779B1) + jnp.uint32(number * 0x85EBCA77 % 2**32)
        mixed = (bits ^ place) * jnp.uint32(0xC2B2AE35)
        total += ((mixed ^ (mixed >> 15)) * jnp.uint32(0x27D4EB2F)).sum(dtype=jnp.uint32)
    return total
