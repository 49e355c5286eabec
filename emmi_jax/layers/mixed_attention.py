"""Attention in which each token group attends to groups of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig
from emmi_jax.layers.dropout import Flag, with_dropout
from emmi_jax.layers.inputs import check_padding_mask, check_rope, check_tokens, silence_padding
from emmi_jax.layers.key_values import KeyValues
from emmi_jax.layers.linear import input_projection, output_projection
from emmi_jax.layers.norms import head_norm
from emmi_jax.layers.patterns import attend_by_patterns
from emmi_jax.ops.rope import RopeFrequencies, apply_rope
from emmi_jax.ops.rows import concat_tokens, split_tokens, take_tokens
from emmi_jax.ops.sharding import gather_shards
from emmi_jax.tokens import AttentionPattern, TokenSpec, attended_groups, resolve_patterns, token_slices


class MixedAttention(nn.Module):
    """Multi-head attention with shared projections and one attention pattern per set of query groups.

    Args:
        config: Configuration of the layer.

    Source: Alkin et al. 2025, "AB-UPT" (arXiv 2502.09692), on Vaswani et al. 2017.
    """

    config: AttentionConfig

    def setup(self) -> None:
        """Declares the submodules."""
        self.qkv = input_projection(self.config, 3)
        self.proj = output_projection(self.config)
        if self.config.qk_norm:
            self.q_norm, self.k_norm = head_norm(self.config), head_norm(self.config)

    def __call__(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec],
        attention_patterns: Sequence[AttentionPattern],
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        key_padding_mask: jax.Array | None = None,
        deterministic: Flag = True,
    ) -> jax.Array:
        """Attends within the sequence.

        With ``mutable=["cache"]`` the keys and values of every attended group are stored in the ``cache`` collection.
        A later call reads them for each group whose spec has the size None.

        Args:
            x: Tokens [B, T, C], the groups one after the other.
            token_specs: Names and sizes of the groups in x, and names of cached groups.
            attention_patterns: Who attends to whom; every group in x queries exactly once. Cached groups among the
                queries are ignored.
            freqs: Rotations of x's tokens [B, T, H/2]; given if and only if the configuration says `use_rope`.
            key_padding_mask: Booleans [B, T], True = real token. Padded tokens are never attended to and may be NaN.
            deterministic: Whether attention dropout is off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: Specs, patterns, rotations, mask or cache do not fit; the message names the group or value.
        """
        token_specs = tuple(token_specs)
        patterns = resolve_patterns(token_specs, attention_patterns)
        attended = attended_groups(token_specs, patterns)
        queries, groups = self.project(x, token_specs, attended, freqs, key_padding_mask=key_padding_mask)
        if not queries:
            return self.proj(x)
        attended_to = with_dropout(
            self,
            self.config.dropout,
            deterministic,
            lambda key: concat_tokens(
                attend_by_patterns(self.config, queries, groups, patterns, dropout_rng=key).values(), x
            ),
        )
        return self.output([attended_to])

    def project(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec],
        attended: Sequence[str],
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        key_padding_mask: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], dict[str, KeyValues]]:
        """Returns rotated queries [B, T, N, H] of every group in x, and keys and values of the attended groups.

        Groups in x are projected (keys and values of attended groups only) and stored if the cache is mutable; attended
        groups of size None are read from the cache.
        """
        config, slices = self.config, token_slices(token_specs)
        sizes = {name: rows.stop - rows.start for name, rows in slices.items()}
        check_tokens("x", x, config.dim)
        if sum(sizes.values()) != x.shape[1]:
            raise ValueError(
                f"token_specs sum to {sum(sizes.values())} tokens but x has {x.shape[1]}: "
                f"{ {spec.name: spec.size for spec in token_specs}!r}"
            )
        freqs = check_rope(config, "freqs", freqs, x)
        check_padding_mask(key_padding_mask, x)
        if key_padding_mask is not None:
            x, freqs = silence_padding(key_padding_mask, x, freqs)
        key_sizes = {name: sizes[name] for name in attended if name in sizes}
        rows = [slices[name] for name in key_sizes]
        if sum(key_sizes.values()) == x.shape[1]:
            q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        else:
            q = self.qkv(x, slice(config.dim))
            k, v = jnp.split(self.qkv(take_tokens(x, rows), slice(config.dim, None)), 2, axis=-1)
        q, k, v = (a.reshape(*a.shape[:2], config.num_heads, config.head_dim) for a in (q, k, v))
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if freqs is not None:
            q, k = apply_rope(q, freqs), apply_rope(k, RopeFrequencies(*(take_tokens(f, rows) for f in freqs)))
        keys, values = split_tokens(k, key_sizes), split_tokens(v, key_sizes)
        groups = {
            name: KeyValues(
                keys[name],
                values[name],
                None if key_padding_mask is None else take_tokens(key_padding_mask, [slices[name]]),
            )
            for name in key_sizes
        }
        groups = gather_shards(groups, config.token_axis, axis=1)
        if self.is_mutable_collection("cache") and not self.is_initializing():
            for name, group in groups.items():
                self.put_variable("cache", name, group.to_entry())
        groups |= self._cached([name for name in attended if name not in slices], token_specs, q)
        return split_tokens(q, sizes), {name: groups[name] for name in attended}

    def output(self, y: Iterable[jax.Array]) -> jax.Array:
        """Joins outputs of groups [B, T, N, H], merges the heads and projects to [B, T, C]."""
        joined = concat_tokens(y)
        return self.proj(joined.reshape(*joined.shape[:2], self.config.dim))

    def _cached(self, names: Sequence[str], token_specs: Sequence[TokenSpec], q: jax.Array) -> dict[str, KeyValues]:
        """Reads the keys and values of these groups from the cache."""
        if not names:
            return {}
        known, entries = {spec.name for spec in token_specs}, self.variables.get("cache", {})
        for name in entries:
            if name not in known:
                raise ValueError(f"the cache holds token group {name!r}, which is not in token_specs {sorted(known)!r}")
        for name in names:
            if name not in entries:
                raise ValueError(
                    f"token group {name!r} has size None but no cache entry; cached are {sorted(entries)!r}"
                )
        return {name: KeyValues.from_entry(name, entries[name], q) for name in names}
