"""Full self-attention."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.mixed_attention import check_rope
from emmi_jax.ops.attention import dot_product_attention
from emmi_jax.ops.rope import RopeFrequencies, apply_rope


class DotProductAttention(nn.Module):
    """Multi-head self-attention in which every token may attend to every token.

    Args:
        config: Configuration of the layer; its dropout also acts after the output projection.
    """

    config: AttentionConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attends within the sequence.

        Args:
            x: Tokens [B, T, C].
            freqs: Rotations [B, T, H/2]; given if and only if the configuration says `use_rope`.
            mask: Boolean, True = attend, each axis that of [B, N, T, T] or 1.
            deterministic: Whether dropout is off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: x has the wrong shape, or rotations are missing or superfluous.
        """
        config = self.config
        if x.ndim != 3 or x.shape[2] != config.dim:
            raise ValueError(f"x must have the shape [batch, tokens, {config.dim}], got {list(x.shape)}")
        check_rope(config, freqs=freqs)
        qkv = Linear(3 * config.dim, config, config.bias, name="qkv")(x)
        q, k, v = jnp.unstack(qkv.reshape(*x.shape[:2], 3, config.num_heads, config.head_dim), axis=2)
        if freqs is not None:
            q, k = apply_rope(q, freqs), apply_rope(k, freqs)
        use_dropout = config.dropout > 0 and not deterministic
        y = dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            dropout_rate=config.dropout if use_dropout else 0.0,
            dropout_rng=self.make_rng("dropout") if use_dropout else None,
            implementation=config.implementation,
            precision=config.precision,
        )
        proj = Linear(config.dim, config, config.bias, config.init_weights == "truncnormal002-identity", name="proj")
        y = proj(y.reshape(*y.shape[:2], config.dim))
        return nn.Dropout(config.dropout)(y, deterministic=deterministic)
