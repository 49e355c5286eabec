"""Attention in which each token group attends to groups of its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig
from emmi_jax.layers.linear import Linear
from emmi_jax.ops.attention import KERNELS, dot_product_attention, resolve_implementation
from emmi_jax.ops.rope import RopeFrequencies, apply_rope, as_rope_frequencies
from emmi_jax.tokens import (
    AttentionPattern,
    TokenSpec,
    attended_groups,
    pattern_mask,
    resolve_patterns,
    token_slices,
)


class KeyValues(NamedTuple):
    """Keys and values of one token group: key and value [B, S, N, H], mask [B, S] bool (True = real) or None."""

    key: jax.Array
    value: jax.Array
    mask: jax.Array | None


class MixedAttention(nn.Module):
    """Multi-head attention with one set of projections and a pattern for each set of query groups.

    Args:
        config: Configuration of the layer.

    Source: Alkin et al. 2025, "AB-UPT" (arXiv 2502.09692), on Vaswani et al. 2017.
    """

    config: AttentionConfig

    def setup(self) -> None:
        """Declares the submodules."""
        config = self.config
        self.qkv = Linear(3 * config.dim, config, config.bias)
        self.proj = Linear(config.dim, config, config.bias, config.init_weights == "truncnormal002-identity")

    def __call__(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec],
        attention_patterns: Sequence[AttentionPattern],
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        key_padding_mask: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attends within the sequence.

        With ``mutable=["cache"]`` the keys and values of every attended group are stored in the ``cache`` collection;
        a later call reads those of a group whose spec has the size None.

        Args:
            x: Tokens [B, T, C], the groups one after the other.
            token_specs: Names and sizes of the groups in x, and of cached groups; static.
            attention_patterns: Who attends to whom; every group in x queries exactly once. Cached groups among the
                queries are left out.
            freqs: Rotations of x's tokens [B, T, H/2]; given if and only if the configuration says `use_rope`.
            key_padding_mask: Booleans [B, T], True = real token; others are never attended to.
            deterministic: Whether attention dropout is off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: Specs, patterns, rotations, mask or cache do not fit; the message names the group or value.
        """
        token_specs = tuple(token_specs)
        patterns = resolve_patterns(token_specs, attention_patterns)
        attended = attended_groups(token_specs, patterns)
        q, groups = self.project(x, token_specs, attended, freqs, key_padding_mask=key_padding_mask)
        rng = self.make_rng("dropout") if self.config.dropout and not deterministic else None
        return self.output(attend(self.config, q, groups, token_specs, patterns, dropout_rng=rng))

    def project(
        self,
        x: jax.Array,
        token_specs: Sequence[TokenSpec],
        attended: Sequence[str],
        freqs: RopeFrequencies | jax.Array | None = None,
        *,
        key_padding_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, KeyValues]]:
        """Returns rotated queries [B, T, N, H] of all tokens, and keys and values of the attended groups.

        Groups in x are projected (only the attended ones, in spec order) and stored if the cache is mutable; those of
        size None are read from it.
        """
        config, slices = self.config, token_slices(token_specs)
        _check_inputs(config, x, token_specs, freqs, key_padding_mask)
        names = [name for name in attended if name in slices]
        rows = [slices[name] for name in names]
        if sum(r.stop - r.start for r in rows) == x.shape[1]:
            q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        else:
            q = self.qkv(x, slice(config.dim))
            k, v = jnp.split(self.qkv(_take(x, rows), slice(config.dim, None)), 2, axis=-1)
        q, k, v = (a.reshape(*a.shape[:2], config.num_heads, config.head_dim) for a in (q, k, v))
        if freqs is not None:
            freqs = as_rope_frequencies(freqs)
            q, k = apply_rope(q, freqs), apply_rope(k, RopeFrequencies(*(_take(f, rows) for f in freqs)))
        sizes = [r.stop - r.start for r in rows]
        groups = {}
        for name, r, key, value in zip(names, rows, _split(k, sizes), _split(v, sizes), strict=True):
            groups[name] = KeyValues(key, value, None if key_padding_mask is None else key_padding_mask[:, r])
        if self.is_mutable_collection("cache") and not self.is_initializing():
            for name, group in groups.items():
                self.put_variable("cache", name, {key: a for key, a in group._asdict().items() if a is not None})
        groups |= self._cached([name for name in attended if name not in slices], token_specs, q)
        return q, {name: groups[name] for name in attended}

    def output(self, y: jax.Array) -> jax.Array:
        """Merges the heads [B, T, N, H] and projects to [B, T, C]."""
        return self.proj(y.reshape(*y.shape[:2], self.config.dim))

    def _cached(self, names: Sequence[str], token_specs: Sequence[TokenSpec], q: jax.Array) -> dict[str, KeyValues]:
        """Reads the keys and values of these groups from the cache."""
        if not names:
            return {}
        known, groups = {spec.name for spec in token_specs}, {}
        entries = self.variables.get("cache", {})
        for name in entries:
            if name not in known:
                raise ValueError(f"the cache holds token group {name!r}, which is not in token_specs {sorted(known)!r}")
        for name in names:
            if name not in entries:
                raise ValueError(
                    f"token group {name!r} has size None but no cache entry; cached are {sorted(entries)!r}"
                )
            groups[name] = check_entry(name, entries[name], q)
        return groups


def check_entry(name: str, entry: object, q: jax.Array) -> KeyValues:
    """Returns a cache entry that fits queries [B, T, N, H].

    Raises:
        ValueError: It is no entry, or has the wrong shape or dtype; the message names it.
    """
    batch, _, num_heads, head_dim = q.shape
    if not isinstance(entry, Mapping) or not {"key", "value"} <= set(entry) <= {"key", "value", "mask"}:
        found = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"the cache entry of {name!r} must hold key, value and at most a mask, got {found!r}")
    group = KeyValues(entry["key"], entry["value"], entry.get("mask"))
    size = group.key.shape[1] if group.key.ndim == 4 else -1
    for part, array in (("key", group.key), ("value", group.value)):
        if array.shape != (batch, size, num_heads, head_dim) or array.dtype != q.dtype:
            raise ValueError(
                f"the cached {part} of {name!r} must be {q.dtype} of shape [{batch}, S, {num_heads}, {head_dim}], "
                f"got {array.dtype} of shape {list(array.shape)}"
            )
    if group.mask is not None and (group.mask.shape != (batch, size) or group.mask.dtype != bool):
        raise ValueError(
            f"the cached mask of {name!r} must be bool of shape {[batch, size]}, "
            f"got {group.mask.dtype} of shape {list(group.mask.shape)}"
        )
    return group


def _check_inputs(
    config: AttentionConfig,
    x: jax.Array,
    token_specs: Sequence[TokenSpec],
    freqs: RopeFrequencies | jax.Array | None,
    key_padding_mask: jax.Array | None,
) -> None:
    if x.ndim != 3 or x.shape[2] != config.dim:
        raise ValueError(f"x must have the shape [batch, tokens, {config.dim}], got {list(x.shape)}")
    total = sum(spec.size or 0 for spec in token_specs)
    if total != x.shape[1]:
        sizes = {spec.name: spec.size for spec in token_specs}
        raise ValueError(f"token_specs sum to {total} tokens but x has {x.shape[1]}: {sizes!r}")
    check_rope(config, freqs=freqs)
    if key_padding_mask is not None and (key_padding_mask.dtype != bool or key_padding_mask.shape != x.shape[:2]):
        raise ValueError(
            f"key_padding_mask must be bool of shape {list(x.shape[:2])}, "
            f"got {key_padding_mask.dtype} of shape {list(key_padding_mask.shape)}"
        )


def check_rope(config: AttentionConfig, **frequencies: RopeFrequencies | jax.Array | None) -> None:
    """Checks that rotations are given if and only if the configuration wants them.

    Raises:
        ValueError: They are missing or superfluous.
    """
    for name, freqs in frequencies.items():
        if config.use_rope != (freqs is not None):
            state = "missing" if freqs is None else "given"
            raise ValueError(f"the configuration has use_rope={config.use_rope} but {name} is {state}")


def _take(x: jax.Array, rows: Sequence[slice]) -> jax.Array:
    """Returns these token ranges of x [B, T, ...] one after the other."""
    if len(rows) == 1:
        return x[:, rows[0]]
    return jnp.concatenate([x[:, r] for r in rows] or [x[:, :0]], axis=1)


def _split(x: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Cuts x [B, T, ...] along the tokens; its gradient is one concatenation, where that of slices is a sum of pads."""
    return list(jax.lax.split(x, sizes, axis=1)) if sizes else []


def _concatenate(groups: Sequence[KeyValues]) -> KeyValues:
    """Joins groups along the tokens; a group without a mask is all real."""
    if len(groups) == 1:
        return groups[0]
    mask = None
    if any(group.mask is not None for group in groups):
        masks = [jnp.ones(g.key.shape[:2], bool) if g.mask is None else g.mask for g in groups]
        mask = jnp.concatenate(masks, axis=1)
    return KeyValues(
        jnp.concatenate([group.key for group in groups], axis=1),
        jnp.concatenate([group.value for group in groups], axis=1),
        mask,
    )


def attend(
    config: AttentionConfig,
    q: jax.Array,
    groups: Mapping[str, KeyValues],
    token_specs: Sequence[TokenSpec],
    patterns: Sequence[AttentionPattern],
    *,
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """Runs resolved patterns on projected tokens.

    Args:
        config: Where dropout rate, implementation and precision come from.
        q: Queries [B, T, N, H] in spec order.
        groups: Keys and values of the attended groups, in spec order.
        token_specs: Names and sizes of the groups.
        patterns: Who attends to whom, from `resolve_patterns`.
        dropout_rng: Key of the attention dropout; None means no dropout.

    Returns:
        Array [B, T, N, H].
    """
    if not patterns:
        return q
    dropout_rate = 0.0 if dropout_rng is None else config.dropout
    if config.implementation in ("auto", "splash"):
        some_keys = next(iter(groups.values())).key
        if resolve_implementation(config.implementation, q, some_keys, dropout_rate=dropout_rate) == "splash":
            return _attend_sparsely(q, groups, token_specs, patterns, config.precision)
    run = functools.partial(
        dot_product_attention,
        dropout_rate=dropout_rate,
        dropout_rng=dropout_rng,
        implementation=config.implementation,
        precision=config.precision,
    )
    if config.implementation == "masked":
        return _attend_whole(q, groups, token_specs, patterns, run)
    return _attend_by_pattern(q, groups, token_slices(token_specs), patterns, run)


def _attend_whole(
    q: jax.Array,
    groups: Mapping[str, KeyValues],
    token_specs: Sequence[TokenSpec],
    patterns: Sequence[AttentionPattern],
    run: functools.partial[jax.Array],
) -> jax.Array:
    """One attention over the whole sequence under a mask that spells out the patterns."""
    keys = _concatenate(list(groups.values()))
    sizes = {name: group.key.shape[1] for name, group in groups.items()}
    mask = jnp.asarray(pattern_mask(token_specs, patterns, sizes))[None, None]
    if keys.mask is not None:
        mask = mask & keys.mask[:, None, None, :]
    return run(q, keys.key, keys.value, mask=mask)


def _attend_sparsely(
    q: jax.Array,
    groups: Mapping[str, KeyValues],
    token_specs: Sequence[TokenSpec],
    patterns: Sequence[AttentionPattern],
    precision: str | None,
) -> jax.Array:
    """One kernel over the whole sequence, under a mask of which it holds a few blocks."""
    rows, columns, start = token_slices(token_specs), {}, 0
    for name, group in groups.items():
        columns[name] = slice(start, start + group.key.shape[1])
        start = columns[name].stop
    rectangles = [
        (rows[query].start, rows[query].stop, columns[key].start, columns[key].stop)
        for pattern in patterns
        for query in pattern.query_tokens
        for key in pattern.key_value_tokens
    ]
    keys = _concatenate(list(groups.values()))
    mask = None if keys.mask is None else keys.mask[:, None, None, :]
    run = KERNELS["splash"].run
    return run(q, keys.key, keys.value, mask=mask, rectangles=rectangles, precision=precision)


def _attend_by_pattern(
    q: jax.Array,
    groups: Mapping[str, KeyValues],
    slices: Mapping[str, slice],
    patterns: Sequence[AttentionPattern],
    run: functools.partial[jax.Array],
) -> jax.Array:
    """One attention for all patterns of the same number of queries and keys, side by side on the batch axis."""
    sizes = {name: rows.stop - rows.start for name, rows in slices.items()}
    parts = dict(zip(sizes, _split(q, list(sizes.values())), strict=True))
    batches: dict[tuple[int, int, bool], list[tuple[AttentionPattern, jax.Array, KeyValues]]] = {}
    for pattern in patterns:
        queries = jnp.concatenate([parts[name] for name in pattern.query_tokens], axis=1)
        keys = _concatenate([groups[name] for name in pattern.key_value_tokens])
        shape = (queries.shape[1], keys.key.shape[1], keys.mask is None)
        batches.setdefault(shape, []).append((pattern, queries, keys))
    outputs: dict[str, jax.Array] = {}
    for batch in batches.values():
        queries = jnp.concatenate([entry[1] for entry in batch])
        key, value, mask = (
            jnp.concatenate(a) if a[0] is not None else None for a in zip(*(e[2] for e in batch), strict=True)
        )
        y = run(queries, key, value, mask=None if mask is None else mask[:, None, None, :])
        for (pattern, *_), part in zip(batch, jnp.split(y, len(batch)), strict=True):
            pieces = _split(part, [sizes[name] for name in pattern.query_tokens])
            outputs |= zip(pattern.query_tokens, pieces, strict=True)
    return jnp.concatenate([outputs[name] for name in slices], axis=1)
