"""Cached keys and values give what the uncached call gives, and are refused where they do not fit."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import (
    AttentionConfig,
    AttentionPattern,
    MixedAttention,
    TokenSpec,
)
from tests.cases import (
    ANCHOR_ATTENTIONS,
    Example,
    anchor_example,
    random_array,
    random_params,
    run_together,
    specs,
)
from tests.layers.attention_cases import (
    ANCHOR_ROWS,
    FORWARD,
    GRADIENT,
    LAYOUT,
    MASK,
    QUERIES,
    QUERY_ROWS,
    assert_trees_close,
    every_implementation,
    gradients,
    store,
)
from tests.tolerances import TOLERANCES, assert_close

KIND_AND_MASK_USE = [(kind, "stored_and_given") for kind in ANCHOR_ATTENTIONS]
KIND_AND_MASK_USE += [("cross", use) for use in ("none", "stored", "given")]


@functools.cache
def cached_and_uncached(implementation: str) -> dict[tuple[str, str, str], tuple[jax.Array, jax.Array]]:
    def run(key: tuple[str, str, str], example: Example) -> tuple[jax.Array, jax.Array]:
        stored, given = (MASK if use in key[2] else None for use in ("stored", "given"))
        y, cache = store(example, stored)
        queries = example.part(*QUERIES, cache, key_padding_mask=None if given is None else given[:, QUERY_ROWS])
        return jnp.concatenate([y, queries], axis=1), example(key_padding_mask=stored)

    keys = [(kind, "float32", use) for kind, use in KIND_AND_MASK_USE] + [("self", "bfloat16", "stored")]
    examples = {k: anchor_example(k[0], "any_order", dtype=k[1], implementation=implementation) for k in keys}
    return run_together(examples, run)


@pytest.mark.parametrize(("kind", "mask_use"), KIND_AND_MASK_USE)
@every_implementation
def test_cached_equals_uncached(kind: str, implementation: str, mask_use: str) -> None:
    cached, uncached = cached_and_uncached(implementation)[kind, "float32", mask_use]
    assert_close(cached, uncached[:, np.concatenate([ANCHOR_ROWS, QUERY_ROWS])], FORWARD)


@every_implementation
def test_cached_equals_uncached_in_bfloat16(implementation: str) -> None:
    cached, uncached = cached_and_uncached(implementation)["self", "bfloat16", "stored"]
    assert cached.dtype == jnp.bfloat16
    assert_close(cached, uncached[:, np.concatenate([ANCHOR_ROWS, QUERY_ROWS])], TOLERANCES["bfloat16"].forward)


@every_implementation
def test_some_branches_may_be_cached_and_others_not(implementation: str) -> None:
    example = anchor_example("joint", "any_order", implementation=implementation)
    _, cache = store(example, MASK)
    token_specs = tuple(TokenSpec(s.name, None) if s.name == "wing_anchors" else s for s in LAYOUT.token_specs)
    rows = np.setdiff1d(np.arange(LAYOUT.num_tokens), LAYOUT.rows(["wing_anchors"]))
    y = example.part(token_specs, rows, cache, key_padding_mask=MASK[:, rows])
    assert_close(y, example(key_padding_mask=MASK)[:, rows], FORWARD)


@every_implementation
def test_caches_are_the_same_with_and_without_queries_in_the_call(implementation: str) -> None:
    example = anchor_example("cross", "any_order", implementation=implementation)
    _, alone = store(example, MASK)
    _, state = example(key_padding_mask=MASK, mutable=("cache",))
    assert set(alone["mixed_attention"]) == set(LAYOUT.anchors)
    assert jax.tree.map(jnp.shape, alone["mixed_attention"]["wing_anchors"]) == {
        "key": (2, 4, 2, 12),
        "value": (2, 4, 2, 12),
        "mask": (2, 4),
    }
    assert_trees_close(state["cache"], alone, FORWARD)


def test_caches_survive_a_call_that_reads_them() -> None:
    example = anchor_example("cross", "any_order")
    _, cache = store(example)
    y, state = example.part(*QUERIES, cache, mutable=("cache",))
    assert_trees_close(state["cache"], cache, 0.0)
    assert_close(y, example()[:, QUERY_ROWS], FORWARD)


@every_implementation
def test_gradients_through_caches_equal_those_of_the_uncached_call(implementation: str) -> None:
    assert_trees_close(gradients(implementation, is_cached=True), gradients("masked", is_cached=False), GRADIENT)


@every_implementation
def test_any_group_of_mixed_attention_may_be_cached(implementation: str) -> None:
    module = MixedAttention(AttentionConfig(dim=24, num_heads=2, implementation=implementation))
    patterns = (AttentionPattern(("a", "c"), ("b", "a")), AttentionPattern(("b",), ("c",)))
    x = random_array(np.random.default_rng(0), (2, 9, 24))
    variables = random_params(module, x, specs(a=3, b=4, c=2), patterns)
    example = Example(module, variables, x, specs(a=3, b=4, c=2), None, patterns)
    y, state = example(mutable=("cache",))
    again = example.part(specs(a=None, b=None, c=2), np.arange(7, 9), state["cache"])
    assert_close(again, y[:, 7:], FORWARD)


def test_nothing_is_cached_at_initialisation_or_unasked() -> None:
    example = anchor_example("self", "any_order")
    shapes = jax.eval_shape(lambda: example.module.init(jax.random.key(0), example.x, *example.static, example.freqs))
    assert list(shapes) == ["params"]
    y, state = example(mutable=("intermediates",))
    assert not state
    assert y.shape == example.x.shape


def broken_caches() -> dict[str, tuple[Any, str]]:
    """Ways to break the entry of the wing's anchors, and what is said about it."""
    key, mask = jnp.zeros((2, 4, 2, 12)), jnp.ones((2, 4), bool)
    right = {"key": key, "value": key}
    wrong_key = r"cached key of .*'wing_anchors' must be float32 of shape \[2, S, 2, 12\], got "
    wrong_mask = r"cached mask of .*'wing_anchors' must be bool of shape \[2, 4\], got "
    return {
        "batch": ({"key": key[:1], "value": key[:1]}, wrong_key + r"float32 of shape \[1, 4, 2, 12\]"),
        "heads": ({"key": key[:, :, :1], "value": key[:, :, :1]}, wrong_key + r"float32 of shape \[2, 4, 1, 12\]"),
        "rank": ({"key": key[0], "value": key[0]}, wrong_key + r"float32 of shape \[4, 2, 12\]"),
        "dtype": ({"key": key.astype(jnp.bfloat16), "value": key}, wrong_key + r"bfloat16 of shape \[2, 4, 2, 12\]"),
        "length": ({"key": key, "value": key[:, :3]}, r"cached value of .*'wing_anchors' .*\[2, 3, 2, 12\]"),
        "mask_shape": (right | {"mask": mask[:, :3]}, wrong_mask + r"bool of shape \[2, 3\]"),
        "mask_dtype": (right | {"mask": mask.astype(jnp.float32)}, wrong_mask + r"float32 of shape \[2, 4\]"),
        "no_value": ({"key": key}, r"cache entry of .*'wing_anchors' must hold key, value .*got \['key'\]"),
        "more": (right | {"bias": key}, r"cache entry of .*'wing_anchors' .*\['bias', 'key', 'value'\]"),
        "an_array": (key, "cache entry of .*'wing_anchors' must hold key, value"),
    }


@pytest.mark.parametrize(
    "broken",
    ["batch", "heads", "rank", "dtype", "length", "mask_shape", "mask_dtype", "no_value", "more", "an_array"],
)
def test_a_cache_entry_that_does_not_fit_is_refused_by_naming_the_group(broken: str) -> None:
    example = anchor_example("self", "any_order")
    _, cache = store(example)
    entry, message = broken_caches()[broken]
    cache = {"mixed_attention": cache["mixed_attention"] | {"wing_anchors": entry}}
    with pytest.raises(ValueError, match=message):
        example.part(*QUERIES, cache)


@pytest.mark.parametrize("cache", ["nothing", "other_groups"])
def test_a_missing_cache_entry_is_named(cache: str) -> None:
    example = anchor_example("self", "any_order")
    entries = dict(store(example)[1]["mixed_attention"])
    del entries["wing_anchors"]
    given = None if cache == "nothing" else {"mixed_attention": entries}
    missing = "w[a-z]+_anchors|body_anchors" if cache == "nothing" else "wing_anchors"
    with pytest.raises(ValueError, match=f"token group '({missing})' has size None but no cache entry"):
        example.part(*QUERIES, given)


def test_a_foreign_cache_entry_is_named() -> None:
    example = anchor_example("self", "any_order")
    entries = store(example)[1]["mixed_attention"]
    cache = {"mixed_attention": entries | {"rocket_anchors": entries["wing_anchors"]}}
    with pytest.raises(ValueError, match="cache holds token group 'rocket_anchors', which is not in token_specs"):
        example.part(*QUERIES, cache)
