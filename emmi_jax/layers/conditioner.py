"""Named conditions, embedded and mixed to the one that blocks are conditioned on."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import NumericsConfig
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.mlp import gelu
from emmi_jax.ops.sincos import octave_embedding


class Conditioner(nn.Module):
    """Embeds each condition by itself, then all of them together.

    Args:
        dims: Numbers of channels of the conditions by name, in order.
        features: Number of channels of the result.
        config: Source of initialisation, dtypes and precision.
    """

    dims: Mapping[str, int]
    features: int
    config: NumericsConfig

    @nn.compact
    def __call__(self, condition: Mapping[str, jax.Array]) -> jax.Array:
        """Maps arrays [B, channels] in [-1, 1], of which it takes those that it knows, to [B, features]."""

        def layer(x: jax.Array, name: str) -> jax.Array:
            return gelu(Linear(self.features, self.config, axes=("condition", "condition"), name=name)(x))

        embedded = []
        for name in self.dims:
            x = octave_embedding(condition[name], self.features)
            embedded.append(layer(x.astype(self.config.dtype or x.dtype), f"embedder_{name}"))
        return layer(layer(jnp.concatenate(embedded, axis=-1), "shared_mlp_0"), "shared_mlp_2")
