"""Initial parameters of the model."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax.core import meta

from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.models.ab_upt import AnchoredBranchedUPT

Params: TypeAlias = Any
"""The parameter tree of a model: nested dicts of arrays."""


def init_params(model: AnchoredBranchedUPT, *, seed: int = 0) -> Params:
    """Initialises the parameters of a model.

    Args:
        model: The model.
        seed: Seed of the random numbers.

    Returns:
        The parameter tree, plain arrays without metadata.
    """
    return _init(model, jax.random.key(seed))


@functools.partial(jax.jit, static_argnames="model")
def _init(model: AnchoredBranchedUPT, key: jax.Array) -> Params:
    return meta.unbox(model.init(key, **dummy_inputs(model))["params"])


def dummy_inputs(model: AnchoredBranchedUPT) -> dict[str, Any]:
    """Returns the smallest inputs that reach every parameter: one case with one point everywhere."""
    config = model.config
    position = jnp.zeros((1, 1, config.num_position_axes))
    inputs: dict[str, Any] = {"anchors": dict.fromkeys(config.branches, position)}
    if config.has_geometry:
        features_dim = config.supernode_pooling.input_features_dim
        features = None if features_dim is None else jnp.zeros((1, 1, features_dim))
        inputs["geometry"] = Geometry(position, jnp.zeros((1, 1), jnp.int32), features=features)
    if config.conditioning_dims is not None:
        inputs["condition"] = {name: jnp.zeros((1, channels)) for name, channels in config.named_conditions.items()}
    elif config.condition_dim is not None:
        inputs["condition"] = jnp.zeros((1, config.condition_dim))
    return inputs
