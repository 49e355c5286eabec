"""Norms over channels, computed in float32 whatever the dtype."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig, NumericsConfig
from emmi_jax.layers.linear import as_matrix, param
from emmi_jax.ops.arrays import over_channels

NORM_EPSILON = 1e-6
HEAD_EPSILON = 2.0**-23
"""The epsilon of float32."""


class LayerNorm(nn.Module):
    """Normalises channels to mean 0 and variance 1, in float32.

    Args:
        config: Source of the dtypes.
        learned: Whether the norm has a scale.
        use_bias: Whether it has a bias beside the scale.
        epsilon: What is added to the variance.

    Source: Ba et al. 2016, "Layer normalization" (arXiv 1607.06450).
    """

    config: NumericsConfig
    learned: bool = True
    use_bias: bool = True
    epsilon: float = NORM_EPSILON

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]."""
        y = as_matrix(x.astype(jnp.float32))
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        if self.learned:
            shape, dtype = (x.shape[-1],), self.config.param_dtype
            scale = param(self, "scale", nn.initializers.ones, shape, dtype, ("embed",))
            y = y * over_channels(scale.astype(jnp.float32), y)
            if self.use_bias:
                bias = param(self, "bias", nn.initializers.zeros, shape, dtype, ("embed",))
                y = y + over_channels(bias.astype(jnp.float32), y)
        return y.reshape(x.shape).astype(self.config.dtype or x.dtype)


class RmsNorm(nn.Module):
    """Divides channels by the root of their mean square, in float32.

    Args:
        config: Source of the dtypes.
        learned: Whether the norm has a scale.
        epsilon: What is added to the mean square.
        axis: Name of the channels' axis.

    Source: Zhang & Sennrich 2019, "Root mean square layer normalization" (arXiv 1910.07467).
    """

    config: NumericsConfig
    learned: bool = True
    epsilon: float = NORM_EPSILON
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]."""
        y = as_matrix(x.astype(jnp.float32))
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.epsilon)
        if self.learned:
            scale = param(self, "scale", nn.initializers.ones, x.shape[-1:], self.config.param_dtype, (self.axis,))
            y = y * over_channels(scale.astype(jnp.float32), y)
        return y.reshape(x.shape).astype(self.config.dtype or x.dtype)


def head_norm(config: AttentionConfig, name: str | None = None) -> RmsNorm:
    """Returns the norm of queries or keys [B, T, N, H] over the channels of a head, with one scale for all heads.

    As in `torch.nn.RMSNorm`, the epsilon is that of the dtype which the norm is computed in.
    """
    return RmsNorm(config, epsilon=HEAD_EPSILON, axis="head", name=name)
