"""Initial parameters of a model."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from emmi_jax.models.ab_upt import AnchoredBranchedUPT

Params: TypeAlias = Any


def init_params(model: AnchoredBranchedUPT, *, seed: int) -> Params:
    """Initialises the parameters of a model."""
    config = model.config
    position = jnp.zeros((1, 1, config.num_position_axes))
    inputs: dict[str, Any] = {"anchors": dict.fromkeys(config.fields, position)}
    if config.has_geometry:
        inputs |= {"geometry_position": position, "supernode_idx": jnp.zeros((1, 1), jnp.int32)}
    return jax.jit(lambda key: model.init(key, **inputs)["params"])(jax.random.key(seed))
