"""What perceiver attention means, caches and refuses."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict

from emmi_jax import AttentionConfig, PerceiverAttention, RopeFrequencies, rope_frequencies
from tests.cases import random_array, random_params, random_positions, take_freqs
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
DIM, KV_DIM, NUM_HEADS, BATCH, NUM_QUERIES, NUM_KEYS = 24, 10, 2, 2, 5, 7


@functools.partial(jax.jit, static_argnames=("module", "deterministic", "mutable"))
def run(module: PerceiverAttention, variables: Any, *args: Any, **kwargs: Any) -> Any:
    return module.apply(variables, *args, **kwargs)


def attention(**config: Any) -> PerceiverAttention:
    return PerceiverAttention(
        AttentionConfig(**{"dim": DIM, "num_heads": NUM_HEADS, "use_rope": True} | config), KV_DIM
    )


def inputs() -> tuple[jax.Array, jax.Array, RopeFrequencies, RopeFrequencies]:
    rng = np.random.default_rng(0)
    q, kv = random_array(rng, (BATCH, NUM_QUERIES, DIM)), random_array(rng, (BATCH, NUM_KEYS, KV_DIM))
    return (
        q,
        kv,
        *(rope_frequencies(random_positions(rng, BATCH, n), DIM // NUM_HEADS) for n in (NUM_QUERIES, NUM_KEYS)),
    )


def params_of(module: PerceiverAttention) -> Any:
    return random_params(module, *(inputs() if module.config.use_rope else inputs()[:2]))


def formula(variables: Any, mask: np.ndarray | None = None) -> np.ndarray:
    """The same in float64."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    q, kv, *freqs = jax.tree.map(lambda a: np.asarray(a, np.float64), inputs())
    linear = {name: params[name]["kernel"] for name in params}
    bias = {name: params[name].get("bias", 0.0) for name in params}
    query = (q @ linear["q"] + bias["q"]).reshape(BATCH, NUM_QUERIES, NUM_HEADS, -1)
    key, value = np.moveaxis((kv @ linear["kv"] + bias["kv"]).reshape(BATCH, NUM_KEYS, 2, NUM_HEADS, -1), 2, 0)
    for array, (cos, sin) in ((query, freqs[0]), (key, freqs[1])):
        array.view(complex)[...] *= (cos + 1j * sin)[:, :, None]
    weights = np.exp(np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(DIM // NUM_HEADS))
    weights *= 1.0 if mask is None else mask
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    y = np.einsum("bnts,bsnh->btnh", weights, value).reshape(BATCH, NUM_QUERIES, DIM)
    return y @ linear["proj"] + bias["proj"]


@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
@pytest.mark.parametrize("bias", [True, False])
def test_output_follows_the_formula(implementation, bias):
    module = attention(implementation=implementation, bias=bias)
    variables = params_of(module)
    assert_close(run(module, variables, *inputs()), formula(variables), FORWARD)


@pytest.mark.parametrize("implementation", ["xla", "blockwise"])
@pytest.mark.parametrize("shape", [(BATCH, 1, 1, NUM_KEYS), (1, NUM_HEADS, NUM_QUERIES, NUM_KEYS)])
def test_masked_keys_are_never_attended_to_and_a_query_without_keys_gets_the_bias(implementation, shape):
    module = attention(implementation=implementation)
    variables = params_of(module)
    mask = np.random.default_rng(1).random(shape) < 0.6
    mask[-1, :, -1] = False
    y = run(module, variables, *inputs(), mask=jnp.asarray(mask))
    assert_close(y, formula(variables, mask), FORWARD)
    np.testing.assert_allclose(y[-1, -1], variables["params"]["proj"]["bias"], atol=1e-6)


def test_order_of_keys_does_not_matter_and_queries_do_not_see_one_another():
    module = attention()
    variables, (q, kv, q_freqs, k_freqs) = params_of(module), inputs()
    y = run(module, variables, q, kv, q_freqs, k_freqs)
    keys, queries = np.random.default_rng(1).permutation(NUM_KEYS), np.array([3, 1, 4, 0, 2])
    permuted = run(
        module, variables, q[:, queries], kv[:, keys], take_freqs(q_freqs, queries), take_freqs(k_freqs, keys)
    )
    assert_close(permuted, y[:, queries], FORWARD)
    changed = run(module, variables, q.at[:, 0].add(1), kv, q_freqs, k_freqs)
    assert_close(changed[:, 1:], y[:, 1:], FORWARD)
    assert np.abs(changed[:, 0] - y[:, 0]).max() > 1e-2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kv_dim", [None, KV_DIM])
def test_parameters_have_the_documented_names_and_shapes(kv_dim, bias):
    module = PerceiverAttention(AttentionConfig(dim=DIM, num_heads=NUM_HEADS, bias=bias), kv_dim)
    kv = jnp.zeros((BATCH, NUM_KEYS, kv_dim or DIM))
    variables = jax.eval_shape(module.init, jax.random.key(0), inputs()[0], kv)
    assert set(variables) == {"params"}
    expected = {"q/kernel": (DIM, DIM), "kv/kernel": (kv_dim or DIM, 2 * DIM), "proj/kernel": (DIM, DIM)}
    if bias:
        expected |= {"q/bias": (DIM,), "kv/bias": (2 * DIM,), "proj/bias": (DIM,)}
    assert jax.tree.map(np.shape, flatten_dict(variables["params"], sep="/")) == expected


def test_identity_initialisation_starts_at_zero():
    module = attention(init_weights="truncnormal002-identity")
    variables = jax.jit(module.init)(jax.random.key(0), *inputs())
    np.testing.assert_array_equal(run(module, variables, *inputs()), 0)
    assert all(variables["params"][name]["kernel"].any() for name in ("q", "kv"))


def test_half_precision_runs_with_float32_parameters_and_stays_close_to_float32():
    half, module = attention(dtype="bfloat16"), attention()
    variables = params_of(half)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    y = run(half, variables, *inputs())
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(jnp.float32), run(module, variables, *inputs()), TOLERANCES["bfloat16"].forward)


@pytest.mark.parametrize("implementation", ["masked", "blockwise"])
def test_dropout_follows_its_key_and_is_off_when_deterministic(implementation):
    module = attention(dropout=0.5, implementation=implementation)
    variables = params_of(module)
    first, again, other = (
        run(module, variables, *inputs(), deterministic=False, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # Behind the projection, dropout shows as zeros.
    assert 0.3 < np.mean(first == 0) < 0.7
    assert_close(run(module, variables, *inputs()), formula(variables), FORWARD)
    with pytest.raises(InvalidRngError):
        module.apply(variables, *inputs(), deterministic=False)


# The cache -------------------------------------------------------------------------------------------------------


@functools.cache
def cached() -> tuple[PerceiverAttention, Any, jax.Array, Any]:
    """The layer, its variables, its output and what it cached."""
    module = attention()
    variables = params_of(module)
    y, cache = run(module, variables, *inputs(), mutable=("cache",))
    return module, variables, y, cache


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3]])
def test_any_queries_on_cached_keys_equal_those_on_given_ones(rows):
    module, variables, y, cache = cached()
    q, _, q_freqs, _ = inputs()
    rows = np.array(rows)
    assert_close(run(module, variables | cache, q[:, rows], None, take_freqs(q_freqs, rows)), y[:, rows], FORWARD)


def test_cached_keys_take_a_mask_as_given_ones_do():
    module, variables, _, cache = cached()
    q, kv, q_freqs, k_freqs = inputs()
    mask = jnp.asarray(np.random.default_rng(1).random((BATCH, 1, 1, NUM_KEYS)) < 0.6)
    expected = run(module, variables, q, kv, q_freqs, k_freqs, mask=mask)
    assert_close(run(module, variables | cache, q, None, q_freqs, mask=mask), expected, FORWARD)


def test_cache_holds_keys_and_values_only_where_it_is_mutable():
    module, variables, _, cache = cached()
    shape = (BATCH, NUM_KEYS, NUM_HEADS, DIM // NUM_HEADS)
    assert jax.tree.map(np.shape, cache) == {"cache": {"kv": {"key": shape, "value": shape}}}
    _, state = run(module, variables, *inputs(), mutable=("intermediates",))
    assert "cache" not in state
    assert "cache" not in jax.eval_shape(module.init, jax.random.key(0), *inputs())


CACHE_ERRORS = {
    "no entry": (lambda entry: {}, "kv is None but the cache has no entry 'kv'"),
    "no mapping": (lambda entry: {"kv": entry["key"]}, "entry of 'kv' must hold key, value and at most a mask"),
    "no values": (lambda entry: {"kv": {"key": entry["key"]}}, "entry of 'kv' must hold key, value and at most a mask"),
    "other batch": (
        lambda entry: {"kv": jax.tree.map(lambda a: a[:1], entry)},
        r"cached key of 'kv' must be float32 of shape \[2, S, 2, 12\], got float32 of shape \[1, 7, 2, 12\]",
    ),
    "other heads": (
        lambda entry: {"kv": jax.tree.map(lambda a: a[:, :, :1], entry)},
        r"cached key of 'kv' must be float32 of shape \[2, S, 2, 12\], got float32 of shape \[2, 7, 1, 12\]",
    ),
    "other number of values": (
        lambda entry: {"kv": entry | {"value": entry["value"][:, :3]}},
        r"cached value of 'kv' must be float32 of shape \[2, S, 2, 12\], got float32 of shape \[2, 3, 2, 12\]",
    ),
    "other dtype": (
        lambda entry: {"kv": jax.tree.map(lambda a: a.astype(jnp.bfloat16), entry)},
        "cached key of 'kv' must be float32 .* got bfloat16",
    ),
}


@pytest.mark.parametrize("case", CACHE_ERRORS)
def test_cache_that_does_not_fit_is_refused(case):
    change, message = CACHE_ERRORS[case]
    module, variables, _, cache = cached()
    q, _, q_freqs, _ = inputs()
    with pytest.raises(ValueError, match=message):
        module.apply(variables | {"cache": change(cache["cache"]["kv"])}, q, None, q_freqs)


# Errors ----------------------------------------------------------------------------------------------------------

Q, KV, Q_FREQS, K_FREQS = inputs()
ARGUMENT_ERRORS = {
    "channels of q": (
        (Q[..., :5], KV, Q_FREQS, K_FREQS),
        r"q must have the shape \[batch, tokens, 24\], got \[2, 5, 5\]",
    ),
    "rank of q": ((Q[0], KV, Q_FREQS, K_FREQS), r"q must have the shape \[batch, tokens, 24\], got \[5, 24\]"),
    "channels of kv": ((Q, Q, Q_FREQS, Q_FREQS), r"kv must have the shape \[batch, tokens, 10\], got \[2, 5, 24\]"),
    "no q_freqs": ((Q, KV, None, K_FREQS), "use_rope=True but q_freqs is missing"),
    "no k_freqs": ((Q, KV, Q_FREQS, None), "use_rope=True but k_freqs is missing"),
    "k_freqs of cached keys": ((Q, None, Q_FREQS, K_FREQS), "k_freqs are given but kv is None"),
}


@pytest.mark.parametrize("case", ARGUMENT_ERRORS)
def test_argument_that_does_not_fit_is_refused(case):
    args, message = ARGUMENT_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        attention().apply(params_of(attention()), *args)


@pytest.mark.parametrize("name", ["q_freqs", "k_freqs"])
def test_superfluous_rotations_are_refused(name):
    freqs = {"q_freqs": Q_FREQS, "k_freqs": K_FREQS}[name]
    with pytest.raises(ValueError, match=f"use_rope=False but {name} is given"):
        attention(use_rope=False).init(jax.random.key(0), Q, KV, **{name: freqs})
