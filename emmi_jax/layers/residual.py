"""The common part of all blocks: norms, modulation by a condition, layer scale, drop path and the MLP."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emmi_jax.config import AttentionConfig, NumericsConfig
from emmi_jax.layers.linear import Linear, as_matrix, param
from emmi_jax.layers.mlp import Mlp

NORM_EPSILON = 1e-6


class LayerNorm(nn.Module):
    """Normalises channels to mean 0 and variance 1, in float32.

    Args:
        config: Source of the dtypes.
        learned: Whether the norm has a scale and a bias.

    Source: Ba et al. 2016, "Layer normalization" (arXiv 1607.06450).
    """

    config: NumericsConfig
    learned: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]."""
        y = as_matrix(x.astype(jnp.float32))
        y = y - y.mean(axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + NORM_EPSILON)
        if self.learned:
            shape, dtype = (x.shape[-1],), self.config.param_dtype
            scale = param(self, "scale", nn.initializers.ones, shape, dtype, ("embed",))
            bias = param(self, "bias", nn.initializers.zeros, shape, dtype, ("embed",))
            y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.reshape(x.shape).astype(self.config.dtype or x.dtype)


def modulate(h: jax.Array, scale: jax.Array | None, shift: jax.Array | None) -> jax.Array:
    """Returns h·(1 + scale) + shift, or h without a condition."""
    return h if scale is None or shift is None else h * (1 + scale) + shift


class LayerScale(nn.Module):
    """Multiplies by a learned gamma [C].

    Args:
        initial: Initial value of gamma.
        param_dtype: Dtype of gamma.

    Source: Touvron et al. 2021, "Going deeper with image transformers" (arXiv 2103.17239).
    """

    initial: float
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., C]."""
        initial = nn.initializers.constant(self.initial)
        gamma = param(self, "gamma", initial, (x.shape[-1],), self.param_dtype, ("embed",))
        return x * gamma.astype(x.dtype)


class ResidualBlock(nn.Module):
    """Base class of the blocks: a residual attention branch, computed by the subclass, and a residual MLP branch.

    Args:
        config: Configuration of the attention.
        mlp_ratio: Hidden channels of the MLP as a multiple of C.
        condition_dim: Channels of the condition; None means unconditioned. In a conditioned block the norms have no
            learned parameters, and a zero-initialised projection of the condition scales, shifts and gates.
        layer_scale: Initial layer scale; None means no layer scale.
        drop_path_rate: Rate at which samples skip a residual branch during training.

    Source: Peebles & Xie 2022, "DiT" (arXiv 2212.09748) for the modulation; Huang et al. 2016 for drop path.
    """

    config: AttentionConfig
    mlp_ratio: int = 4
    condition_dim: int | None = None
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    num_modulations: ClassVar[int]

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        self.norm2 = LayerNorm(config, learned=self.condition_dim is None)
        self.mlp = Mlp(self.mlp_ratio * config.dim, config.dim, config)
        if self.layer_scale is not None:
            self.ls1 = LayerScale(self.layer_scale, config.param_dtype)
            self.ls2 = LayerScale(self.layer_scale, config.param_dtype)
        if self.condition_dim is not None:
            self.modulation = Linear(
                self.num_modulations * config.dim, config, zero_init=True, axes=("condition", "embed")
            )
        self.drop_path = nn.Dropout(self.drop_path_rate, broadcast_dims=(1, 2))

    def modulations(self, condition: jax.Array | None) -> list[jax.Array | None]:
        """Returns scales, shifts and gates [B, 1, C]; None in an unconditioned block.

        Raises:
            ValueError: The condition is superfluous, missing or of the wrong shape.
        """
        if self.condition_dim is None:
            if condition is not None:
                raise ValueError(f"a condition of shape {list(condition.shape)} is given to an unconditioned block")
            return [None] * self.num_modulations
        if condition is None:
            raise ValueError(f"a block with condition_dim={self.condition_dim} needs a condition")
        if condition.ndim != 2 or condition.shape[1] != self.condition_dim:
            raise ValueError(
                f"condition must have the shape [batch, {self.condition_dim}], got {list(condition.shape)}"
            )
        return list(jnp.split(self.modulation(condition)[:, None, :], self.num_modulations, axis=-1))

    def finish(self, x: jax.Array, y: jax.Array, modulations: list[jax.Array | None], deterministic: bool) -> jax.Array:
        """Adds the attention's output y to x [B, T, C], then the MLP branch.

        Args:
            x: Input of the block.
            y: Output of the attention.
            modulations: Attention gate; scale, shift and gate of the MLP.
            deterministic: Whether drop path is off.

        Returns:
            Array [B, T, C].
        """
        attention_gate, scale, shift, mlp_gate = modulations
        if self.layer_scale is not None:
            y = self.ls1(y)
        x = x.astype(y.dtype) + self.drop_path(
            y if attention_gate is None else y * attention_gate, deterministic=deterministic
        )
        y = self.mlp(modulate(self.norm2(x), scale, shift))
        if self.layer_scale is not None:
            y = self.ls2(y)
        return x + self.drop_path(y if mlp_gate is None else y * mlp_gate, deterministic=deterministic)
