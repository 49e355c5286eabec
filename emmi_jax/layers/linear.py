"""The linear layer of all modules, with the reference's initialisations; and parameters with named axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.nn import initializers
from jax.typing import DTypeLike

from emmi_jax.config import AttentionConfig, NumericsConfig
from emmi_jax.ops.arrays import over_channels
from emmi_jax.ops.attention import platform

named_axes = jax.make_user_context(False)
"""Whether `init` boxes parameters as `nn.LogicallyPartitioned`, with a name for each axis.

By default parameters are plain arrays. For partition specs by name::

    with named_axes(True):
        specs = nn.get_partition_spec(jax.eval_shape(model.init, key, ...))
"""


def param(
    module: nn.Module,
    name: str,
    init: Callable[..., jax.Array],
    shape: tuple[int, ...],
    dtype: DTypeLike,
    axes: tuple[str, ...],
) -> jax.Array:
    """Declares a parameter whose axes have names: see `named_axes`."""
    boxed: Callable[..., Any] = nn.with_logical_partitioning(init, axes) if named_axes.value else init
    return module.param(name, boxed, shape, dtype)


class Linear(nn.Module):
    """y = x @ kernel + bias.

    Args:
        features: Number of output channels.
        config: Source of initialisation, dtypes and precision.
        use_bias: Whether there is a bias.
        zero_init: Whether kernel and bias start at zero, whatever the configuration says.
        axes: Names of the kernel's axes; the second is that of the bias.
    """

    features: int
    config: NumericsConfig
    use_bias: bool = True
    zero_init: bool = False
    axes: tuple[str, str] = ("inputs", "embed")

    @nn.compact
    def weights(self, in_features: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns kernel [in_features, features] and bias [features] (or None), for products with parts of them."""
        dtype = self.config.param_dtype
        kernel_init, bias_init = _initializers("zeros" if self.zero_init else self.config.init_weights, in_features)
        kernel = param(self, "kernel", kernel_init, (in_features, self.features), dtype, self.axes)
        if not self.use_bias:
            return kernel, None
        return kernel, param(self, "bias", bias_init, (self.features,), dtype, self.axes[1:])

    def __call__(self, x: jax.Array, columns: slice = slice(None)) -> jax.Array:
        """Applies the layer.

        Args:
            x: Array [..., in_features].
            columns: Output channels to compute; all by default.

        Returns:
            Array [..., number of columns].
        """
        x, kernel, bias = promote_dtype(x, *self.weights(x.shape[-1]), dtype=self.config.dtype)
        y = jnp.dot(as_matrix(x), kernel[:, columns], precision=self.config.precision)
        return (y if bias is None else y + over_channels(bias[columns], y)).reshape(*x.shape[:-1], y.shape[-1])


def input_projection(config: AttentionConfig, number: int, name: str | None = None) -> Linear:
    """Returns the projection of tokens to `number` sets of heads: queries, keys or values."""
    return Linear(number * config.dim, config, config.bias, axes=("embed", "heads"), name=name)


def output_projection(config: AttentionConfig, name: str | None = None) -> Linear:
    """Returns the projection of heads to tokens."""
    zero_init = config.init_weights == "truncnormal002-identity"
    return Linear(config.dim, config, config.bias, zero_init, axes=("heads", "embed"), name=name)


def as_matrix(x: jax.Array) -> jax.Array:
    """Returns x [..., C] as [rows, C] on CPU, where products and sums with batch axes take up to twice the time.

    Elsewhere x stays as it is: nothing would be gained, and axes sharded separately stay separate. So does an x whose
    axes are sharded explicitly.
    """
    keeps_axes = platform() != "cpu" or 0 in x.shape or any(jax.typeof(x).sharding.spec)
    return x if keeps_axes else x.reshape(-1, x.shape[-1])


def _initializers(init_weights: str, fan_in: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    if init_weights == "zeros":
        return initializers.zeros, initializers.zeros
    if init_weights == "torch":
        bound = max(fan_in, 1) ** -0.5
        uniform = _sampled(lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound))
        return uniform, uniform
    normal = _sampled(lambda key, shape: jnp.clip(0.02 * jax.random.normal(key, shape, jnp.float32), -2, 2))
    return normal, initializers.zeros


def _sampled(sample: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> Callable[..., jax.Array]:
    """Returns an initialiser that samples in float32 and casts: in half precision the tails come out far too heavy."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return sample(key, shape).astype(dtype)

    return init
