"""What a model makes of a whole case, as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from emmi_jax.inference.encoded_set import EncodedSet

_GEOMETRY = "kv"
"""The module of a perceiver that keeps keys and values of the geometry."""


def case_encoding(encoded: EncodedSet) -> NDArray[np.float64]:
    """Returns the encoding [D] of a case by its first member and draw."""
    first = encoded.variants[0][0]
    return np.asarray(pooled(first.cache.entries, flat_condition(first.condition)), np.float64)


@jax.jit
def pooled(entries: Any, condition: jax.Array) -> jax.Array:
    """Returns mean and deviation over the tokens of cached values, and the condition [c]; differentiable.

    The values are those of the geometry, for models that have it, or else of all anchors. Keys are rotated by their
    positions, so they are left out.

    Args:
        entries: Flax's ``cache`` collection of one case.
        condition: The condition in model units; empty for none.
    """
    groups = list(_groups(entries))
    of_geometry = [entry for name, entry in groups if name == _GEOMETRY]
    parts = []
    for entry in of_geometry or [entry for _, entry in groups]:
        value = entry["value"][0].reshape(entry["value"].shape[1], -1).astype(jnp.float32)
        is_real = entry["mask"][0] if "mask" in entry else jnp.ones(len(value), bool)
        share = is_real[:, None].astype(value.dtype) / is_real.sum(dtype=value.dtype)
        mean = (share * value).sum(axis=0)
        variance = (share * (value - mean) ** 2).sum(axis=0)
        parts += [mean, jnp.sqrt(variance + 1e-6)]
    return jnp.concatenate([*parts, condition.astype(jnp.float32)])


def _groups(entries: Any, name: str = "") -> Any:
    if isinstance(entries, Mapping) and "value" in entries:
        yield name, entries
    elif isinstance(entries, Mapping):
        for key in sorted(entries):
            yield from _groups(entries[key], key)


def flat_condition(condition: Any) -> NDArray[np.float32]:
    """Returns a condition in model units, an array or one by name each, as one vector; an empty one for none."""
    leaves = [np.ravel(np.asarray(leaf, np.float32)) for leaf in jax.tree.leaves(condition)]
    return np.concatenate(leaves) if leaves else np.zeros(0, np.float32)
