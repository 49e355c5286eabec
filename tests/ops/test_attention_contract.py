"""The contract of all attention kernels, against the formula in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops.attention import dot_product_attention, resolve_implementation
from tests.cases import ATTENTION_SHAPES, MASK_FORMS, SMALL_SHAPES, AttentionShape, random_array
from tests.tolerances import TOLERANCES, assert_close, largest_entry

KERNELS = ("xla", "blockwise")
"""One implementation for each kernel that runs anywhere; `masked` shares its kernel with `xla`."""

FORWARD_MODE = ("xla", "blockwise")
"""Those with derivatives in forward mode."""

NAN_SAFE = ("xla", "blockwise")
"""Those that keep NaN in masked keys and values from everything else."""

FORWARD, GRADIENT = TOLERANCES["float32"]
SMALL = ATTENTION_SHAPES["small"]
CALLS = {name: (ATTENTION_SHAPES[name], ATTENTION_SHAPES[name].mask) for name in SMALL_SHAPES}
CALLS |= {f"mask_{form}": (SMALL, form) for form in MASK_FORMS if form != "1111"}
HALF_PRECISION_CALLS = ("odd", "one_query", "several_masked_blocks", "mask_b11s")
DTYPES_AND_CALLS = [("float32", name) for name in CALLS]
DTYPES_AND_CALLS += [(dtype, name) for dtype in ("bfloat16", "float16") for name in HALF_PRECISION_CALLS]

every_kernel = pytest.mark.parametrize("implementation", KERNELS)
attend = jax.jit(dot_product_attention, static_argnames=("implementation", "precision", "dropout_rate", "rectangles"))

Arrays = tuple[Any, ...]


def formula(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, cotangent: np.ndarray) -> Arrays:
    """Output and gradients."""
    scale = q.shape[-1] ** -0.5
    logits = np.einsum("btnh,bsnh->bnts", q, k) * scale
    logits = logits if mask is None else np.where(mask, logits, -np.inf)
    top = logits.max(axis=-1, keepdims=True, initial=-1e300)
    weights = np.exp(logits - top)
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    d_weights = np.einsum("btnh,bsnh->bnts", cotangent, v)
    d_logits = scale * weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
    return (
        np.einsum("bnts,bsnh->btnh", weights, v),
        np.einsum("bnts,bsnh->btnh", d_logits, k),
        np.einsum("bnts,btnh->bsnh", d_logits, q),
        np.einsum("bnts,btnh->bsnh", weights, cotangent),
    )


def with_gradients(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, cotangent: jax.Array, implementation: str
) -> Arrays:
    call = functools.partial(dot_product_attention, mask=mask, implementation=implementation, precision="highest")
    y, pullback = jax.vjp(call, q, k, v)
    return y, *pullback(cotangent)


quick_with_gradients = jax.jit(with_gradients, static_argnames="implementation")


def arguments(name: str, dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]:
    shape, form = CALLS[name]
    cotangent = random_array(np.random.default_rng(2), shape.q_shape, dtype)
    return *shape.arrays(dtype), shape.random_mask(form), cotangent


def exact(args: Arrays) -> Arrays:
    return tuple(a if a is None or a.dtype == bool else np.asarray(a, np.float64) for a in args)


@functools.cache
def results(implementation: str, dtype: str) -> dict[str, Arrays]:
    """Outputs and gradients of every call; compiled together, in a third of the time."""
    calls = {name: arguments(name, dtype) for this, name in DTYPES_AND_CALLS if this == dtype}

    @jax.jit
    def run(calls: dict[str, Any]) -> dict[str, Arrays]:
        return {name: with_gradients(*args, implementation) for name, args in calls.items()}

    return run(calls)


@pytest.mark.parametrize(("dtype", "name"), DTYPES_AND_CALLS)
@every_kernel
def test_output_and_gradients_are_those_of_the_formula(implementation: str, dtype: str, name: str) -> None:
    y, *gradients = results(implementation, dtype)[name]
    expected, *expected_gradients = formula(*exact(arguments(name, dtype)))
    tolerance = TOLERANCES["float32" if dtype == "float32" else "bfloat16"]
    assert {a.dtype.name for a in (y, *gradients)} == {dtype}
    assert_close(y, expected, tolerance.forward)
    # Relative to all gradients of the call: with one key, those of q and k are zero up to rounding.
    largest = largest_entry(expected_gradients)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, tolerance.gradient, largest=largest)


@pytest.mark.parametrize("name", ["small", "odd", "padded", "no_keys", "several_masked_blocks"])
@pytest.mark.parametrize("implementation", FORWARD_MODE)
def test_forward_mode_and_second_derivatives_are_those_of_the_formula(implementation: str, name: str) -> None:
    q, k, v, mask, cotangent = arguments(name)
    rng = np.random.default_rng(3)
    primals, tangents = (q, k, v), tuple(random_array(rng, a.shape) for a in (q, k, v))

    @jax.jit
    def run(primals: Arrays, tangents: Arrays) -> Any:
        def all_outputs(*primals: jax.Array) -> Arrays:
            return with_gradients(*primals, mask, cotangent, implementation)

        def moved(*primals: jax.Array) -> jax.Array:
            gradients = all_outputs(*primals)[1:]
            return sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))

        def directional(*primals: jax.Array) -> jax.Array:
            call = functools.partial(dot_product_attention, mask=mask, implementation=implementation)
            return (jax.jvp(call, primals, tangents)[1] * cotangent).sum()

        derivatives = jax.jvp(all_outputs, primals, tangents)[1]
        return derivatives, jax.grad(moved, (0, 1, 2))(*primals), jax.grad(directional, (0, 1, 2))(*primals)

    (output, *over_reverse), reverse_over_reverse, reverse_over_forward = run(primals, tangents)
    step, (w, *points), directions = 1e-4, exact((cotangent, *primals)), exact(tangents)
    ahead, behind = (
        formula(*(a + sign * step * t for a, t in zip(points, directions, strict=True)), mask, w) for sign in (1, -1)
    )
    expected, *expected_second = ((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))
    assert_close(output, expected, GRADIENT)
    largest = largest_entry(expected_second)
    for second in (over_reverse, reverse_over_reverse, reverse_over_forward):
        for actual, wanted in zip(second, expected_second, strict=True):
            assert_close(actual, wanted, GRADIENT, largest=largest)


@pytest.mark.parametrize("empty", ["one_row", "one_sample", "everything"])
@every_kernel
def test_a_query_with_nothing_to_attend_to_gives_zeros_and_finite_gradients(implementation: str, empty: str) -> None:
    mask = np.ones(SMALL.mask_shape("bnts"), bool)
    mask[{"one_row": (0, 1, 3), "one_sample": (1,), "everything": ()}[empty]] = False
    nothing = ~mask.any(axis=-1).swapaxes(1, 2)
    y, *gradients = quick_with_gradients(
        *SMALL.arrays(), jnp.asarray(mask), jnp.ones(SMALL.q_shape), implementation=implementation
    )
    assert not np.asarray(y)[nothing].any()
    assert np.abs(np.asarray(y)[~nothing]).min(initial=1.0) > 0
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not np.asarray(gradients[0])[nothing].any()
    if empty == "everything":
        assert largest_entry(gradients) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["b11s", "11ts", "bnts"])
@pytest.mark.parametrize("implementation", NAN_SAFE)
def test_a_masked_key_and_value_may_be_anything(implementation: str, form: str, value: float) -> None:
    q, k, v = SMALL.arrays()
    mask = SMALL.random_mask(form).at[..., 2].set(False)
    run = functools.partial(quick_with_gradients, implementation=implementation)
    expected = run(q, k, v, mask, jnp.ones(SMALL.q_shape))
    y, dq, dk, dv = run(q, k.at[:, 2].set(value), v.at[:, 2].set(value), mask, jnp.ones(SMALL.q_shape))
    for actual, wanted in zip((y, dq, dk, dv), expected, strict=True):
        assert_close(actual, wanted, FORWARD)
    assert not dk[:, 2].any()
    assert not dv[:, 2].any()


def test_nan_in_a_key_reaches_exactly_the_queries_that_attend_to_it() -> None:
    q, k, v = SMALL.arrays()
    mask = SMALL.random_mask("11ts").at[..., 3:, 2].set(False)
    attending = np.asarray(mask[0, 0, :, 2])
    y, dq, *_ = quick_with_gradients(
        q, k.at[:, 2].set(jnp.nan), v, mask, jnp.ones(SMALL.q_shape), implementation="masked"
    )
    for array in (y, dq):
        np.testing.assert_array_equal(np.isnan(array).any(axis=(0, 2, 3)), attending)
    assert attending.any()


@every_kernel
def test_huge_logits_stay_finite_and_pick_the_best_key(implementation: str) -> None:
    q, k, v = SMALL.arrays()
    mask = SMALL.random_mask("b11s").at[..., 0].set(True)
    y, *gradients = quick_with_gradients(1e5 * q, k, v, mask, jnp.ones(SMALL.q_shape), implementation=implementation)
    best = np.where(mask, np.einsum("btnh,bsnh->bnts", q, k), -np.inf).argmax(axis=-1)
    chosen = np.take_along_axis(np.moveaxis(np.asarray(v), 1, 2), best[..., None], axis=2)
    assert_close(jnp.moveaxis(y, 1, 2), chosen, FORWARD)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@every_kernel
def test_softmax_is_float32_in_half_precision(implementation: str) -> None:
    shape = AttentionShape(1, 1, 4, 2, 3000)
    _, k, _ = shape.arrays(jnp.bfloat16)
    y = attend(jnp.zeros(shape.q_shape, jnp.bfloat16), k, jnp.ones_like(k), implementation=implementation)
    # In bfloat16 a sum of 3000 equal weights would stop growing long before 1.
    assert_close(y, jnp.ones(shape.q_shape), 2**-8)


@every_kernel
def test_vmap_equals_a_loop(implementation: str) -> None:
    rng, mask = np.random.default_rng(0), SMALL.random_mask("bnts")
    q, k, v = (random_array(rng, (3, *shape)) for shape in (SMALL.q_shape, SMALL.k_shape, SMALL.k_shape))
    call = functools.partial(attend, mask=mask, implementation=implementation)
    looped = jnp.stack([call(*arrays) for arrays in zip(q, k, v, strict=True)])
    assert_close(jax.vmap(call)(q, k, v), looped, FORWARD)


@pytest.mark.parametrize("form", [None, "b11s"])
def test_rectangles_are_the_mask_they_describe(form: str | None) -> None:
    rectangles, mask = ((0, 3, 1, 4), (2, 7, 0, 2)), SMALL.random_mask(form)
    described = np.zeros((1, 1, 7, 5), bool)
    described[..., :3, 1:4] = described[..., 2:, :2] = True
    expected = attend(*SMALL.arrays(), mask=described if mask is None else mask & described)
    np.testing.assert_array_equal(attend(*SMALL.arrays(), mask=mask, rectangles=rectangles), expected)


# Which implementation runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("small", "xla"), ("training", "blockwise"), ("square", "blockwise")])
def test_auto_holds_all_logits_only_if_they_are_few(name: str, expected: str) -> None:
    q, k = (
        jax.ShapeDtypeStruct(s, jnp.float32) for s in (ATTENTION_SHAPES[name].q_shape, ATTENTION_SHAPES[name].k_shape)
    )
    assert resolve_implementation("auto", q, k) == expected


def test_auto_exports_with_a_symbolic_batch() -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    q, k = (jax.ShapeDtypeStruct((batch, *s[1:]), jnp.float32) for s in (SMALL.q_shape, SMALL.k_shape))
    exported = jax.export.export(jax.jit(dot_product_attention))(q, k, k)
    arrays = SMALL.arrays()
    assert_close(exported.call(*arrays), attend(*arrays, implementation="xla"), FORWARD)


@pytest.mark.parametrize("name", [name for name, shape in ATTENTION_SHAPES.items() if shape.is_large])
@every_kernel
def test_output_has_the_shape_and_dtype_of_the_queries_at_large_sizes(name: str, implementation: str) -> None:
    q, k = (
        jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (ATTENTION_SHAPES[name].q_shape, ATTENTION_SHAPES[name].k_shape)
    )
    y = jax.eval_shape(functools.partial(dot_product_attention, implementation=implementation), q, k, k)
    assert (y.shape, y.dtype) == (q.shape, q.dtype)


# Dropout ---------------------------------------------------------------------------------------------------------

RATE = 0.25
SQUARE = AttentionShape(3, 2, 64, 96, 64)
"""With as many channels as keys, the identity as values shows the weights themselves."""


@functools.cache
def visible_weights(implementation: str, rate: float = RATE, mask_from: int | None = None) -> np.ndarray:
    """Attention weights [B, T, N, S] of q and k of `SQUARE`; keys from `mask_from` on are padding."""
    q, k, _ = SQUARE.arrays()
    identity = jnp.broadcast_to(jnp.eye(SQUARE.num_keys)[None, :, None], SQUARE.k_shape)
    y = attend(
        q,
        k,
        identity,
        mask=None if mask_from is None else jnp.arange(SQUARE.num_keys)[None, None, None] < mask_from,
        dropout_rate=rate,
        dropout_rng=jax.random.key(0) if rate else None,
        implementation=implementation,
        precision="highest",
    )
    return np.asarray(y)


@every_kernel
def test_dropout_drops_weights_at_its_rate_and_scales_the_rest(implementation: str) -> None:
    weights = visible_weights(implementation)
    kept = weights > 0
    assert_close(weights, np.where(kept, visible_weights("xla", rate=0.0) / (1 - RATE), 0.0), FORWARD)
    # Five standard deviations of a binomial fraction, over all weights and for each sample and head.
    for fraction in (kept.mean(), *kept.mean(axis=(1, 3)).ravel()):
        assert abs(fraction - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / (SQUARE.num_queries * SQUARE.num_keys))


@every_kernel
def test_dropout_is_independent_between_samples_heads_queries_and_keys(implementation: str) -> None:
    dropped = (visible_weights(implementation) == 0) - RATE
    for axis in range(4):
        correlation = (dropped * np.roll(dropped, 1, axis=axis)).mean() / (RATE * (1 - RATE))
        # Two heads that swap places count each pair twice.
        assert abs(correlation) < 5 * np.sqrt(2 / dropped.size)


@every_kernel
def test_dropout_is_reproducible_from_its_key(implementation: str) -> None:
    call = functools.partial(attend, *SMALL.arrays(), dropout_rate=RATE, implementation=implementation)
    first, again, other = (call(dropout_rng=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@every_kernel
def test_dropout_has_the_gradient_of_the_weights_it_kept(implementation: str) -> None:
    kept = jnp.asarray(np.moveaxis(visible_weights(implementation) > 0, 1, 2))

    def expected_output(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
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
    expected, expected_gradients = output_and_gradients(expected_output, *arrays)
    assert_close(y, expected, FORWARD)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, GRADIENT)


@every_kernel
def test_dropout_and_mask_go_together(implementation: str) -> None:
    weights = visible_weights(implementation, mask_from=40)
    assert not weights[..., 40:].any()
    num_weights = weights[..., :40].size
    assert abs((weights[..., :40] > 0).mean() - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / num_weights)
    everything = visible_weights(implementation, mask_from=0)
    assert not everything.any()


# Refusals, which come before any kernel --------------------------------------------------------------------------

Q, K, V = SMALL.arrays()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dropout without key": ({"dropout_rate": 0.25}, r"dropout_rate=0\.25 needs a dropout_rng"),
    "negative rate": ({"dropout_rate": -0.1}, r"dropout_rate must lie in \[0, 1\), got -0\.1"),
    "rate of 1": ({"dropout_rate": 1.0}, r"dropout_rate must lie in \[0, 1\), got 1\.0"),
    "unknown": ({"implementation": "fast"}, r"'auto' or one of \['masked', 'xla', 'blockwise'.*got 'fast'"),
    "rank": ({"q": Q[0]}, "q, k and v do not fit"),
    "batch": ({"q": Q[:1]}, "q, k and v do not fit"),
    "heads": ({"q": Q[:, :, :2]}, "q, k and v do not fit"),
    "head_dim": ({"q": Q[..., :4]}, "q, k and v do not fit"),
    "keys": ({"k": K[:, :3]}, "q, k and v do not fit"),
    "dtype": ({"k": K.astype(jnp.bfloat16)}, "q, k and v do not fit"),
    "rank of mask": ({"mask": jnp.ones((7, 5), bool)}, r"= \[2, 3, 7, 5\], got bool of shape \[7, 5\]"),
    "dtype of mask": ({"mask": jnp.ones((1, 1, 7, 5))}, "mask must be bool .*, got float32"),
}
REFUSED |= {
    f"mask {shape}": ({"mask": jnp.ones(shape, bool)}, "mask must be .*, got bool of shape")
    for shape in [(2, 3, 7, 4), (3, 1, 1, 5), (2, 2, 1, 1), (1, 1, 6, 1)]
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        dot_product_attention(**({"q": Q, "k": K, "v": V} | changed))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_mask_larger_than_an_axis_of_one_is_refused(axis: int) -> None:
    mask = jnp.ones(np.where(np.arange(4) == axis, 3, 1), bool)
    with pytest.raises(ValueError, match=r"= \[1, 1, 1, 1\], got bool of shape"):
        dot_product_attention(*AttentionShape(1, 1, 4, 1, 1).arrays(), mask=mask)
