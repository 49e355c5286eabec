"""Mixed attention: patterns, errors, dtypes, parameters and dropout."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict

from emmi_jax import AttentionConfig, AttentionPattern, MixedAttention, RopeFrequencies, TokenSpec, rope_frequencies
from tests.cases import (
    ALL_IMPLEMENTATIONS,
    PORTABLE,
    Example,
    apply_compiled,
    random_array,
    random_params,
    random_positions,
    run_together,
    specs,
)
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
DIM, NUM_HEADS = 24, 2
SPECS = specs(a=3, b=4, c=2, d=4)
PATTERNS = {
    "one": (AttentionPattern(("a", "b", "c", "d"), ("a", "b", "c", "d")),),
    "some_keys": (AttentionPattern(("a", "c"), ("b",)), AttentionPattern(("b", "d"), ("c", "b"))),
    "equal_shapes": (
        AttentionPattern(("b",), ("d",)),
        AttentionPattern(("d",), ("b",)),
        AttentionPattern(("c", "a"), ("a",)),
    ),
    "any_order": (AttentionPattern(("d",), ("c", "a")), AttentionPattern(("c", "b", "a"), ("d", "a", "b"))),
}
every_implementation = pytest.mark.parametrize("implementation", PORTABLE)


@functools.cache
def mixed_example(
    patterns: str = "some_keys",
    token_specs: tuple[TokenSpec, ...] = SPECS,
    *,
    use_rope: bool = False,
    x_dtype: str = "float32",
    **config: Any,
) -> Example:
    rng = np.random.default_rng(0)
    module = MixedAttention(AttentionConfig(dim=DIM, num_heads=NUM_HEADS, use_rope=use_rope, **config))
    num_tokens = sum(spec.size for spec in token_specs)
    x = random_array(rng, (2, num_tokens, DIM), x_dtype)
    freqs = rope_frequencies(random_positions(rng, 2, num_tokens), DIM // NUM_HEADS) if use_rope else None
    params = random_params(module, x, token_specs, PATTERNS[patterns], freqs)
    return Example(module, params, x, token_specs, freqs, PATTERNS[patterns])


def formula(example: Example, mask: np.ndarray | None = None) -> np.ndarray:
    """The same in float64, a pattern at a time."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), example.variables["params"])
    x = np.asarray(example.x, np.float64)
    batch, num_tokens, dim = x.shape
    qkv = x @ params["qkv"]["kernel"] + params["qkv"].get("bias", 0.0)
    q, k, v = np.moveaxis(qkv.reshape(batch, num_tokens, 3, NUM_HEADS, -1), 2, 0)
    if example.freqs is not None:
        turn = np.asarray(example.freqs.cos, np.float64) + 1j * np.asarray(example.freqs.sin, np.float64)
        q, k = (np.ascontiguousarray(a).view(complex) * turn[:, :, None] for a in (q, k))
        q, k = (a.view(np.float64) for a in (q, k))
    owners = np.repeat([spec.name for spec in example.token_specs], [spec.size for spec in example.token_specs])
    y = np.zeros_like(q)
    for pattern in example.patterns:
        rows, columns = (np.isin(owners, names) for names in (pattern.query_tokens, pattern.key_value_tokens))
        logits = np.einsum("btnh,bsnh->bnts", q[:, rows], k[:, columns]) / np.sqrt(q.shape[-1])
        weights = np.exp(logits) * (1.0 if mask is None else mask[:, None, None, columns])
        weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
        y[:, rows] = np.einsum("bnts,bsnh->btnh", weights, v[:, columns])
    return y.reshape(batch, num_tokens, dim) @ params["proj"]["kernel"] + params["proj"].get("bias", 0.0)


# What it computes ------------------------------------------------------------------------------------------------


@functools.cache
def outputs(implementation: str) -> dict[tuple[str, bool], jax.Array]:
    keys = itertools.product(PATTERNS, (False, True))
    examples = {key: mixed_example(key[0], use_rope=key[1], implementation=implementation) for key in keys}
    return run_together(examples, lambda _, example: example())


@pytest.mark.parametrize("use_rope", [True, False])
@pytest.mark.parametrize("patterns", PATTERNS)
@every_implementation
def test_each_group_attends_to_the_groups_of_its_pattern(implementation: str, patterns: str, use_rope: bool) -> None:
    expected = formula(mixed_example(patterns, use_rope=use_rope, implementation=implementation))
    assert_close(outputs(implementation)[patterns, use_rope], expected, FORWARD)


@every_implementation
def test_padded_tokens_are_never_attended_to(implementation: str) -> None:
    example = mixed_example("any_order", use_rope=True, implementation=implementation)
    mask = np.random.default_rng(1).random(example.x.shape[:2]) < 0.6
    mask[1, 3:] = False
    assert_close(example(key_padding_mask=jnp.asarray(mask)), formula(example, mask), FORWARD)


@every_implementation
def test_projections_need_no_biases(implementation: str) -> None:
    example = mixed_example(bias=False, implementation=implementation)
    assert_close(example(), formula(example), FORWARD)


@every_implementation
def test_empty_groups_query_nothing_and_give_nothing(implementation: str) -> None:
    example = mixed_example("some_keys", specs(a=3, b=0, c=2, d=0), implementation=implementation)
    y = example()
    assert_close(y, formula(example), FORWARD)
    # b and d have no keys but those of c, and a and c have none at all.
    assert_close(y, jnp.broadcast_to(example.variables["params"]["proj"]["bias"], y.shape), FORWARD)


@every_implementation
def test_no_tokens_at_all_give_none(implementation: str) -> None:
    example = mixed_example("some_keys", specs(a=0, b=0, c=0, d=0), implementation=implementation)
    assert example().shape == (2, 0, DIM)


@every_implementation
def test_the_order_of_patterns_and_of_their_groups_does_not_matter(implementation: str) -> None:
    example = mixed_example("any_order", implementation=implementation)
    reordered = tuple(
        AttentionPattern(p.query_tokens[::-1], p.key_value_tokens[::-1]) for p in reversed(example.patterns)
    )
    y = apply_compiled(example.module, example.variables, example.x, (example.token_specs, reordered), None)
    assert_close(y, example(), FORWARD)


@every_implementation
def test_frequencies_may_be_one_complex_array_or_shared_by_the_batch(implementation: str) -> None:
    example = mixed_example(use_rope=True, implementation=implementation)
    shared = RopeFrequencies(*(f[:1] for f in example.freqs))
    repeated = RopeFrequencies(*(jnp.repeat(f, 2, axis=0) for f in shared))
    apply = functools.partial(apply_compiled, example.module, example.variables, example.x, example.static)
    expected = apply(repeated)
    assert_close(apply(shared), expected, FORWARD)
    assert_close(apply(jax.lax.complex(*shared)), expected, FORWARD)


def test_groups_never_attended_to_get_no_keys_and_values() -> None:
    example = mixed_example("some_keys")
    jaxpr = jax.make_jaxpr(lambda *arrays: example.uncompiled(*arrays)())(*example.arrays)
    products = {eqn.outvars[0].aval.shape for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"}
    num_rows = {
        columns: {math.prod(rows) for *rows, last in products if last == columns} for columns in (DIM, 2 * DIM, 3 * DIM)
    }
    num_tokens, num_keys = 2 * 13, 2 * 6
    assert num_rows == {DIM: {num_tokens}, 2 * DIM: {num_keys}, 3 * DIM: set()}


# Dtypes ----------------------------------------------------------------------------------------------------------


@every_implementation
def test_bfloat16_computation_is_close_to_float32(implementation: str) -> None:
    example = mixed_example(use_rope=True, implementation=implementation, dtype="bfloat16")
    y = example()
    assert y.dtype == jnp.bfloat16
    assert_close(y, formula(example), TOLERANCES["bfloat16"].forward)


@pytest.mark.parametrize(
    ("x_dtype", "dtype", "param_dtype", "expected"),
    [
        ("float32", None, "float32", "float32"),
        ("bfloat16", None, "bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16", "float32", "bfloat16"),
        ("float32", "bfloat16", "float32", "bfloat16"),
        ("bfloat16", "float32", "bfloat16", "float32"),
    ],
)
@every_implementation
def test_dtypes_are_those_of_the_configuration(
    implementation: str, x_dtype: str, dtype: str | None, param_dtype: str, expected: str
) -> None:
    example = mixed_example(
        use_rope=True, x_dtype=x_dtype, implementation=implementation, dtype=dtype, param_dtype=param_dtype
    )
    assert {a.dtype.name for a in jax.tree.leaves(example.variables)} == {param_dtype}
    y = jax.eval_shape(lambda *arrays: example.uncompiled(*arrays)(), *example.arrays)
    assert y.dtype == expected


# Parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@every_implementation
def test_parameters_have_the_names_and_shapes_of_the_reference(implementation: str, bias: bool) -> None:
    example = mixed_example(bias=bias, implementation=implementation)
    shapes = {"/".join(path): a.shape for path, a in flatten_dict(example.variables["params"]).items()}
    expected = {"qkv/kernel": (DIM, 3 * DIM), "proj/kernel": (DIM, DIM)}
    assert shapes == expected | ({"qkv/bias": (3 * DIM,), "proj/bias": (DIM,)} if bias else {})
    assert list(example.variables) == ["params"]


def test_the_same_key_gives_the_same_parameters_whatever_the_implementation() -> None:
    first, *others = (initial_params(implementation=name) for name in ALL_IMPLEMENTATIONS)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


def initial_params(dim: int = DIM, **config: Any) -> dict[str, Any]:
    module = MixedAttention(AttentionConfig(dim=dim, num_heads=NUM_HEADS, **config))
    token_specs, patterns = specs(a=1), (AttentionPattern(("a",), ("a",)),)
    return module.init(jax.random.key(0), jnp.zeros((1, 1, dim)), token_specs, patterns)["params"]


@pytest.mark.parametrize("init_weights", ["truncnormal002", "truncnormal", "truncnormal002-identity"])
def test_normal_initialisation_has_deviation_two_hundredths_and_is_not_cut_at_two_sigma(init_weights: str) -> None:
    params = initial_params(192, init_weights=init_weights)
    kernels = {"qkv": params["qkv"]["kernel"], "proj": params["proj"]["kernel"]}
    if init_weights.endswith("identity"):
        assert not kernels.pop("proj").any()
    for kernel in kernels.values():
        # Five standard errors each; of a normal distribution 4.55 % lie beyond two sigma.
        num = kernel.size
        assert abs(kernel.mean()) < 5 * 0.02 / np.sqrt(num)
        assert abs(kernel.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * num)
        assert abs((jnp.abs(kernel) > 0.04).mean() - 0.0455) < 5 * np.sqrt(0.0455 / num)
    assert not params["qkv"]["bias"].any()
    assert not params["proj"]["bias"].any()


def test_torch_initialisation_is_uniform_in_one_over_the_root_of_fan_in() -> None:
    params = initial_params(192, init_weights="torch")
    bound = 192**-0.5
    for values in jax.tree.leaves(params):
        assert 0.95 * bound < jnp.abs(values).max() <= bound
        assert abs(values.std() - bound / np.sqrt(3)) < 5 * bound / np.sqrt(5 * values.size)
        assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)
    assert not np.array_equal(params["qkv"]["bias"][:192], params["proj"]["bias"])


def test_zero_initialisation_is_zero() -> None:
    assert not any(values.any() for values in jax.tree.leaves(initial_params(init_weights="zeros")))


def test_initialisation_depends_on_the_key_and_stores_parameters_only() -> None:
    example = mixed_example()
    first, other = (example.module.init(jax.random.key(seed), example.x, *example.static) for seed in (0, 1))
    assert list(first) == ["params"]
    assert not np.array_equal(first["params"]["qkv"]["kernel"], other["params"]["qkv"]["kernel"])


# Dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ALL_IMPLEMENTATIONS)
def test_dropout_acts_on_attention_weights_in_training_only(implementation: str) -> None:
    example = mixed_example(dropout=0.5, implementation=implementation)
    rngs = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    first, again, other = (example(deterministic=False, rngs=r) for r in rngs)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    # A dropped output of `proj` would be exactly zero.
    assert jnp.abs(first).min() > 0
    assert_close(example(), formula(example), FORWARD)


@pytest.mark.parametrize("implementation", ALL_IMPLEMENTATIONS)
def test_patterns_of_different_shapes_drop_different_weights(implementation: str) -> None:
    module = MixedAttention(AttentionConfig(dim=DIM, num_heads=1, dropout=0.5, implementation=implementation))
    patterns = (AttentionPattern(("a",), ("k",)), AttentionPattern(("b", "k"), ("k",)))
    x = random_array(np.random.default_rng(0), (1, 37, DIM)).at[:, :5].set(1.0)
    static = (specs(a=2, b=3, k=32), patterns)
    variables = random_params(module, x, *static)
    y = apply_compiled(module, variables, x, static, None, deterministic=False, rngs={"dropout": jax.random.key(0)})
    # Equal queries attend to equal keys, so only the dropped weights can differ.
    assert not np.isclose(y[0, :2], y[0, 2:4]).all(axis=-1).any()


def test_dropout_needs_its_rng() -> None:
    with pytest.raises(InvalidRngError, match="dropout"):
        mixed_example(dropout=0.5)(deterministic=False)


def test_a_rate_of_zero_needs_no_rng() -> None:
    example = mixed_example()
    assert_close(example(deterministic=False), example(), FORWARD)


# Errors ----------------------------------------------------------------------------------------------------------


def call(**changes: Any) -> jax.Array:
    """Applies an attention without rope to the groups a (3 tokens) and b (4), with these arguments changed."""
    use_rope = changes.pop("use_rope", False)
    module = MixedAttention(AttentionConfig(dim=DIM, num_heads=NUM_HEADS, use_rope=use_rope))
    patterns = [AttentionPattern(tuple(q), tuple(k)) for q, k in changes.pop("patterns", [("ab", "b")])]
    arguments = {"x": jnp.zeros((2, 7, DIM)), "token_specs": specs(a=3, b=4), "attention_patterns": patterns}
    kernels = {"qkv": jnp.zeros((DIM, 3 * DIM)), "proj": jnp.zeros((DIM, DIM))}
    params = {name: {"kernel": kernel, "bias": kernel[0]} for name, kernel in kernels.items()}
    return module.apply({"params": params}, **(arguments | changes))


FREQS = RopeFrequencies(jnp.ones((2, 7, 6)), jnp.zeros((2, 7, 6)))


def test_the_call_that_the_errors_start_from_is_right() -> None:
    assert call().shape == (2, 7, DIM)
    assert call(use_rope=True, freqs=FREQS, key_padding_mask=jnp.ones((2, 7), bool)).shape == (2, 7, DIM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_specs": specs(a=3, b=5)}, "token_specs sum to 8 tokens but x has 7: {'a': 3, 'b': 5}"),
        ({"token_specs": specs(a=3, b=0)}, "token_specs sum to 3 tokens but x has 7"),
        (
            {"token_specs": (TokenSpec("a", 3), TokenSpec("a", 4)), "patterns": [("a", "a")]},
            "token group 'a' appears 2 times in token_specs",
        ),
        ({"patterns": [("ab", "b"), ("b", "a")]}, "token group 'b' is queried by more than one attention pattern"),
        ({"patterns": [("a", "b")]}, r"token groups \['b'\] are in token_specs but no attention pattern queries them"),
        ({"patterns": []}, r"token groups \['a', 'b'\] are in token_specs but no attention pattern queries them"),
        ({"patterns": [("abc", "b")]}, r"query group 'c' is not in token_specs, which hold \['a', 'b'\]"),
        ({"patterns": [("ab", "bc")]}, r"key/value group 'c' is not in token_specs, which hold \['a', 'b'\]"),
        ({"patterns": [("ab", "")]}, r"the attention pattern of \['a', 'b'\] attends to no group"),
        ({"use_rope": True}, "use_rope=True but freqs is missing"),
        ({"freqs": FREQS}, "use_rope=False but freqs is given"),
        ({"use_rope": True, "freqs": jnp.ones((2, 7, 6))}, "complex array, got dtype float32"),
        ({"x": jnp.zeros((7, DIM))}, rf"x must have the shape \[batch, tokens, {DIM}\], got \[7, {DIM}\]"),
        ({"x": jnp.zeros((2, 7, 12))}, rf"x must have the shape \[batch, tokens, {DIM}\], got \[2, 7, 12\]"),
        (
            {"key_padding_mask": jnp.ones((2, 7))},
            r"key_padding_mask must be bool of shape \[2, 7\], got float32 of shape \[2, 7\]",
        ),
        ({"key_padding_mask": jnp.ones((2, 7), jnp.int32)}, "must be bool .* got int32"),
        ({"key_padding_mask": jnp.ones((2, 6), bool)}, r"of shape \[2, 7\], got bool of shape \[2, 6\]"),
        ({"key_padding_mask": jnp.ones((1, 7), bool)}, r"of shape \[2, 7\], got bool of shape \[1, 7\]"),
        ({"key_padding_mask": jnp.ones(7, bool)}, r"of shape \[2, 7\], got bool of shape \[7\]"),
        ({"key_padding_mask": jnp.ones((2, 1, 1, 7), bool)}, r"got bool of shape \[2, 1, 1, 7\]"),
    ],
)
def test_a_wrong_call_is_refused_by_naming_the_group_or_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changes)


@pytest.mark.parametrize("shape", [(2, 6, 6), (3, 7, 6), (2, 7, 12), (7, 6)])
def test_frequencies_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"freqs must have the shape \[2 or 1, 7, 6\], got"):
        call(use_rope=True, freqs=RopeFrequencies(jnp.ones(shape), jnp.zeros(shape)))
