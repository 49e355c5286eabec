"""Transformer blocks with full or anchor attention, with weights shared by all branches or one set per branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

from emmi_jax.layers.anchor_attention import MultiBranchAnchorAttention
from emmi_jax.layers.dot_product_attention import DotProductAttention
from emmi_jax.layers.dropout import Flag, with_dropout
from emmi_jax.layers.inputs import check_padding_mask, check_rope, check_tokens, silence_padding
from emmi_jax.layers.key_values import KeyValues
from emmi_jax.layers.patterns import attend_by_patterns
from emmi_jax.layers.residual import ResidualBlock, modulate
from emmi_jax.ops.rope import RopeFrequencies
from emmi_jax.ops.rows import concat_tokens, split_tokens, take_tokens
from emmi_jax.tokens import TokenSpec, attended_groups, resolve_patterns, specs_of_branch, token_slices


class TransformerBlock(ResidualBlock):
    """x += attention(norm1(x)); x += mlp(norm2(x)).

    Args:
        attention: `DotProductAttention`, or a subclass of `MultiBranchAnchorAttention` (then `config` is an
            `AnchorAttentionConfig`).
    """

    attention: type[nn.Module] = DotProductAttention

    def setup(self) -> None:
        """Declares the submodules."""
        super().setup()
        self.norm1 = self.make_norm()
        self.attention_block: Any = self.attention(self.config)

    @property
    def modulation_dims(self) -> tuple[int, ...]:
        """Channels of scale, shift and gate of the attention, then of the MLP."""
        return (self.config.dim,) * 6

    def __call__(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec] | None = None,
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        condition: jax.Array | None = None,
        key_padding_mask: jax.Array | None = None,
        deterministic: Flag = True,
    ) -> jax.Array:
        """Applies the block.

        Args:
            x: Tokens [B, T, C].
            token_specs: Names and sizes of the groups, for anchor attention only.
            freqs: Rotations [B, T, H/2]; given if and only if the configuration says `use_rope`.
            condition: Array [B, condition_dim], in a conditioned block.
            key_padding_mask: Booleans [B, T], True = real token. Padded tokens are never attended to and may be NaN.
            deterministic: Whether dropout and drop path are off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: The arguments do not fit the configuration or each other.
        """
        check_tokens("x", x, self.config.dim)
        check_padding_mask(key_padding_mask, x)
        if key_padding_mask is not None:
            x, _ = silence_padding(key_padding_mask, x)
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
        return self.add_residuals(x, y, rest, deterministic)


class UntiedTransformerBlock(nn.Module):
    """Anchor attention between branches, each with its own `TransformerBlock` weights.

    The parameters of branch ``b`` lie under ``b``, in the tree of a `TransformerBlock`.

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
        deterministic: Flag = True,
    ) -> jax.Array:
        """Applies the block as `TransformerBlock` does, with the groups in any order."""
        config: Any = self.template_block.config
        attention = self.template_block.attention(config, parent=None)
        if not isinstance(attention, MultiBranchAnchorAttention):
            raise ValueError(f"an untied block needs an anchor attention, got {self.template_block.attention.__name__}")
        patterns = resolve_patterns(token_specs, attention.attention_patterns(token_specs))
        attended, slices = attended_groups(token_specs, patterns), token_slices(token_specs)
        check_tokens("x", x, config.dim)
        freqs = check_rope(config, "freqs", freqs, x)
        check_padding_mask(key_padding_mask, x)
        if key_padding_mask is not None:
            x, _ = silence_padding(key_padding_mask, x)
        queries: dict[str, jax.Array] = {}
        groups: dict[str, KeyValues] = {}
        finish = []
        for branch in config.branches:
            specs = specs_of_branch(token_specs, branch, config.branches)
            sizes = {spec.name: spec.size for spec in specs if spec.size is not None}
            rows = [slices[name] for name in sizes]
            block = self.template_block.clone(name=branch, parent=self)
            scale, shift, *rest = block.modulations(condition)
            own = take_tokens(x, rows)
            own_queries, own_groups = block.attention_block.mixed_attention.project(
                modulate(block.norm1(own), scale, shift),
                specs,
                [spec.name for spec in specs if spec.name in attended],
                None if freqs is None else RopeFrequencies(*(take_tokens(f, rows) for f in freqs)),
                key_padding_mask=None if key_padding_mask is None else take_tokens(key_padding_mask, rows),
            )
            queries |= own_queries
            groups |= own_groups
            finish.append((block, own, sizes, rest))
        if not queries:
            return x
        sizes_of_groups = {name: q.shape[1] for name, q in queries.items()}
        attended_to_all = with_dropout(
            self,
            config.dropout,
            deterministic,
            lambda key: concat_tokens(attend_by_patterns(config, queries, groups, patterns, dropout_rng=key).values()),
        )
        y = split_tokens(attended_to_all, sizes_of_groups)
        outputs: dict[str, jax.Array] = {}
        for block, own, sizes, rest in finish:
            if sizes:
                attended_to = block.attention_block.mixed_attention.output(y[name] for name in sizes)
                outputs |= split_tokens(block.add_residuals(own, attended_to, rest, deterministic), sizes)
        return concat_tokens((outputs[name] for name in slices), x)
