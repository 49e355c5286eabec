"""Multi-branch anchor attention: anchors attend to anchors, every other token only to anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax

from emmi_jax.config import AnchorAttentionConfig
from emmi_jax.layers.dropout import Flag
from emmi_jax.layers.mixed_attention import MixedAttention
from emmi_jax.ops.rope import RopeFrequencies
from emmi_jax.tokens import AttentionPattern, TokenSpec, owning_branch, specs_of_branch


class UnexpectedTokenError(ValueError):
    """A token group belongs to no branch."""


class MissingBranchTokensError(ValueError):
    """A branch has no token group."""


class MissingAnchorTokenError(ValueError):
    """A branch has token groups, but its anchors are not among them."""


class MultiBranchAnchorAttention(nn.Module):
    """Base class of attention in which several branches share projections and exchange information at anchor tokens.

    A subclass implements `_create_attention_patterns`. A group belongs to the longest branch name that prefixes its
    name; the anchors of branch ``b`` are the group ``b + anchor_suffix``.

    Args:
        config: Configuration of the layer and its branches.

    Raises:
        TypeError: The base class itself is used.
        ValueError: The configuration is no `AnchorAttentionConfig`, or has fewer branches than the attention needs.

    Source: Alkin et al. 2025, "AB-UPT" (arXiv 2502.09692), anchor attention.
    """

    config: AnchorAttentionConfig
    min_branches: ClassVar[int] = 1

    def __post_init__(self) -> None:
        cls = type(self)
        if cls._create_attention_patterns is MultiBranchAnchorAttention._create_attention_patterns:
            raise TypeError(f"{cls.__name__} is a base class: subclass it and implement _create_attention_patterns")
        if not isinstance(self.config, AnchorAttentionConfig):
            raise ValueError(f"{cls.__name__} needs an AnchorAttentionConfig, got {self.config!r}")
        if len(self.config.branches) < self.min_branches:
            raise ValueError(
                f"{cls.__name__} needs at least {self.min_branches} branches, got {list(self.config.branches)!r}"
            )
        super().__post_init__()

    def setup(self) -> None:
        """Declares the submodules."""
        self.mixed_attention = MixedAttention(self.config)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of all branches."""
        return self.config.branches

    @property
    def anchor_suffix(self) -> str:
        """Suffix that turns a branch's name into the name of its anchors."""
        return self.config.anchor_suffix

    def __call__(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec],
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        key_padding_mask: jax.Array | None = None,
        deterministic: Flag = True,
    ) -> jax.Array:
        """Attends within the sequence; caches like `MixedAttention`.

        Args:
            x: Tokens [B, T, C], the groups one after the other.
            token_specs: Names and sizes of the groups, in any order.
            freqs: Rotations of x's tokens [B, T, H/2]; given if and only if the configuration says `use_rope`.
            key_padding_mask: Booleans [B, T], True = real token. Padded tokens are never attended to and may be NaN.
            deterministic: Whether attention dropout is off.

        Returns:
            Array [B, T, C].

        Raises:
            UnexpectedTokenError: A group belongs to no branch.
            MissingBranchTokensError: A branch has no group.
            MissingAnchorTokenError: A branch has no anchors.
            ValueError: Anything that `MixedAttention` refuses.
        """
        token_specs = tuple(token_specs)
        return self.mixed_attention(
            x,
            token_specs,
            self.attention_patterns(token_specs),
            freqs,
            key_padding_mask=key_padding_mask,
            deterministic=deterministic,
        )

    def attention_patterns(self, token_specs: Sequence[TokenSpec]) -> Sequence[AttentionPattern]:
        """Returns who attends to whom.

        Raises:
            UnexpectedTokenError: A group belongs to no branch.
            MissingBranchTokensError: A branch has no group.
            MissingAnchorTokenError: A branch has no anchors.
        """
        names = [spec.name for spec in token_specs]
        for name in names:
            if owning_branch(name, self.branches) is None:
                raise UnexpectedTokenError(
                    f"token group {name!r} belongs to none of the branches {list(self.branches)!r}"
                )
        for branch in self.branches:
            if not self._groups(branch, token_specs):
                raise MissingBranchTokensError(f"no token group belongs to branch {branch!r}; the groups are {names!r}")
            if self._anchors(branch) not in names:
                raise MissingAnchorTokenError(
                    f"branch {branch!r} lacks its anchors {self._anchors(branch)!r}; the groups are {names!r}"
                )
        return self._create_attention_patterns(token_specs)

    def _create_attention_patterns(self, token_specs: Sequence[TokenSpec]) -> Sequence[AttentionPattern]:
        """Returns who attends to whom; `token_specs` have been checked."""
        raise NotImplementedError

    def _anchors(self, branch: str) -> str:
        return branch + self.anchor_suffix

    def _groups(self, branch: str, token_specs: Sequence[TokenSpec]) -> tuple[str, ...]:
        return tuple(spec.name for spec in specs_of_branch(token_specs, branch, self.branches))


class SelfAnchorAttention(MultiBranchAnchorAttention):
    """Every group attends to the anchors of its own branch."""

    def _create_attention_patterns(self, token_specs: Sequence[TokenSpec]) -> Sequence[AttentionPattern]:
        return [AttentionPattern(self._groups(b, token_specs), (self._anchors(b),)) for b in self.branches]


class CrossAnchorAttention(MultiBranchAnchorAttention):
    """Every group attends to the anchors of all other branches; needs at least two."""

    min_branches: ClassVar[int] = 2

    def _create_attention_patterns(self, token_specs: Sequence[TokenSpec]) -> Sequence[AttentionPattern]:
        return [
            AttentionPattern(
                self._groups(branch, token_specs), tuple(self._anchors(b) for b in self.branches if b != branch)
            )
            for branch in self.branches
        ]


class JointAnchorAttention(MultiBranchAnchorAttention):
    """Every group attends to the anchors of all branches; needs at least two."""

    min_branches: ClassVar[int] = 2

    def _create_attention_patterns(self, token_specs: Sequence[TokenSpec]) -> Sequence[AttentionPattern]:
        groups = tuple(spec.name for spec in token_specs)
        return [AttentionPattern(groups, tuple(self._anchors(b) for b in self.branches))]
