"""Full self-attention: its formula, masks, dropout, parameters and errors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emmi_jax import (
    AttentionConfig,
    AttentionPattern,
    DotProductAttention,
    MixedAttention,
    RopeFrequencies,
    rope_frequencies,
)
from tests.cases import (
    ALL_IMPLEMENTATIONS,
    Example,
    apply_compiled,
    random_array,
    random_params,
    random_positions,
    specs,
)
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
DIM, NUM_HEADS, NUM_TOKENS = 24, 2, 7
every_implementation = pytest.mark.parametrize("implementation", ["xla", "blockwise"])


@functools.cache
def full_example(*, use_rope: bool = True, x_dtype: str = "float32", **config: Any) -> Example:
    rng = np.random.default_rng(0)
    module = DotProductAttention(AttentionConfig(dim=DIM, num_heads=NUM_HEADS, use_rope=use_rope, **config))
    x = random_array(rng, (2, NUM_TOKENS, DIM), x_dtype)
    freqs = rope_frequencies(random_positions(rng, 2, NUM_TOKENS), DIM // NUM_HEADS) if use_rope else None
    return Example(module, random_params(module, x, freqs), x, None, freqs)


@pytest.mark.parametrize("use_rope", [True, False])
@every_implementation
def test_it_is_mixed_attention_with_one_full_pattern(implementation: str, use_rope: bool) -> None:
    example = full_example(use_rope=use_rope, implementation=implementation)
    mixed = MixedAttention(AttentionConfig(dim=DIM, num_heads=NUM_HEADS, use_rope=use_rope, implementation="masked"))
    static = (specs(all=NUM_TOKENS), (AttentionPattern(("all",), ("all",)),))
    mask = jnp.asarray(np.random.default_rng(1).random((2, NUM_TOKENS)) < 0.7)
    for own_mask, key_padding_mask in ((None, None), (mask[:, None, None], mask)):
        expected = apply_compiled(
            mixed, example.variables, example.x, static, example.freqs, key_padding_mask=key_padding_mask
        )
        assert_close(example(mask=own_mask), expected, FORWARD)


@pytest.mark.parametrize("shape", [(2, NUM_HEADS, NUM_TOKENS, NUM_TOKENS), (1, 1, NUM_TOKENS, NUM_TOKENS)])
@every_implementation
def test_a_mask_says_who_attends_to_whom(implementation: str, shape: tuple[int, ...]) -> None:
    example = full_example(implementation=implementation)
    mask = jnp.asarray(np.tril(np.ones(shape, bool)))
    changed = example.x.at[:, 4:].add(1.0)
    before, after = example(mask=mask), example(changed, mask=mask)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.isclose(before[:, 4:], after[:, 4:]).all(axis=(0, 2)).any()


@every_implementation
def test_a_query_with_nothing_to_attend_to_gives_the_bias(implementation: str) -> None:
    example = full_example(implementation=implementation)
    y = example(mask=jnp.zeros((2, 1, 1, NUM_TOKENS), bool))
    assert_close(y, jnp.broadcast_to(example.variables["params"]["proj"]["bias"], y.shape), FORWARD)


@every_implementation
def test_no_tokens_give_none(implementation: str) -> None:
    module = DotProductAttention(AttentionConfig(dim=DIM, num_heads=NUM_HEADS, implementation=implementation))
    variables = full_example(use_rope=False).variables
    assert module.apply(variables, jnp.zeros((2, 0, DIM))).shape == (2, 0, DIM)


@pytest.mark.parametrize("bias", [True, False])
@every_implementation
def test_parameters_have_the_names_of_the_reference(implementation: str, bias: bool) -> None:
    variables = full_example(bias=bias, implementation=implementation).variables
    shapes = {"/".join(path): a.shape for path, a in flatten_dict(variables["params"]).items()}
    expected = {"qkv/kernel": (DIM, 3 * DIM), "proj/kernel": (DIM, DIM)}
    assert shapes == expected | ({"qkv/bias": (3 * DIM,), "proj/bias": (DIM,)} if bias else {})


@pytest.mark.parametrize("init_weights", ["truncnormal002", "truncnormal002-identity"])
def test_only_the_identity_initialisation_starts_with_a_zero_output(init_weights: str) -> None:
    module = DotProductAttention(AttentionConfig(dim=DIM, num_heads=NUM_HEADS, init_weights=init_weights))
    params = module.init(jax.random.key(0), jnp.zeros((1, 2, DIM)))["params"]
    assert bool(params["proj"]["kernel"].any()) == (init_weights == "truncnormal002")
    assert 0.018 < params["qkv"]["kernel"].std() < 0.022


@pytest.mark.parametrize(
    ("x_dtype", "dtype", "expected"),
    [("float32", None, "float32"), ("float32", "bfloat16", "bfloat16"), ("bfloat16", "float32", "float32")],
)
@every_implementation
def test_output_has_the_dtype_of_the_configuration(
    implementation: str, x_dtype: str, dtype: str | None, expected: str
) -> None:
    example = full_example(x_dtype=x_dtype, dtype=dtype, implementation=implementation)
    y = example()
    assert y.dtype == expected
    assert_close(y, full_example(implementation="masked")(), TOLERANCES["bfloat16" if dtype else "float32"].forward)


@pytest.mark.parametrize("implementation", ALL_IMPLEMENTATIONS)
def test_dropout_acts_after_the_output_projection_too(implementation: str) -> None:
    example = full_example(dropout=0.25, implementation=implementation)
    first, again, other = (example(deterministic=False, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    deviation = np.sqrt(0.25 * 0.75 / first.size)
    assert abs((first == 0).mean() - 0.25) < 5 * deviation
    # Where it is kept, the attention dropout shows.
    assert not np.isclose(0.75 * first, example())[first != 0].any()


def test_dropout_is_off_when_deterministic() -> None:
    assert_close(full_example(dropout=0.5)(), full_example()(), FORWARD)


@pytest.mark.parametrize(
    ("use_rope", "shape", "freqs", "message"),
    [
        (True, (2, 7, DIM), None, "use_rope=True but freqs is missing"),
        (False, (2, 7, DIM), RopeFrequencies(jnp.ones((2, 7, 6)), jnp.ones((2, 7, 6))), "use_rope=False but freqs is"),
        (False, (7, DIM), None, rf"x must have the shape \[batch, tokens, {DIM}\], got \[7, {DIM}\]"),
        (False, (2, 7, 12), None, rf"x must have the shape \[batch, tokens, {DIM}\], got \[2, 7, 12\]"),
    ],
)
def test_a_wrong_call_is_refused(use_rope: bool, shape: tuple[int, ...], freqs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full_example(use_rope=use_rope).module.init(jax.random.key(0), jnp.zeros(shape), freqs)


@pytest.mark.parametrize("shape", [(2, 1, 1, 6), (3, 1, 7, 7), (2, 3, 7, 7)])
@every_implementation
def test_a_mask_that_does_not_fit_is_refused(implementation: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        full_example(implementation=implementation)(mask=jnp.ones(shape, bool))
