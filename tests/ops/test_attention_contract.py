"""What every implementation of attention must do, against `masked` in float32 at highest precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops.attention import IMPLEMENTATIONS, dot_product_attention
from tests.cases import (
    ALL_IMPLEMENTATIONS,
    ATTENTION_SHAPES,
    MASK_FORMS,
    SMALL_SHAPES,
    AttentionShape,
    random_array,
)
from tests.tolerances import TOLERANCES, assert_close, largest_entry

FORWARD, GRADIENT = TOLERANCES["float32"]
SMALL = ATTENTION_SHAPES["small"]

every_implementation = pytest.mark.parametrize("implementation", ALL_IMPLEMENTATIONS)
every_named_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)

attend = jax.jit(dot_product_attention, static_argnames=("implementation", "precision", "dropout_rate"))


CALLS = {name: (ATTENTION_SHAPES[name], ATTENTION_SHAPES[name].mask) for name in SMALL_SHAPES}
CALLS |= {f"mask_{form}": (SMALL, form) for form in MASK_FORMS}
HALF_PRECISION_CALLS = ("odd", "one_query", "several_masked_blocks", "mask_b11s")

Results = tuple[jax.Array, tuple[jax.Array, ...]]


def attend_with_gradients(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, cotangent: jax.Array, implementation: str
) -> Results:
    call = functools.partial(dot_product_attention, mask=mask, implementation=implementation, precision="highest")
    y, pullback = jax.vjp(call, q, k, v)
    return y, pullback(cotangent)


quick_attend_with_gradients = jax.jit(attend_with_gradients, static_argnames="implementation")


@functools.cache
def results(implementation: str, dtype: str, computed_in: str) -> dict[str, Results]:
    """Output and gradients of every call on numbers of this dtype; compiled together, in a third of the time."""
    # What runs the same function is not computed twice.
    same = [name for name, entry in IMPLEMENTATIONS.items() if entry == IMPLEMENTATIONS.get(implementation)]
    if same and same[0] != implementation:
        return results(same[0], dtype, computed_in)
    arguments = {}
    for name, (shape, form) in CALLS.items():
        if dtype == "float32" or name in HALF_PRECISION_CALLS:
            q, k, v = shape.arrays(dtype)
            cotangent = random_array(np.random.default_rng(2), q.shape, dtype)
            q, k, v, cotangent = (a.astype(computed_in) for a in (q, k, v, cotangent))
            arguments[name] = (q, k, v, shape.random_mask(form), cotangent)

    @jax.jit
    def run(arguments: dict[str, Any]) -> dict[str, Results]:
        return {name: attend_with_gradients(*args, implementation) for name, args in arguments.items()}

    return run(arguments)


def check_against_masked(name: str, implementation: str, dtype: str = "float32") -> None:
    y, gradients = results(implementation, dtype, dtype)[name]
    expected, expected_gradients = results("masked", dtype, "float32")[name]
    assert {a.dtype.name for a in (y, *gradients)} == {dtype}
    assert_close(y, expected, TOLERANCES[dtype].forward)
    # Against all gradients of the call: where a query has one key, those of q and k are zero but for rounding.
    largest = largest_entry(expected_gradients)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, TOLERANCES[dtype].gradient, largest=largest)


@pytest.mark.parametrize("name", CALLS)
def test_masked_is_the_formula_in_float64(name: str) -> None:
    shape, form = CALLS[name]
    q, k, v = (np.asarray(a, np.float64) for a in shape.arrays())
    mask = shape.random_mask(form)
    weights = np.exp(np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(shape.head_dim))
    weights = weights if mask is None else np.where(mask, weights, 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    assert_close(results("masked", "float32", "float32")[name][0], np.einsum("bnts,bsnh->btnh", weights, v), FORWARD)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "masked"])
def test_output_and_gradients_agree_in_float32(name: str, implementation: str) -> None:
    check_against_masked(name, implementation)


@pytest.mark.parametrize("name", HALF_PRECISION_CALLS)
@every_implementation
def test_output_and_gradients_agree_in_bfloat16(name: str, implementation: str) -> None:
    check_against_masked(name, implementation, "bfloat16")


@every_named_implementation
def test_a_mask_that_allows_everything_changes_nothing(implementation: str) -> None:
    mask = jnp.ones(SMALL.mask_shape("b11s"), bool)
    y = attend(*SMALL.arrays(), mask=mask, implementation=implementation)
    assert_close(y, attend(*SMALL.arrays(), implementation=implementation), FORWARD)


@pytest.mark.parametrize("empty", ["one_row", "one_sample", "everything"])
@every_implementation
def test_a_query_with_nothing_to_attend_to_gives_zeros_and_finite_gradients(implementation: str, empty: str) -> None:
    mask = np.ones(SMALL.mask_shape("bnts"), bool)
    mask[{"one_row": (0, 1, 3), "one_sample": (1,), "everything": ()}[empty]] = False
    nothing = ~mask.any(axis=-1).swapaxes(1, 2)
    y, gradients = quick_attend_with_gradients(
        *SMALL.arrays(), jnp.asarray(mask), jnp.ones(SMALL.q_shape), implementation=implementation
    )
    assert not np.asarray(y)[nothing].any()
    assert np.abs(np.asarray(y)[~nothing]).min(initial=1.0) > 0
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.asarray(gradients[0])[nothing].any()
    if empty == "everything":
        assert largest_entry(gradients) == 0.0


@every_named_implementation
def test_huge_logits_stay_finite_and_pick_the_best_key(implementation: str) -> None:
    q, k, v = SMALL.arrays()
    mask = SMALL.random_mask("b11s").at[..., 0].set(True)
    y, gradients = quick_attend_with_gradients(
        1e5 * q, k, v, mask, jnp.ones(SMALL.q_shape), implementation=implementation
    )
    best = np.where(mask, np.einsum("btnh,bsnh->bnts", q, k), -np.inf).argmax(axis=-1)
    chosen = np.take_along_axis(np.moveaxis(np.asarray(v), 1, 2), best[..., None], axis=2)
    assert_close(jnp.moveaxis(y, 1, 2), chosen, FORWARD)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every_implementation
def test_softmax_is_float32_in_half_precision(implementation: str) -> None:
    shape = AttentionShape(1, 1, 4, 2, 3000)
    _, k, _ = shape.arrays(jnp.bfloat16)
    y = attend(jnp.zeros(shape.q_shape, jnp.bfloat16), k, jnp.ones_like(k), implementation=implementation)
    # A sum of 3000 equal weights in bfloat16 would stop growing long before 1.
    assert_close(y, jnp.ones(shape.q_shape), 2**-8)


@every_named_implementation
def test_vmap_equals_a_loop(implementation: str) -> None:
    rng, mask = np.random.default_rng(0), SMALL.random_mask("bnts")
    q, k, v = (random_array(rng, (3, *shape)) for shape in (SMALL.q_shape, SMALL.k_shape, SMALL.k_shape))
    call = functools.partial(attend, mask=mask, implementation=implementation)
    looped = jnp.stack([call(*arrays) for arrays in zip(q, k, v, strict=True)])
    assert_close(jax.vmap(call)(q, k, v), looped, FORWARD)


def test_auto_never_holds_many_logits() -> None:
    num_tokens = 8192
    tokens = jax.ShapeDtypeStruct((1, num_tokens, 1, 8), jnp.float32)
    gradient = jax.grad(lambda *arrays: dot_product_attention(*arrays).sum(), (0, 1, 2))
    memory = jax.jit(gradient).lower(tokens, tokens, tokens).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * num_tokens**2 / 8


@pytest.mark.parametrize("name", ATTENTION_SHAPES)
@every_implementation
def test_output_has_the_shape_and_dtype_of_the_queries_at_any_size(name: str, implementation: str) -> None:
    shape = ATTENTION_SHAPES[name]
    q, k = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape.q_shape, shape.k_shape))
    call = functools.partial(dot_product_attention, implementation=implementation)
    y = jax.eval_shape(call, q, k, k)
    assert (y.shape, y.dtype) == (q.shape, q.dtype)


# Dropout ---------------------------------------------------------------------------------------------------------

RATE = 0.25
SQUARE = AttentionShape(3, 2, 64, 96, 64)
"""With as many channels as keys the identity as values shows the weights themselves."""


@functools.cache
def visible_weights(implementation: str, rate: float = RATE, mask_from: int | None = None) -> np.ndarray:
    """Weights [B, T, N, S] of attention of q and k of `SQUARE`; keys from `mask_from` on are padding."""
    q, k, _ = SQUARE.arrays()
    identity = jnp.broadcast_to(jnp.eye(SQUARE.num_keys)[None, :, None], SQUARE.k_shape)
    mask = None if mask_from is None else jnp.arange(SQUARE.num_keys)[None, None, None] < mask_from
    rng = jax.random.key(0) if rate else None
    y = attend(
        q,
        k,
        identity,
        mask=mask,
        dropout_rate=rate,
        dropout_rng=rng,
        implementation=implementation,
        precision="highest",
    )
    return np.asarray(y)


@every_implementation
def test_dropout_drops_weights_at_its_rate_and_scales_the_rest(implementation: str) -> None:
    weights = visible_weights(implementation)
    kept = weights > 0
    assert_close(weights, np.where(kept, visible_weights("masked", rate=0.0) / (1 - RATE), 0.0), FORWARD)
    # Five standard deviations of a binomial fraction, over all weights and for each sample and head.
    for fraction in (kept.mean(), *kept.mean(axis=(1, 3)).ravel()):
        assert abs(fraction - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / (SQUARE.num_queries * SQUARE.num_keys))


@every_implementation
def test_dropout_is_independent_between_samples_heads_queries_and_keys(implementation: str) -> None:
    dropped = (visible_weights(implementation) == 0) - RATE
    for axis in range(4):
        correlation = (dropped * np.roll(dropped, 1, axis=axis)).mean() / (RATE * (1 - RATE))
        # Two heads that swap places count each pair twice.
        assert abs(correlation) < 5 * np.sqrt(2 / dropped.size)


@every_implementation
def test_dropout_is_reproducible_from_its_key(implementation: str) -> None:
    call = functools.partial(attend, *SMALL.arrays(), dropout_rate=RATE, implementation=implementation)
    first, again, other = (call(dropout_rng=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@every_implementation
def test_dropout_has_the_gradient_of_the_weights_it_kept(implementation: str) -> None:
    kept = jnp.asarray(np.moveaxis(visible_weights(implementation) > 0, 1, 2))

    def formula(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") / np.sqrt(SQUARE.head_dim)
        weights = jnp.where(kept, jax.nn.softmax(logits, axis=-1) / (1 - RATE), 0.0)
        return jnp.einsum("bnts,bsnh->btnh", weights, v, precision="highest")

    def dropped(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        options = {"implementation": implementation, "precision": "highest"}
        return dot_product_attention(q, k, v, dropout_rate=RATE, dropout_rng=jax.random.key(0), **options)

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(function: Callable[..., jax.Array], cotangent: jax.Array, *arrays: jax.Array) -> Any:
        y, pullback = jax.vjp(function, *arrays)
        return y, pullback(cotangent)

    arrays = (random_array(np.random.default_rng(2), SQUARE.q_shape), *SQUARE.arrays())
    y, gradients = output_and_gradients(dropped, *arrays)
    expected, expected_gradients = output_and_gradients(formula, *arrays)
    assert_close(y, expected, FORWARD)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, GRADIENT)


@every_implementation
def test_dropout_and_mask_go_together(implementation: str) -> None:
    weights = visible_weights(implementation, mask_from=40)
    assert not weights[..., 40:].any()
    num_weights = weights[..., :40].size
    assert abs((weights[..., :40] > 0).mean() - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / num_weights)
    everything = visible_weights(implementation, mask_from=0)
    assert not everything.any()


# Refusals --------------------------------------------------------------------------------------------------------


@every_implementation
def test_dropout_without_a_key_is_refused(implementation: str) -> None:
    with pytest.raises(ValueError, match=r"dropout_rate=0\.25 needs a dropout_rng"):
        dot_product_attention(*SMALL.arrays(), dropout_rate=0.25, implementation=implementation)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
@every_implementation
def test_a_dropout_rate_outside_its_range_is_refused(implementation: str, rate: float) -> None:
    with pytest.raises(ValueError, match=f"dropout_rate.*{rate}"):
        dot_product_attention(
            *SMALL.arrays(), dropout_rate=rate, dropout_rng=jax.random.key(0), implementation=implementation
        )


def test_an_unknown_implementation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'auto' or one of \['masked', 'xla', 'blockwise'.*got 'fast'"):
        dot_product_attention(*SMALL.arrays(), implementation="fast")


@pytest.mark.parametrize("wrong", [(2, 3, 7, 4), (3, 1, 1, 5), (2, 2, 1, 1), (1, 1, 6, 1)])
@every_implementation
def test_a_mask_that_does_not_fit_is_refused(implementation: str, wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        dot_product_attention(*SMALL.arrays(), mask=jnp.ones(wrong, bool), implementation=implementation)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@every_implementation
def test_a_mask_larger_than_an_axis_of_one_is_refused(implementation: str, axis: int) -> None:
    shape = np.where(np.arange(4) == axis, 3, 1)
    with pytest.raises(ValueError, match="shape"):
        dot_product_attention(
            *AttentionShape(1, 1, 4, 1, 1).arrays(), mask=jnp.ones(shape, bool), implementation=implementation
        )


def wrong_arrays() -> dict[str, dict[str, Any]]:
    q, k, v = SMALL.arrays()
    return {
        "rank": {"q": q[0], "k": k, "v": v},
        "batch": {"q": q[:1], "k": k, "v": v},
        "heads": {"q": q[:, :, :2], "k": k, "v": v},
        "head_dim": {"q": q[..., :4], "k": k, "v": v},
        "keys": {"q": q, "k": k[:, :3], "v": v},
        "dtype": {"q": q, "k": k.astype(jnp.bfloat16), "v": v},
        "mask_rank": {"q": q, "k": k, "v": v, "mask": jnp.ones((7, 5), bool)},
        "mask_dtype": {"q": q, "k": k, "v": v, "mask": jnp.ones((1, 1, 7, 5))},
    }


@pytest.mark.parametrize("wrong", ["rank", "batch", "heads", "head_dim", "keys", "dtype", "mask_rank", "mask_dtype"])
def test_arrays_that_do_not_belong_together_are_refused(wrong: str) -> None:
    with pytest.raises(AssertionError):
        dot_product_attention(**wrong_arrays()[wrong])
