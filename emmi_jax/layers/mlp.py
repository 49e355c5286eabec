"""The MLP of a transformer block."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import NumericsConfig
from emmi_jax.layers.linear import Linear


class Mlp(nn.Module):
    """Linear, exact GELU, Linear.

    Args:
        hidden_dim: Channels between the two layers.
        out_dim: Channels of the output.
        config: Source of initialisation, dtypes and precision.
        names: Names of the two layers.
        use_bias: Whether the layers have biases.
        starts_at_zero: Whether the second layer starts at zero.
    """

    hidden_dim: int
    out_dim: int
    config: NumericsConfig
    names: tuple[str, str] = ("fc1", "fc2")
    use_bias: bool = True
    starts_at_zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in_dim] to [..., out_dim]."""
        first, second = self.names
        x = Linear(self.hidden_dim, self.config, self.use_bias, axes=("embed", "mlp"), name=first)(x)
        return Linear(
            self.out_dim, self.config, self.use_bias, self.starts_at_zero, axes=("mlp", "embed"), name=second
        )(gelu(x))


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU by erf, in float32; `jax.nn.gelu` uses erfc, which takes four times as long on CPU."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)
