"""The linear layer of all modules: the reference's initialisations, and products with a part of the output channels."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn import initializers
from jax.typing import DTypeLike

from emmi_jax.config import NumericsConfig
from emmi_jax.ops.attention import platform


class Linear(nn.Module):
    """y = x @ kernel + bias.

    Args:
        features: Number of output channels.
        config: Where initialisation, dtypes and precision come from.
        use_bias: Whether there is a bias.
        zero_init: Whether kernel and bias start at zero, whatever the configuration says.
    """

    features: int
    config: NumericsConfig
    use_bias: bool = True
    zero_init: bool = False

    @nn.compact
    def weights(self, in_features: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns kernel [in_features, features] and bias [features] (or None), for products with parts of them."""
        config = self.config
        kernel_init, bias_init = _initializers("zeros" if self.zero_init else config.init_weights, in_features)
        kernel = self.param("kernel", kernel_init, (in_features, self.features), config.param_dtype)
        bias = self.param("bias", bias_init, (self.features,), config.param_dtype) if self.use_bias else None
        return kernel, bias

    def __call__(self, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
        """Applies the layer.

        Args:
            x: Array [..., in_features].
            columns: The output channels to compute, all of them by default.

        Returns:
            Array [..., number of columns].
        """
        x, kernel, bias = promote_dtype(x, *self.weights(x.shape[-1]), dtype=self.config.dtype)
        y = jnp.dot(as_matrix(x), kernel[:, columns], precision=self.config.precision)
        return (y if bias is None else y + bias[columns]).reshape(*x.shape[:-1], y.shape[-1])


def as_matrix(x: jax.Array) -> jax.Array:
    """Returns x [..., C] as [rows, C] on CPU, where products and sums behind a batch axis take up to twice the time.

    Elsewhere as it is: nothing would be gained, and axes that are sharded apart stay apart.
    """
    return x.reshape(-1, x.shape[-1]) if platform() == "cpu" else x


def _initializers(init_weights: str, fan_in: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    if init_weights == "zeros":
        return initializers.zeros, initializers.zeros
    if init_weights == "torch":
        bound = max(fan_in, 1) ** -0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return uniform, uniform
    # The cut lies at ±2 absolute, 100 standard deviations away.
    return initializers.truncated_normal(0.02, lower=-100.0, upper=100.0), initializers.zeros
