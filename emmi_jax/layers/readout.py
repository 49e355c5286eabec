"""The last layer of a decoder, behind a norm."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import NumericsConfig
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.norms import RmsNorm
from emmi_jax.layers.residual import modulate


class Readout(nn.Module):
    """RMSNorm, modulated by a condition if there is one, then a linear layer.

    Args:
        features: Number of output channels.
        config: Source of initialisation, dtypes and precision.
        condition_dim: Channels of the condition; None means unconditioned. Conditioned, the norm learns nothing.
        use_bias: Whether the linear layer has a bias.
    """

    features: int
    config: NumericsConfig
    condition_dim: int | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """Maps x [B, T, C], with a condition [B, condition_dim], to [B, T, features]."""
        h = RmsNorm(self.config, learned=self.condition_dim is None, name="norm_final")(x)
        if self.condition_dim is not None and condition is not None:
            modulation = Linear(
                2 * x.shape[-1], self.config, zero_init=True, axes=("condition", "embed"), name="modulation"
            )
            h = modulate(h, *jnp.split(modulation(condition)[:, None], 2, axis=-1))
        return Linear(self.features, self.config, self.use_bias, axes=("embed", "fields"), name="linear")(h)
