"""The perceiver block."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.layers.perceiver_attention import PerceiverAttention
from emmi_jax.layers.residual import LayerNorm, ResidualBlock, modulate
from emmi_jax.ops.rope import RopeFrequencies


class PerceiverBlock(ResidualBlock):
    """q += attention(norm1q(q), norm1kv(kv)); q += mlp(norm2(q)).

    Args:
        kv_dim: Channels of the tokens attended to; None means those of the queries.
    """

    kv_dim: int | None = None
    num_modulations: ClassVar[int] = 8

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        learned = self.condition_dim is None
        self.norm1q = LayerNorm(self.config, learned=learned)
        self.norm1kv = LayerNorm(self.config, learned=learned)
        self.attn = PerceiverAttention(self.config, self.kv_dim)

    def __call__(
        self,
        q: jax.Array,
        kv: jax.Array | None,
        q_freqs: RopeFrequencies | jax.Array | None = None,
        k_freqs: RopeFrequencies | jax.Array | None = None,
        *,
        condition: jax.Array | None = None,
        mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Applies the block.

        Args:
            q: Queries [B, T, C].
            kv: Tokens to attend to [B, S, kv_dim], or None for those that `PerceiverAttention` cached.
            q_freqs: Rotations of the queries [B, T, H/2]; given if and only if the configuration says `use_rope`.
            k_freqs: Rotations of the other tokens [B, S, H/2], likewise; None for cached tokens.
            condition: Array [B, condition_dim], in a conditioned block.
            mask: Boolean, True = attend, each axis that of [B, N, T, S] or 1.
            deterministic: Whether dropout and drop path are off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: The arguments do not fit the configuration or each other.
        """
        q_scale, q_shift, kv_scale, kv_shift, *rest = self.modulations(condition)
        if kv is not None:
            if self.condition_dim is not None and self.kv_dim not in (None, self.config.dim):
                raise ValueError(f"a conditioned block needs kv_dim to be dim={self.config.dim}, got {self.kv_dim}")
            kv = modulate(self.norm1kv(kv), kv_scale, kv_shift)
        y = self.attn(
            modulate(self.norm1q(q), q_scale, q_shift), kv, q_freqs, k_freqs, mask=mask, deterministic=deterministic
        )
        return self.finish(q, y, rest, deterministic)


class UntiedPerceiverBlock(nn.Module):
    """A `PerceiverBlock` for each branch, all to the same tokens.

    The parameters of branch ``b`` lie under ``b``, in a `PerceiverBlock`'s tree.

    Args:
        template_block: The block that each branch gets a copy of.
        branch_rows: For each branch, which queries are its own.
    """

    template_block: PerceiverBlock
    branch_rows: tuple[tuple[str, slice], ...]

    @nn.compact
    def __call__(
        self,
        q: jax.Array,
        kv: jax.Array | None,
        q_freqs: RopeFrequencies | None = None,
        k_freqs: RopeFrequencies | None = None,
        **options: Any,
    ) -> jax.Array:
        """Applies the block as `PerceiverBlock` does."""
        outputs = []
        for branch, rows in self.branch_rows:
            freqs = None if q_freqs is None else RopeFrequencies(*(f[:, rows] for f in q_freqs))
            block = self.template_block.clone(name=branch, parent=self)
            outputs.append(block(q[:, rows], kv, freqs, k_freqs, **options))
        return jnp.concatenate(outputs, axis=1)
