"""Perceiver blocks, with weights shared by all branches or one set per branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from emmi_jax.layers.dropout import Flag
from emmi_jax.layers.inputs import check_rope, check_tokens, silence_padding
from emmi_jax.layers.perceiver_attention import PerceiverAttention
from emmi_jax.layers.residual import ResidualBlock, modulate
from emmi_jax.ops.attention import check_mask
from emmi_jax.ops.rope import RopeFrequencies
from emmi_jax.ops.rows import concat_tokens, split_tokens, take_tokens
from emmi_jax.tokens import TokenSpec, owning_branch, token_slices


class PerceiverBlock(ResidualBlock):
    """q += attention(norm1q(q), norm1kv(kv)); q += mlp(norm2(q)).

    Args:
        kv_dim: Channels of the tokens attended to; None means those of the queries.
    """

    kv_dim: int | None = None

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.norm1q = self.make_norm()
        self.norm1kv = self.make_norm()
        self.attn = PerceiverAttention(self.config, self.kv_dim)

    @property
    def modulation_dims(self) -> tuple[int, ...]:
        """Channels of scale and shift of q and of kv, gate of the attention; scale, shift and gate of the MLP."""
        dim, kv_dim = self.config.dim, self.config.dim if self.kv_dim is None else self.kv_dim
        return (dim, dim, kv_dim, kv_dim, dim, dim, dim, dim)

    def __call__(
        self,
        q: jax.Array,
        kv: jax.Array | None,
        q_freqs: RopeFrequencies | jax.Array | None = None,
        k_freqs: RopeFrequencies | jax.Array | None = None,
        *,
        condition: jax.Array | None = None,
        mask: jax.Array | None = None,
        deterministic: Flag = True,
    ) -> jax.Array:
        """Applies the block.

        Args:
            q: Queries [B, T, C].
            kv: Tokens to attend to [B, S, kv_dim], or None for those that `PerceiverAttention` cached.
            q_freqs: Rotations of the queries [B, T, H/2]; given if and only if the configuration says `use_rope`.
            k_freqs: Rotations of the other tokens [B, S, H/2], likewise; None for cached tokens.
            condition: Array [B, condition_dim], in a conditioned block.
            mask: Boolean, True = attend; each axis is that of [B, N, T, S] or 1. A token that no query attends to may
                be NaN.
            deterministic: Whether dropout and drop path are off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: The arguments do not fit the configuration or each other.
        """
        check_tokens("q", q, self.config.dim)
        q_scale, q_shift, kv_scale, kv_shift, *rest = self.modulations(condition)
        if kv is not None:
            check_tokens("kv", kv, self.config.dim if self.kv_dim is None else self.kv_dim)
            if mask is not None:
                check_mask(mask, kv.shape[0], self.config.num_heads, q.shape[1], kv.shape[1])
                kv, _ = silence_padding(mask.any(axis=(1, 2)), kv)
            kv = modulate(self.norm1kv(kv), kv_scale, kv_shift)
        y = self.attn(
            modulate(self.norm1q(q), q_scale, q_shift), kv, q_freqs, k_freqs, mask=mask, deterministic=deterministic
        )
        return self.add_residuals(q, y, rest, deterministic)


class UntiedPerceiverBlock(nn.Module):
    """One `PerceiverBlock` per branch, all attending to the same tokens.

    The parameters of branch ``b`` lie under ``b``, in the tree of a `PerceiverBlock`.

    Args:
        template_block: The block that each branch gets a copy of.
        branches: Names of all branches.
    """

    template_block: PerceiverBlock
    branches: tuple[str, ...]

    @nn.compact
    def __call__(
        self,
        q: jax.Array,
        kv: jax.Array | None,
        q_freqs: RopeFrequencies | jax.Array | None = None,
        k_freqs: RopeFrequencies | jax.Array | None = None,
        *,
        token_specs: Sequence[TokenSpec],
        mask: jax.Array | None = None,
        **options: Any,
    ) -> jax.Array:
        """Applies the block as `PerceiverBlock` does.

        Args:
            q: Queries [B, T, C], the groups one after the other.
            kv: Tokens to attend to [B, S, kv_dim], or None for cached ones.
            q_freqs: Rotations of the queries.
            k_freqs: Rotations of the other tokens.
            token_specs: Names and sizes of the groups in q, in any order.
            mask: Boolean mask of the keys [B, 1, 1, S], True = attend.
            **options: As in `PerceiverBlock`.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: A group belongs to no branch, the sizes do not sum to T, or `PerceiverBlock` refuses.
        """
        slices = token_slices(token_specs)
        sizes = {name: rows.stop - rows.start for name, rows in slices.items()}
        if sum(sizes.values()) != q.shape[1]:
            raise ValueError(f"token_specs sum to {sum(sizes.values())} tokens but q has {q.shape[1]}: {sizes!r}")
        freqs = check_rope(self.template_block.config, "q_freqs", q_freqs, q)
        outputs: dict[str, jax.Array] = {}
        for branch in self.branches:
            own = {name: size for name, size in sizes.items() if owning_branch(name, self.branches) == branch}
            rows = [slices[name] for name in own]
            block = self.template_block.clone(name=branch, parent=self)
            own_freqs = None if freqs is None else RopeFrequencies(*(take_tokens(f, rows) for f in freqs))
            outputs |= split_tokens(block(take_tokens(q, rows), kv, own_freqs, k_freqs, mask=mask, **options), own)
        if foreign := sorted(set(slices) - set(outputs)):
            raise ValueError(f"token groups {foreign!r} belong to none of the branches {list(self.branches)!r}")
        return concat_tokens((outputs[name] for name in slices), q)
