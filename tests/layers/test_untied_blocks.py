"""Blocks with weights for each branch: those of tied ones, any order of groups, caches and padding."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.layers.perceiver_block import UntiedPerceiverBlock
from tests.cases import ANCHOR_ATTENTIONS, random_array, random_params, specs
from tests.layers.block_cases import (
    BRANCHES,
    CONDITION_DIM,
    FORWARD,
    TOKEN_SPECS,
    UNTIED_INPUTS,
    anchor_block,
    condition,
    make,
    run,
    tokens,
    untied,
)
from tests.tolerances import assert_close


@functools.cache
def untied_params(kind: str) -> Any:
    block = untied(kind, condition_dim=CONDITION_DIM)
    return random_params(block, **UNTIED_INPUTS, token_specs=TOKEN_SPECS)["params"]


def run_untied(kind: str, params: Any, token_specs: Any = TOKEN_SPECS, x: Any = None, **kwargs: Any) -> Any:
    inputs = UNTIED_INPUTS if x is None else UNTIED_INPUTS | {"x": x}
    block = untied(kind, condition_dim=CONDITION_DIM)
    return run(block, {"params": params} | kwargs.pop("cache", {}), **inputs, token_specs=token_specs, **kwargs)


@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
def test_untied_block_with_equal_weights_is_the_tied_block(kind):
    params = untied_params(kind)["surface"]
    tied = run(
        anchor_block(kind, condition_dim=CONDITION_DIM), {"params": params}, **UNTIED_INPUTS, token_specs=TOKEN_SPECS
    )
    assert_close(run_untied(kind, dict.fromkeys(BRANCHES, params)), tied, FORWARD)


MIXED_SPECS = specs(volume_queries=3, surface_anchors=4, volume_anchors=3, surface_queries=2)
MIXED_ROWS = np.array([9, 10, 11, 0, 1, 2, 3, 6, 7, 8, 4, 5])
"""Where the tokens of `MIXED_SPECS` lie under `TOKEN_SPECS`."""


@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
def test_untied_block_takes_groups_in_any_order(kind):
    params, x = untied_params(kind), UNTIED_INPUTS["x"]
    mask = jnp.ones((2, 12), bool).at[:, np.array([2, 7])].set(False)
    y = run_untied(kind, params, key_padding_mask=mask)
    mixed = run_untied(kind, params, MIXED_SPECS, x[:, MIXED_ROWS], key_padding_mask=mask[:, MIXED_ROWS])
    assert_close(mixed, y[:, MIXED_ROWS], FORWARD)


def test_untied_perceiver_block_takes_groups_in_any_order_and_gives_each_its_branch():
    q, kv = random_array(np.random.default_rng(2), (2, 12, 12)), tokens("perceiver")[1]
    block = UntiedPerceiverBlock(make("perceiver", parent=None), BRANCHES)
    variables = random_params(block, q, kv, token_specs=MIXED_SPECS)
    y = run(block, variables, q, kv, token_specs=MIXED_SPECS)
    for branch, rows in (("surface", [3, 4, 5, 6, 10, 11]), ("volume", [0, 1, 2, 7, 8, 9])):
        alone = run(make("perceiver"), {"params": variables["params"][branch]}, q[:, np.array(rows)], kv)
        assert_close(y[:, np.array(rows)], alone, FORWARD)


@pytest.mark.parametrize(
    ("token_specs", "message"),
    [
        (specs(surface_anchors=4, volume_anchors=7), "token_specs sum to 11 tokens but q has 12"),
        (specs(surface_anchors=4, wake=8), r"token groups \['wake'\] belong to none of the branches"),
    ],
)
def test_untied_perceiver_block_refuses_specs_that_do_not_fit(token_specs, message):
    block = UntiedPerceiverBlock(make("perceiver", parent=None), BRANCHES)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            functools.partial(block.init, token_specs=token_specs),
            jax.random.key(0),
            jnp.zeros((1, 12, 12)),
            jnp.zeros((1, 3, 12)),
        )


def test_untied_self_attention_of_a_branch_is_its_own_block_on_its_own_tokens():
    params = untied_params("self")
    y = run_untied("self", params)
    for branch, rows in (("surface", slice(0, 6)), ("volume", slice(6, 12))):
        own = tuple(spec for spec in TOKEN_SPECS if spec.name.startswith(branch))
        block = anchor_block("self", (branch,), condition_dim=CONDITION_DIM)
        x = UNTIED_INPUTS["x"][:, rows]
        alone = run(block, {"params": params[branch]}, x, condition=condition(), token_specs=own)
        assert_close(y[:, rows], alone, FORWARD)


@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
def test_untied_block_from_cached_anchors_equals_the_whole(kind):
    params, rows = untied_params(kind), np.array([9, 10, 11])
    whole, cache = run_untied(kind, params, mutable=("cache",))
    cached = specs(surface_anchors=None, volume_anchors=None, volume_queries=3)
    part = run_untied(kind, params, cached, UNTIED_INPUTS["x"][:, rows], cache=cache)
    assert_close(part, whole[:, rows], FORWARD)


@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
def test_padding_an_untied_block_equals_truncating_it(kind):
    params, keep = untied_params(kind), np.array([0, 2, 3, 4, 5, 7, 8, 9, 10, 11])
    mask = jnp.zeros((2, 12), bool).at[:, keep].set(True)
    padded = run_untied(kind, params, key_padding_mask=mask)
    short = specs(surface_anchors=3, surface_queries=2, volume_anchors=2, volume_queries=3)
    assert_close(padded[:, keep], run_untied(kind, params, short, UNTIED_INPUTS["x"][:, keep]), FORWARD)


def test_untied_block_has_the_tree_of_a_block_under_each_branch():
    shapes = jax.tree.map(np.shape, untied_params("cross"))
    assert list(shapes) == list(BRANCHES)
    x = jnp.zeros((2, 12, 12))
    tied = jax.eval_shape(
        functools.partial(anchor_block("cross", condition_dim=CONDITION_DIM).init, token_specs=TOKEN_SPECS),
        jax.random.key(0),
        x,
        condition=condition(),
    )["params"]
    for branch in BRANCHES:
        assert shapes[branch] == jax.tree.map(np.shape, tied)
