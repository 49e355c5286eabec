"""Strategies: how a set of attention patterns becomes calls of one attention kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig
from emmi_jax.config.implementations import IMPLEMENTATIONS
from emmi_jax.layers.key_values import KeyValues, join_key_values
from emmi_jax.ops.attention import dot_product_attention, resolve_implementation
from emmi_jax.ops.masks import Rectangle
from emmi_jax.ops.rows import concat_tokens, split_tokens
from emmi_jax.tokens import AttentionPattern, TokenSpec, pattern_rectangles


def attend_by_patterns(
    config: AttentionConfig,
    queries: Mapping[str, jax.Array],
    groups: Mapping[str, KeyValues],
    patterns: Sequence[AttentionPattern],
    *,
    dropout_rng: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Runs resolved patterns on projected tokens, by the strategy of the layer's implementation.

    Args:
        config: Source of the dropout rate, implementation and precision.
        queries: Queries [B, T, N, H] of each group in the input.
        groups: Keys and values of the attended groups.
        patterns: Who attends to whom, from `resolve_patterns`.
        dropout_rng: Key of the attention dropout; None means no dropout.

    Returns:
        Array [B, T, N, H] for each group of `queries`, in their order.
    """
    if not patterns:
        return {}
    calls = itertools.count()

    def attend(q: jax.Array, keys: KeyValues, rectangles: Sequence[Rectangle] | None = None) -> jax.Array:
        # With one key for several calls, each would drop the same weights.
        rng = None if dropout_rng is None else jax.random.fold_in(dropout_rng, next(calls))
        mask = None if keys.mask is None else keys.mask[:, None, None, :]
        return attend_to(config, q, keys, mask, rng, rectangles=rectangles)

    some_queries, some_keys = next(iter(queries.values())), next(iter(groups.values())).key
    name = resolve_implementation(
        config.implementation, some_queries, some_keys, dropout_rate=0.0 if dropout_rng is None else config.dropout
    )
    strategy = {"whole": _attend_whole, "by_pattern": _attend_by_pattern}[IMPLEMENTATIONS[name].strategy]
    return strategy(attend, queries, groups, patterns)


def attend_to(
    config: AttentionConfig,
    q: jax.Array,
    keys: KeyValues,
    mask: jax.Array | None,
    dropout_rng: jax.Array | None,
    *,
    rectangles: Sequence[Rectangle] | None = None,
) -> jax.Array:
    """Attends from q [B, T, N, H] to keys and values under a mask, as the configuration says; no key, no dropout."""
    return dot_product_attention(
        q,
        keys.key,
        keys.value,
        mask=mask,
        rectangles=rectangles,
        dropout_rate=0.0 if dropout_rng is None else config.dropout,
        dropout_rng=dropout_rng,
        implementation=config.implementation,
        precision=config.precision,
    )


def _attend_whole(
    attend: Callable[..., jax.Array],
    queries: Mapping[str, jax.Array],
    groups: Mapping[str, KeyValues],
    patterns: Sequence[AttentionPattern],
) -> dict[str, jax.Array]:
    """Makes one call for the whole sequence, with a rectangle of the logits for each pair of groups."""
    sizes = {name: q.shape[1] for name, q in queries.items()}
    token_specs = [TokenSpec(name, size) for name, size in sizes.items()]
    rectangles = pattern_rectangles(token_specs, patterns, {name: g.key.shape[1] for name, g in groups.items()})
    return split_tokens(
        attend(concat_tokens(queries.values()), join_key_values(list(groups.values())), rectangles), sizes
    )


def _attend_by_pattern(
    attend: Callable[..., jax.Array],
    queries: Mapping[str, jax.Array],
    groups: Mapping[str, KeyValues],
    patterns: Sequence[AttentionPattern],
) -> dict[str, jax.Array]:
    """Makes one call for all patterns with the same numbers of queries and keys, side by side on the batch axis."""
    batches: dict[tuple[int, int, bool], list[tuple[AttentionPattern, jax.Array, KeyValues]]] = {}
    for pattern in patterns:
        q = concat_tokens(queries[name] for name in pattern.query_tokens)
        keys = join_key_values([groups[name] for name in pattern.key_value_tokens])
        shape = (q.shape[1], keys.key.shape[1], keys.mask is None)
        batches.setdefault(shape, []).append((pattern, q, keys))
    outputs: dict[str, jax.Array] = {}
    for batch in batches.values():
        keys = jax.tree.map(lambda *arrays: _side_by_side(arrays), *(entry[2] for entry in batch))
        y = attend(_side_by_side([entry[1] for entry in batch]), keys)
        for (pattern, *_), part in zip(batch, _apart(y, len(batch)), strict=True):
            outputs |= split_tokens(part, {name: queries[name].shape[1] for name in pattern.query_tokens})
    return {name: outputs[name] for name in queries}


def _side_by_side(arrays: Sequence[jax.Array]) -> jax.Array:
    """Stacks arrays [B, ...] to [B · number, ...], samples outermost, so that a sharded batch axis stays sharded."""
    if len(arrays) == 1:
        return arrays[0]
    batch, *rest = arrays[0].shape
    return jnp.stack(arrays, axis=1).reshape(batch * len(arrays), *rest)


def _apart(y: jax.Array, number: int) -> list[jax.Array]:
    """Undoes `_side_by_side`."""
    if number == 1:
        return [y]
    return list(jnp.unstack(y.reshape(y.shape[0] // number, number, *y.shape[1:]), axis=1))
