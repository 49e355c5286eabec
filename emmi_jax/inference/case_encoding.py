"""A whole case in numbers: traits that mean something by themselves, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.familiarity import Description
from emmi_jax.deploy.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.encoded_set import EncodedSet
from emmi_jax.ops.arrays import at_least_float32

_GEOMETRY = "kv"
"""The module of a perceiver that keeps keys and values of the geometry."""


def describe(encoded: EncodedSet) -> Description:
    """Describes a case by its first member and draw, in float64."""
    first = encoded.variants[0][0]
    parts = case_traits(first.shape, flat_condition(first.condition)), pooled(first.cache.entries)
    return Description(*(np.asarray(values, np.float64) for values in parts))


def shape_points(anchors: Mapping[str, Any], geometry: Any) -> Any:
    """Returns the points that show the shape to a model: those of the geometry, or else the anchors of the surface.

    None for a model that sees neither.
    """
    return anchors.get(GEOMETRY_BRANCH) if geometry is None else geometry.position


@jax.jit
def case_traits(points: Any, condition: Any) -> jax.Array:
    """Returns lowest and highest coordinates, least, mean and largest distance from their middle, and the condition.

    The middle of the box depends less on which points were drawn than their mean.

    Args:
        points: Points [N, n] that show the shape; None for none.
        condition: The condition [c] in model units; empty for none.
    """
    if points is None:
        return jnp.asarray(condition)
    low, high = points.min(axis=0), points.max(axis=0)
    radius = jnp.sqrt(((points - (low + high) / 2) ** 2).sum(axis=1))
    radii = jnp.stack([radius.min(), radius.mean(), radius.max()])
    return jnp.concatenate([low, high, radii, condition.astype(points.dtype)])


def least_reach(cases: Sequence[Description], num_conditions: int) -> NDArray[np.float64]:
    """Returns what half of the range of each trait counts as at least: of lengths a hundredth of the largest radius."""
    traits = np.array([case.traits for case in cases])
    num_lengths = traits.shape[1] - num_conditions
    radius = traits[:, num_lengths - 1].mean() if num_lengths else 0.0
    return np.concatenate([np.full(num_lengths, 0.01 * radius), np.zeros(num_conditions)])


@jax.jit
def pooled(entries: Any) -> jax.Array:
    """Returns mean and deviation over the tokens of cached values; differentiable.

    The values are those of the geometry, for models that have it, or else of all anchors. Keys are rotated by their
    positions, so they are left out.

    Args:
        entries: Flax's ``cache`` collection of one case.
    """
    groups = list(_groups(entries))
    of_geometry = [entry for name, entry in groups if name == _GEOMETRY]
    parts = []
    for entry in of_geometry or [entry for _, entry in groups]:
        value = at_least_float32(entry["value"][0].reshape(entry["value"].shape[1], -1))
        is_real = entry["mask"][0] if "mask" in entry else jnp.ones(len(value), bool)
        share = is_real[:, None].astype(value.dtype) / is_real.sum(dtype=value.dtype)
        mean = (share * value).sum(axis=0)
        variance = (share * (value - mean) ** 2).sum(axis=0)
        parts += [mean, jnp.sqrt(variance + 1e-6)]
    return jnp.concatenate(parts)


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
