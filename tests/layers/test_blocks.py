"""Transformer and perceiver blocks: norms, conditions, drop path, layer scale, names, padding and caches."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emmi_jax import (
    MissingBranchTokensError,
    TokenSpec,
)
from emmi_jax.layers.mlp import Mlp
from tests.cases import random_params
from tests.layers.block_cases import (
    BLOCKS,
    CONDITION_DIM,
    CONFIG,
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
from tests.tolerances import TOLERANCES, assert_close


def fresh_variables(block: Any, *args: Any, **kwargs: Any) -> Any:
    return jax.jit(functools.partial(block.init, **kwargs))(jax.random.key(0), *args)


NORMS = {"transformer": ("norm1", "norm2"), "perceiver": ("norm1q", "norm1kv", "norm2")}


@pytest.mark.parametrize("is_conditioned", [False, True])
@pytest.mark.parametrize("kind", BLOCKS)
def test_every_norm_has_epsilon_1e_6_and_survives_a_large_mean(kind, is_conditioned):
    # With all weights zero no residual branch adds anything, so that norm2 sees the block's own input.
    block = make(
        kind,
        dataclasses.replace(CONFIG, init_weights="zeros"),
        condition_dim=CONDITION_DIM if is_conditioned else None,
    )
    args, kwargs = tokens(kind), {"condition": condition()} if is_conditioned else {}
    small = tuple(1e-3 * x for x in args)
    shifted = tuple(512 + x for x in args)
    variables = fresh_variables(block, *args, **kwargs)
    for inputs, tolerance in ((small, FORWARD), (shifted, 1e-4)):
        _, state = block.apply(variables, *inputs, **kwargs, capture_intermediates=True)
        for name in NORMS[kind]:
            (normed,) = state["intermediates"][name]["__call__"]
            x = np.asarray(inputs[-1] if name == "norm1kv" else inputs[0], np.float64)
            centered = x - x.mean(axis=-1, keepdims=True)
            assert_close(normed, centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6), tolerance)


def test_gelu_of_the_mlp_is_the_exact_one():
    x = jnp.linspace(-4, 4, 33)[:, None]
    one = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    y = Mlp(1, 1, CONFIG).apply({"params": {"fc1": one, "fc2": one}}, x)
    expected = [[0.5 * v * (1 + math.erf(v / math.sqrt(2)))] for v in np.asarray(x[:, 0], np.float64)]
    np.testing.assert_allclose(y, expected, atol=1e-6)


CONDITION_ERRORS = {
    "superfluous": (None, (2, 5), "a condition of shape [2, 5] is given to an unconditioned block"),
    "missing": (5, None, "a block with condition_dim=5 needs a condition"),
    "wrong channels": (5, (2, 4), "condition must have the shape [batch, 5], got [2, 4]"),
    "wrong rank": (5, (2, 1, 5), "condition must have the shape [batch, 5], got [2, 1, 5]"),
}


@pytest.mark.parametrize("case", CONDITION_ERRORS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_condition_that_does_not_fit_is_refused(kind, case):
    condition_dim, shape, message = CONDITION_ERRORS[case]
    kwargs = {} if shape is None else {"condition": jnp.zeros(shape)}
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        make(kind, condition_dim=condition_dim).init(jax.random.key(0), *tokens(kind), **kwargs)
    assert str(error.value) == message


@pytest.mark.parametrize("kind", BLOCKS)
def test_fresh_conditioned_block_is_the_identity(kind):
    block, args = make(kind, condition_dim=CONDITION_DIM), tokens(kind)
    variables = fresh_variables(block, *args, condition=condition())
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables["params"]["modulation"]))
    np.testing.assert_array_equal(run(block, variables, *args, condition=condition()), args[0])


def with_gammas(params: Any, first: float, second: float) -> Any:
    return params | {"ls1": {"gamma": jnp.full(12, first)}, "ls2": {"gamma": jnp.full(12, second)}}


@pytest.mark.parametrize("kind", BLOCKS)
def test_drop_path_drops_branches_of_whole_samples_and_scales_the_rest_by_one_over_keep(kind):
    args = tokens(kind, batch=64)
    block = make(kind, layer_scale=1.0, drop_path_rate=0.25)
    params = random_params(block, *args)["params"]
    y = run(block, {"params": params | with_gammas(params, 1, 1)}, *args, deterministic=False,
            rngs={"dropout": jax.random.key(0)})  # fmt: skip
    # A layer scale of 0 or 1/keep does to all samples what drop path does to some.
    outcomes = [
        run(block, {"params": with_gammas(params, *scales)}, *args)
        for scales in itertools.product((0, 4 / 3), repeat=2)
    ]
    errors = np.stack([np.abs(y - outcome).max(axis=(1, 2)) for outcome in outcomes])
    assert errors.min(axis=0).max() <= FORWARD * np.abs(y).max()
    counts = np.bincount(errors.argmin(axis=0), minlength=4)
    # Four standard deviations of the binomial distributions with probabilities 1/16, 3/16, 3/16 and 9/16.
    for count, probability in zip(counts, (1 / 16, 3 / 16, 3 / 16, 9 / 16), strict=True):
        assert abs(count - 64 * probability) <= 4 * math.sqrt(64 * probability * (1 - probability))


@pytest.mark.parametrize("kind", BLOCKS)
def test_drop_path_follows_its_key_and_is_off_when_deterministic(kind):
    args = tokens(kind, batch=16)
    plain, dropping = make(kind), make(kind, drop_path_rate=0.5)
    variables = random_params(plain, *args)
    first, again, other = (
        run(dropping, variables, *args, deterministic=False, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(run(dropping, variables, *args), run(plain, variables, *args))


@pytest.mark.parametrize("kind", BLOCKS)
def test_layer_scale_acts_as_if_in_the_output_projections(kind):
    args, attention = tokens(kind), {"transformer": "attention_block", "perceiver": "attn"}[kind]
    scaled, plain = make(kind, layer_scale=0.3), make(kind)
    params = random_params(scaled, *args)["params"]
    folded = {name: dict(part) for name, part in params.items() if name not in ("ls1", "ls2")}
    for parent, layer, scale in ((attention, "proj", "ls1"), ("mlp", "fc2", "ls2")):
        gamma = params[scale]["gamma"]
        folded[parent][layer] = {name: array * gamma for name, array in params[parent][layer].items()}
    actual = run(scaled, {"params": params}, *args)
    assert_close(actual, run(plain, {"params": folded}, *args), FORWARD)


@pytest.mark.parametrize("kind", BLOCKS)
def test_layer_scale_starts_at_its_initial_value(kind):
    params = fresh_variables(make(kind, layer_scale=0.3), *tokens(kind))["params"]
    for name in ("ls1", "ls2"):
        np.testing.assert_array_equal(params[name]["gamma"], np.full(12, 0.3, np.float32))


LINEAR = ("kernel", "bias")
PARTS = {
    "transformer": {"attention_block/qkv": LINEAR, "attention_block/proj": LINEAR},
    "perceiver": {"attn/q": LINEAR, "attn/kv": LINEAR, "attn/proj": LINEAR},
}


@pytest.mark.parametrize("is_conditioned", [False, True])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("kind", BLOCKS)
def test_parameters_have_the_documented_names(kind, layer_scale, is_conditioned):
    block = make(kind, layer_scale=layer_scale, condition_dim=CONDITION_DIM if is_conditioned else None)
    kwargs = {"condition": condition()} if is_conditioned else {}
    shapes = jax.eval_shape(functools.partial(block.init, **kwargs), jax.random.key(0), *tokens(kind))
    parts = PARTS[kind] | {"mlp/fc1": LINEAR, "mlp/fc2": LINEAR}
    parts |= {"modulation": LINEAR} if is_conditioned else dict.fromkeys(NORMS[kind], ("scale", "bias"))
    parts |= {} if layer_scale is None else {"ls1": ("gamma",), "ls2": ("gamma",)}
    assert set(flatten_dict(shapes["params"], sep="/")) == {
        f"{p}/{leaf}" for p, leaves in parts.items() for leaf in leaves
    }


@pytest.mark.parametrize("kind", BLOCKS)
def test_bfloat16_stays_close_to_float32_with_float32_parameters(kind):
    args = tokens(kind)
    block = make(kind, condition_dim=CONDITION_DIM, layer_scale=0.3)
    half = make(kind, dataclasses.replace(CONFIG, dtype="bfloat16"), condition_dim=CONDITION_DIM, layer_scale=0.3)
    variables = random_params(half, *args, condition=condition())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    y = run(half, variables, *(x.astype(jnp.bfloat16) for x in args), condition=condition())
    assert y.dtype == jnp.bfloat16
    expected = run(block, variables, *args, condition=condition())
    assert_close(y.astype(jnp.float32), expected, 2 * TOLERANCES["bfloat16"].forward)


def test_padding_a_full_attention_block_equals_truncating_it():
    (x,) = tokens("transformer", num_tokens=6)
    block, keep = make("transformer"), np.array([0, 2, 3, 5])
    variables = random_params(block, x)
    mask = jnp.zeros((2, 6), bool).at[:, keep].set(True)
    padded = run(block, variables, x, key_padding_mask=mask)
    assert_close(padded[:, keep], run(block, variables, x[:, keep]), FORWARD)


def padded_blocks():
    """Every block with its tokens, what else it takes, and the rows that a mask pads."""
    mask = jnp.ones((2, 12), bool).at[:, 3].set(False).at[0, 8].set(False)
    x, padding = UNTIED_INPUTS["x"], ~np.asarray(mask)
    kwargs = {"key_padding_mask": mask}
    blocks = {
        "full": (make("transformer"), (x,), kwargs, padding),
        "untied": (untied("cross"), (x,), kwargs | {"token_specs": TOKEN_SPECS}, padding),
    }
    blocks |= {
        kind: (anchor_block(kind), (x,), kwargs | {"token_specs": TOKEN_SPECS}, padding) for kind in ("self", "joint")
    }
    blocks["perceiver"] = (make("perceiver"), tokens("perceiver"), {"mask": mask[:, None, None, :6]}, padding[:, :6])
    return blocks


@pytest.mark.parametrize("name", ["full", "self", "joint", "untied", "perceiver"])
def test_nan_in_a_padded_token_changes_no_output_and_no_gradient(name):
    block, args, kwargs, padding = padded_blocks()[name]
    variables = random_params(block, *args, **kwargs)
    *first, padded = args
    real = jnp.asarray(~padding)[..., None] if len(args) == 1 else jnp.ones((1, 1, 1), bool)

    @jax.jit
    def output_and_gradients(padded):
        def loss(variables, padded):
            y = jnp.where(real, block.apply(variables, *first, padded, **kwargs), 0)
            return jnp.square(y).sum(), y

        return jax.grad(loss, (0, 1), has_aux=True)(variables, padded)

    expected = output_and_gradients(padded)
    actual = output_and_gradients(jnp.where(padding[..., None], jnp.nan, padded))
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), actual, expected)
    assert not np.asarray(actual[0][1])[padding].any()


def test_specs_for_full_attention_and_none_for_anchor_attention_are_refused():
    (x,) = tokens("transformer")
    with pytest.raises(ValueError, match="token_specs are given to a block of DotProductAttention"):
        make("transformer").init(jax.random.key(0), x, (TokenSpec("surface_anchors", 5),))
    with pytest.raises(MissingBranchTokensError, match="no token group belongs to branch 'surface'"):
        anchor_block("self").init(jax.random.key(0), x)


def test_perceiver_block_reads_the_keys_and_values_that_it_cached():
    q, kv = tokens("perceiver")
    block = make("perceiver", condition_dim=CONDITION_DIM)
    variables = random_params(block, q, kv, condition=condition())
    y, cache = run(block, variables, q, kv, condition=condition(), mutable=("cache",))
    assert_close(run(block, variables | cache, q[:, 1:3], None, condition=condition()), y[:, 1:3], FORWARD)


def test_perceiver_block_caches_the_mask_of_its_keys():
    q, kv = tokens("perceiver")
    block, mask = make("perceiver"), jnp.arange(6)[None] < jnp.array([[4], [6]])
    variables = random_params(block, q, kv)
    y, cache = run(block, variables, q, kv, mask=mask[:, None, None], mutable=("cache",))
    assert_close(run(block, variables | cache, q, None), y, FORWARD)
    assert not np.allclose(run(block, variables, q, kv), y)


def test_perceiver_block_without_cached_keys_and_values_is_refused():
    q, kv = tokens("perceiver")
    block = make("perceiver")
    variables = random_params(block, q, kv)
    with pytest.raises(ValueError, match="kv is None but the cache has no entry 'kv'"):
        block.apply(variables, q, None)


def test_conditioned_perceiver_block_refuses_keys_and_values_of_other_channels_than_its_own():
    q, _ = tokens("perceiver")
    block = make("perceiver", condition_dim=CONDITION_DIM, kv_dim=7)
    with pytest.raises(ValueError, match=r"kv must have the shape \[batch, tokens, 7\], got \[2, 4, 12\]"):
        block.init(jax.random.key(0), q, jnp.zeros((2, 4, 12)), condition=condition())


@pytest.mark.parametrize("kind", ["transformer", "perceiver"])
def test_identity_initialisation_starts_as_the_identity(kind):
    config = dataclasses.replace(make(kind).config, init_weights="truncnormal002-identity")
    inputs = tokens(kind)
    y, variables = make(kind).clone(config=config).init_with_output(jax.random.key(0), *inputs)
    np.testing.assert_array_equal(y, inputs[0])
    assert np.abs(variables["params"]["mlp"]["fc1"]["kernel"]).max() > 0


def test_a_block_without_biases_keeps_only_the_scales_of_its_norms():
    config = dataclasses.replace(make("transformer").config, bias=False)
    params = make("transformer").clone(config=config).init(jax.random.key(0), *tokens("transformer"))["params"]
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
    assert leaves == {"kernel", "scale"}


def test_a_block_without_a_size_of_its_mlp_is_refused():
    block = make("transformer").clone(mlp_ratio=None)
    with pytest.raises(ValueError, match="one of mlp_ratio and mlp_hidden_dim must be set"):
        block.init(jax.random.key(0), *tokens("transformer"))
