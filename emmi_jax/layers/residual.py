"""The common part of all blocks: modulation by a condition, layer scale, drop path and the MLP."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from emmi_jax.config import NORMS, AttentionConfig, check_choice
from emmi_jax.config.checks import check_mlp
from emmi_jax.layers.dropout import Flag, drop, with_dropout
from emmi_jax.layers.linear import Linear, param
from emmi_jax.layers.mlp import Mlp
from emmi_jax.layers.norms import NORM_EPSILON, LayerNorm, RmsNorm
from emmi_jax.ops.arrays import over_channels


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
        return x * over_channels(gamma.astype(x.dtype), x)


class ResidualBlock(nn.Module):
    """Base class of the blocks: a residual attention branch, computed by the subclass, and a residual MLP branch.

    Args:
        config: Configuration of the attention.
        mlp_ratio: Hidden channels of the MLP as a multiple of C.
        condition_dim: Channels of the condition; None means unconditioned. In a conditioned block the norms have no
            learned parameters, and a zero-initialised projection of the condition scales, shifts and gates.
        layer_scale: Initial layer scale; None means no layer scale.
        drop_path_rate: Rate at which samples skip a residual branch during training.
        mlp_hidden_dim: Hidden channels of the MLP, whatever `mlp_ratio` says; None leaves them to it.
        eps: What the norms add to the variance or mean square.
        norm: ``layer`` or ``rms``.
        norm_bias: Whether the norms have biases; None for `config.bias`.
        mlp_bias: Whether the MLP has biases; None for `config.bias`.

    Raises:
        ValueError: There is no such norm, or neither `mlp_ratio` nor `mlp_hidden_dim` is given.

    Source: Peebles & Xie 2022, "DiT" (arXiv 2212.09748) for the modulation; Huang et al. 2016 for drop path.
    """

    config: AttentionConfig
    mlp_ratio: int | None = 4
    condition_dim: int | None = None
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    mlp_hidden_dim: int | None = None
    eps: float = NORM_EPSILON
    norm: str = "layer"
    norm_bias: bool | None = None
    mlp_bias: bool | None = None

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        check_choice("norm", self.norm, NORMS)
        check_mlp(self.mlp_ratio, self.mlp_hidden_dim)
        self.norm2 = self.make_norm()
        self.mlp = Mlp(
            self.mlp_hidden_dim or (self.mlp_ratio or 0) * config.dim,
            config.dim,
            config,
            use_bias=config.bias if self.mlp_bias is None else self.mlp_bias,
            starts_at_zero=config.init_weights == "truncnormal002-identity",
        )
        if self.layer_scale is not None:
            self.ls1 = LayerScale(self.layer_scale, config.param_dtype)
            self.ls2 = LayerScale(self.layer_scale, config.param_dtype)
        if self.condition_dim is not None:
            self.modulation = Linear(sum(self.modulation_dims), config, zero_init=True, axes=("condition", "embed"))

    @property
    def modulation_dims(self) -> tuple[int, ...]:
        """Channels of each scale, shift and gate that the condition gives."""
        raise NotImplementedError

    def make_norm(self) -> nn.Module:
        """Returns a norm as the block has them; in a conditioned block it learns nothing."""
        learned, config = self.condition_dim is None, self.config
        if self.norm == "rms":
            return RmsNorm(config, learned=learned, epsilon=self.eps)
        use_bias = config.bias if self.norm_bias is None else self.norm_bias
        return LayerNorm(config, learned=learned, use_bias=use_bias, epsilon=self.eps)

    def modulations(self, condition: jax.Array | None) -> list[jax.Array | None]:
        """Returns scales, shifts and gates [B, 1, channels]; None in an unconditioned block.

        Raises:
            ValueError: The condition is superfluous, missing or of the wrong shape.
        """
        if self.condition_dim is None:
            if condition is not None:
                raise ValueError(f"a condition of shape {list(condition.shape)} is given to an unconditioned block")
            return [None] * len(self.modulation_dims)
        if condition is None:
            raise ValueError(f"a block with condition_dim={self.condition_dim} needs a condition")
        if condition.ndim != 2 or condition.shape[1] != self.condition_dim:
            raise ValueError(
                f"condition must have the shape [batch, {self.condition_dim}], got {list(condition.shape)}"
            )
        return list(jnp.split(self.modulation(condition)[:, None, :], np.cumsum(self.modulation_dims)[:-1], axis=-1))

    def add_residuals(
        self, x: jax.Array, y: jax.Array, modulations: list[jax.Array | None], deterministic: Flag
    ) -> jax.Array:
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
        x = x.astype(y.dtype) + self._drop_path(y if attention_gate is None else y * attention_gate, deterministic)
        y = self.mlp(modulate(self.norm2(x), scale, shift))
        if self.layer_scale is not None:
            y = self.ls2(y)
        return x + self._drop_path(y if mlp_gate is None else y * mlp_gate, deterministic)

    def _drop_path(self, y: jax.Array, deterministic: Flag) -> jax.Array:
        rate = self.drop_path_rate
        return with_dropout(self, rate, deterministic, lambda key: drop(y, rate, key, whole_samples=True))
