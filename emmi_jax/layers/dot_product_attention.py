"""Full self-attention."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig
from emmi_jax.layers.dropout import Flag, drop, with_dropout
from emmi_jax.layers.inputs import check_rope, check_tokens, silence_padding
from emmi_jax.layers.key_values import KeyValues
from emmi_jax.layers.linear import input_projection, output_projection
from emmi_jax.layers.norms import head_norm
from emmi_jax.layers.patterns import attend_to
from emmi_jax.ops.attention import check_mask
from emmi_jax.ops.rope import RopeFrequencies, apply_rope
from emmi_jax.ops.sharding import gather_key_mask, gather_shards


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
        deterministic: Flag = True,
    ) -> jax.Array:
        """Attends within the sequence.

        Args:
            x: Tokens [B, T, C].
            freqs: Rotations [B, T, H/2]; given if and only if the configuration says `use_rope`.
            mask: Boolean, True = attend; each axis is that of [B, N, T, T] or 1. A token that no query attends to may
                be NaN.
            deterministic: Whether dropout is off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: x has the wrong shape, or rotations are missing or superfluous.
        """
        config = self.config
        check_tokens("x", x, config.dim)
        freqs = check_rope(config, "freqs", freqs, x)
        if mask is not None:
            check_mask(mask, x.shape[0], config.num_heads, x.shape[1], x.shape[1])
            x, freqs = silence_padding(mask.any(axis=(1, 2)), x, freqs)
        qkv = input_projection(config, 3, "qkv")(x)
        q, k, v = jnp.unstack(qkv.reshape(*x.shape[:2], 3, config.num_heads, config.head_dim), axis=2)
        if config.qk_norm:
            q, k = head_norm(config, "q_norm")(q), head_norm(config, "k_norm")(k)
        if freqs is not None:
            q, k = apply_rope(q, freqs), apply_rope(k, freqs)
        mask = gather_key_mask(mask, x.shape[1], config.token_axis)
        k, v = gather_shards((k, v), config.token_axis, axis=1)
        rate = config.dropout
        attend = partial(attend_to, config, q, KeyValues(k, v, None), mask)
        y = with_dropout(self, rate, deterministic, attend)
        y = output_projection(config, "proj")(y.reshape(*y.shape[:2], config.dim))
        return with_dropout(self, rate, deterministic, lambda key: drop(y, rate, key))
