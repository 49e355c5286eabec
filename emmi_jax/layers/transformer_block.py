"""Transformer blocks with full or anchor attention, with weights shared by the branches or one set a branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AnchorAttentionConfig
from emmi_jax.layers.anchor_attention import MultiBranchAnchorAttention
from emmi_jax.layers.dot_product_attention import DotProductAttention
from emmi_jax.layers.mixed_attention import KeyValues, attend
from emmi_jax.layers.residual import LayerNorm, ResidualBlock, modulate
from emmi_jax.ops.rope import RopeFrequencies, as_rope_frequencies
from emmi_jax.tokens import TokenSpec, attended_groups, owning_branch, resolve_patterns, token_slices


class TransformerBlock(ResidualBlock):
    """x += attention(norm1(x)); x += mlp(norm2(x)).

    Args:
        attention: `DotProductAttention`, or a subclass of `MultiBranchAnchorAttention` (then `config` is an
            `AnchorAttentionConfig`).
    """

    attention: type[nn.Module] = DotProductAttention
    num_modulations: ClassVar[int] = 6

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.norm1 = LayerNorm(self.config, learned=self.condition_dim is None)
        self.attention_block: Any = self.attention(self.config)

    def __call__(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec] | None = None,
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        condition: jax.Array | None = None,
        key_padding_mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Applies the block.

        Args:
            x: Tokens [B, T, C].
            token_specs: Names and sizes of the groups, for anchor attention alone.
            freqs: Rotations [B, T, H/2]; given if and only if the configuration says `use_rope`.
            condition: Array [B, condition_dim], in a conditioned block.
            key_padding_mask: Booleans [B, T], True = real token; others are never attended to.
            deterministic: Whether dropout and drop path are off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: The arguments do not fit the configuration or each other.
        """
        scale, shift, *rest = self.modulations(condition)
        h = modulate(self.norm1(x), scale, shift)
        if issubclass(self.attention, MultiBranchAnchorAttention):
            y = self.attention_block(
                h, token_specs or (), freqs, key_padding_mask=key_padding_mask, deterministic=deterministic
            )
        elif token_specs is not None:
            raise ValueError(f"token_specs are given to a block of {self.attention.__name__}, which has no groups")
        else:
            mask = None if key_padding_mask is None else key_padding_mask[:, None, None, :]
            y = self.attention_block(h, freqs, mask=mask, deterministic=deterministic)
        return self.finish(x, y, rest, deterministic)


class UntiedTransformerBlock(nn.Module):
    """Anchor attention between branches that have a `TransformerBlock`'s weights each.

    The parameters of branch ``b`` lie under ``b``, in a `TransformerBlock`'s tree.

    Args:
        template_block: The block that each branch gets a copy of; its `attention` is an anchor attention.
    """

    template_block: TransformerBlock

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec],
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        condition: jax.Array | None = None,
        key_padding_mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Applies the block as `TransformerBlock` does; a branch's groups must follow each other in the sequence."""
        config = self.template_block.config
        template = self.template_block.attention(config, parent=None)
        if not isinstance(config, AnchorAttentionConfig) or not isinstance(template, MultiBranchAnchorAttention):
            raise ValueError(f"an untied block needs an anchor attention, got {self.template_block.attention.__name__}")
        template._check_token_specs(token_specs)
        patterns = resolve_patterns(token_specs, template._create_attention_patterns(token_specs))
        attended, slices = attended_groups(token_specs, patterns), token_slices(token_specs)
        freqs = None if freqs is None else as_rope_frequencies(freqs)
        groups: dict[str, KeyValues] = {}
        queries, finish = [], []
        for branch in config.branches:
            specs = [spec for spec in token_specs if owning_branch(spec.name, config.branches) == branch]
            block = self.template_block.clone(name=branch, parent=self)
            scale, shift, *rest = block.modulations(condition)
            rows = [slices[spec.name] for spec in specs if spec.name in slices]
            here = slice(rows[0].start, rows[-1].stop) if rows else slice(0, 0)
            q, own = block.attention_block.mixed_attention.project(
                modulate(block.norm1(x[:, here]), scale, shift),
                specs,
                [name for name in attended if owning_branch(name, config.branches) == branch],
                None if freqs is None else RopeFrequencies(freqs.cos[:, here], freqs.sin[:, here]),
                key_padding_mask=None if key_padding_mask is None else key_padding_mask[:, here],
            )
            queries.append(q)
            groups |= own
            finish.append((block, here, rest))
        rng = self.make_rng("dropout") if config.dropout and not deterministic else None
        y = attend(config, jnp.concatenate(queries, axis=1), groups, token_specs, patterns, dropout_rng=rng)
        outputs = [
            block.finish(x[:, here], block.attention_block.mixed_attention.output(y[:, here]), rest, deterministic)
            for block, here, rest in finish
        ]
        return jnp.concatenate(outputs, axis=1)
