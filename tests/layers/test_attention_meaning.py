"""What attends to what, under any attention: reach, permutations and padding."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import (
    RopeFrequencies,
    TokenSpec,
)
from tests.cases import (
    ANCHOR_ATTENTIONS,
    Example,
    anchor_example,
    run_together,
)
from tests.layers.attention_cases import FORWARD, GRADIENT, LAYOUT, MASK, assert_trees_close, every_implementation
from tests.tolerances import assert_close

every_kind = pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)


@every_kind
@every_implementation
def test_queries_move_no_anchor_and_no_other_query(kind: str, implementation: str) -> None:
    example = anchor_example(kind, "any_order", implementation=implementation)
    (name, *_), before = LAYOUT.queries, np.asarray(example())
    perturbed = LAYOUT.rows([name])
    after = np.asarray(example(example.x.at[:, perturbed].add(1.0)))
    rest = np.delete(np.arange(LAYOUT.num_tokens), perturbed)
    np.testing.assert_array_equal(after[:, rest], before[:, rest])
    assert np.abs(after - before)[:, perturbed].max(axis=-1).min() > 1e-3


@every_kind
def test_anchors_move_exactly_the_groups_that_attend_to_them(kind: str) -> None:
    example = anchor_example(kind, "any_order")
    patterns = example.module._create_attention_patterns(example.token_specs)
    for anchors in LAYOUT.anchors:
        moved = example(example.x.at[:, LAYOUT.rows([anchors])].add(1.0)) - example()
        reached = {spec.name for spec in LAYOUT.token_specs if jnp.abs(moved[:, LAYOUT.rows([spec.name])]).max() > 1e-3}
        attending = {name for p in patterns if anchors in p.key_value_tokens for name in p.query_tokens}
        assert reached == attending | {anchors}


@every_kind
@every_implementation
def test_a_permutation_within_a_group_permutes_its_outputs_and_nothing_else(kind: str, implementation: str) -> None:
    example = anchor_example(kind, "any_order", implementation=implementation)
    for name in ("wing_anchors", "wake_queries"):
        order = np.arange(LAYOUT.num_tokens)
        order[LAYOUT.rows([name])] = np.roll(LAYOUT.rows([name]), 1)
        y = example.part(LAYOUT.token_specs, order)
        assert_close(y, example()[:, order], FORWARD)


# The last token of each group of more than one is padding.
ENDS = np.cumsum([spec.size for spec in LAYOUT.token_specs])
PADDING = [end - 1 for end, spec in zip(ENDS, LAYOUT.token_specs, strict=True) if spec.size > 1]
REAL = np.delete(np.arange(LAYOUT.num_tokens), PADDING)
KIND_AND_MASKING = [*((kind, True) for kind in ANCHOR_ATTENTIONS), ("self", False)]
TRUNCATED = tuple(TokenSpec(spec.name, spec.size - (spec.size > 1)) for spec in LAYOUT.token_specs)


@functools.cache
def padded_and_truncated(implementation: str) -> dict[tuple[str, bool], tuple[jax.Array, jax.Array]]:
    def run(key: tuple[str, bool], example: Example) -> tuple[jax.Array, jax.Array]:
        mask = MASK if key[1] else jnp.ones_like(MASK)
        # Inputs that would be noticed.
        x = example.x.at[:, PADDING].mul(100.0)
        padded = example(x, key_padding_mask=mask.at[:, PADDING].set(False))
        return padded, example.part(TRUNCATED, REAL, key_padding_mask=mask[:, REAL] if key[1] else None)

    examples = {k: anchor_example(k[0], "any_order", implementation=implementation) for k in KIND_AND_MASKING}
    return run_together(examples, run)


@pytest.mark.parametrize(("kind", "is_masked_inside"), KIND_AND_MASKING)
@every_implementation
def test_padding_equals_truncation(kind: str, implementation: str, is_masked_inside: bool) -> None:
    padded, truncated = padded_and_truncated(implementation)[kind, is_masked_inside]
    assert_close(padded[:, REAL], truncated, FORWARD)
    assert np.isfinite(padded).all()


@every_kind
@every_implementation
def test_nan_in_padding_reaches_nothing_real(kind: str, implementation: str) -> None:
    example = anchor_example(kind, "any_order", implementation=implementation)
    mask, x = MASK.at[:, PADDING].set(False), example.x.at[:, PADDING].set(jnp.nan)
    freqs = RopeFrequencies(*(f.at[:, PADDING].set(jnp.nan) for f in example.freqs))

    @jax.jit
    def output_and_gradients(x: jax.Array, freqs: RopeFrequencies) -> Any:
        def real_output(variables: Any, x: jax.Array) -> jax.Array:
            return example.uncompiled(variables, x, freqs)(key_padding_mask=mask)[:, REAL]

        y, pullback = jax.vjp(real_output, example.variables, x)
        return y, pullback(y)

    y, (params, dx) = output_and_gradients(x, freqs)
    assert_trees_close((y, (params, dx)), output_and_gradients(example.x, example.freqs), GRADIENT)
    assert not dx[:, PADDING].any()


@every_implementation
def test_nan_in_a_query_stays_in_its_row_and_in_anchors_in_its_pattern(implementation: str) -> None:
    example = anchor_example("self", "any_order", implementation=implementation)
    for name, reached in (("wake_queries", ["wake_queries"]), ("wing_anchors", ["wing_anchors", "wing_queries"])):
        y = example(example.x.at[:, LAYOUT.rows([name])].set(jnp.nan))
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(y).any(axis=(0, 2))), LAYOUT.rows(reached))


@every_implementation
def test_samples_may_be_padded_differently(implementation: str) -> None:
    example = anchor_example("cross", "any_order", implementation=implementation)
    y = example(key_padding_mask=MASK)
    for sample in range(2):
        mask = jnp.broadcast_to(MASK[sample], MASK.shape)
        assert_close(y[sample], example(key_padding_mask=mask)[sample], FORWARD)
    assert not np.allclose(y, example())
