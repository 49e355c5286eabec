"""The TPU kernel, run by Pallas' interpreter: against `masked`, on whole sequences, and without holding its mask."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops import splash_attention as splash
from emmi_jax.ops.attention import TPU_INTERPRETER, dot_product_attention, resolve_implementation, target_platform
from tests.cases import (
    ANCHOR_ATTENTIONS,
    ANCHOR_LAYOUTS,
    ATTENTION_SHAPES,
    AttentionShape,
    Example,
    anchor_example,
    random_array,
)
from tests.tolerances import TOLERANCES, assert_close, largest_entry

FORWARD, GRADIENT = TOLERANCES["float32"]
SMALL = ATTENTION_SHAPES["small"]
CALLS = [
    ("odd", "b11s", "float32"),
    ("one_query", "111s", "float32"),
    ("one_key", None, "float32"),
    ("several_blocks", None, "float32"),
    ("padded", "b11s", "bfloat16"),
]
"""Few shapes and masks: the interpreter takes seconds to compile one."""


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    with target_platform(TPU_INTERPRETER):
        yield


def with_gradients(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array, **options: Any) -> Any:
    y, pullback = jax.vjp(functools.partial(dot_product_attention, **options), q, k, v)
    return y, *pullback(cotangent)


def arrays_and_cotangent(shape: AttentionShape, dtype: str = "float32") -> tuple[jax.Array, ...]:
    return *shape.arrays(dtype), random_array(np.random.default_rng(2), shape.q_shape, dtype)


@pytest.mark.parametrize(("name", "form", "dtype"), CALLS)
def test_output_and_gradients_agree_with_masked(name: str, form: str | None, dtype: str) -> None:
    shape = ATTENTION_SHAPES[name]
    arrays, mask = arrays_and_cotangent(shape, dtype), shape.random_mask(form)
    run = jax.jit(with_gradients, static_argnames=("implementation", "precision"))
    y, *gradients = run(*arrays, mask=mask, implementation="splash", precision="highest")
    exact = [a.astype("float32") for a in arrays]
    expected, *expected_gradients = run(*exact, mask=mask, implementation="masked", precision="highest")
    assert {a.dtype.name for a in (y, *gradients)} == {dtype}
    assert_close(y, expected, TOLERANCES[dtype].forward)
    largest = largest_entry(expected_gradients)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, TOLERANCES[dtype].gradient, largest=largest)


@pytest.mark.parametrize("masked_keys", [False, True], ids=["all_keys", "masked_keys"])
def test_rectangles_are_the_mask_they_spell_out(masked_keys: bool) -> None:
    shape = AttentionShape(2, 2, 10, 700, 600)
    # Overlaps, gaps, queries with nothing to attend to, block edges inside and on group edges, and empty ranges.
    rectangles = ((0, 90, 0, 150), (60, 384, 100, 512), (300, 300, 0, 9), (384, 420, 5, 5), (500, 699, 590, 600))
    mask = np.zeros((shape.num_queries, shape.num_keys), bool)
    for start_q, stop_q, start_k, stop_k in rectangles:
        mask[start_q:stop_q, start_k:stop_k] = True
    key_mask = None
    if masked_keys:
        key_mask = shape.random_mask("b11s")[:, 0, 0].at[0, 500:].set(False)
    whole_mask = jnp.asarray(mask)[None, None] if key_mask is None else mask & key_mask[:, None, None, :]
    arrays = arrays_and_cotangent(shape)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array) -> Any:
        call = functools.partial(
            splash.splash_attention, rectangles=rectangles, key_mask=key_mask, precision="highest", interpret=True
        )
        y, pullback = jax.vjp(call, q, k, v)
        return y, *pullback(cotangent)

    reference = functools.partial(with_gradients, mask=whole_mask, implementation="masked", precision="highest")
    expected = jax.jit(reference)(*arrays)
    for actual, wanted, tolerance in zip(run(*arrays), expected, (FORWARD, *[GRADIENT] * 3), strict=True):
        assert_close(actual, wanted, tolerance)


@pytest.mark.parametrize("empty", ["one_sample", "everything"])
def test_a_query_with_nothing_to_attend_to_gives_zeros_and_finite_gradients(empty: str) -> None:
    mask = np.ones(SMALL.mask_shape("b11s"), bool)
    mask[{"one_sample": (1,), "everything": ()}[empty]] = False
    nothing = ~mask.any(axis=(1, 2, 3))
    run = jax.jit(with_gradients, static_argnames="implementation")
    q, k, v, cotangent = arrays_and_cotangent(SMALL)
    y, *gradients = run(q, k, v, cotangent, mask=jnp.asarray(mask), implementation="splash")
    for array in (y, *gradients):
        assert np.isfinite(array).all()
        assert not np.asarray(array)[nothing].any()
        assert np.asarray(array)[~nothing].any() or empty == "everything"


def test_no_rectangles_give_zeros_and_zero_gradients() -> None:
    q, k, v, cotangent = arrays_and_cotangent(SMALL)
    call = functools.partial(splash.splash_attention, rectangles=(), interpret=True)
    y, pullback = jax.jit(functools.partial(jax.vjp, call))(q, k, v)
    for array in (y, *jax.jit(pullback)(cotangent)):
        np.testing.assert_array_equal(array, np.zeros(array.shape))


# Whole sequences -------------------------------------------------------------------------------------------------


def check_against_masked_attention(example: Example, **kwargs: Any) -> None:
    def run(example: Example) -> Any:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            return example.module.apply({"params": params}, x, *example.static, example.freqs, **kwargs)

        y, pullback = jax.vjp(apply, example.variables["params"], example.x)
        return y, pullback(random_array(np.random.default_rng(2), y.shape))

    masked = type(example.module)(dataclasses.replace(example.module.config, implementation="masked"))
    y, gradients = jax.jit(lambda: run(example))()
    expected, expected_gradients = jax.jit(lambda: run(dataclasses.replace(example, module=masked)))()
    assert_close(y, expected, FORWARD)
    largest = largest_entry(jax.tree.leaves(expected_gradients))
    for actual, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        assert_close(actual, wanted, GRADIENT, largest=largest)


splash_example = functools.partial(anchor_example, implementation="splash", precision="highest")


@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
def test_anchor_attention_agrees_with_masked(kind: str) -> None:
    check_against_masked_attention(splash_example(kind, "any_order"))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_key_padding_agrees_with_masked(kind: str) -> None:
    example = splash_example(kind, "two_branches")
    mask = np.random.default_rng(3).random(example.x.shape[:2]) < 0.6
    mask[0, :5] = False  # No surface anchor of the first sample is real.
    check_against_masked_attention(example, key_padding_mask=jnp.asarray(mask))


def test_empty_groups_agree_with_masked() -> None:
    check_against_masked_attention(splash_example("self", "empty_groups"))


def test_cached_anchors_give_what_anchors_in_the_sequence_give() -> None:
    example, layout = splash_example("joint", "two_branches"), ANCHOR_LAYOUTS["two_branches"]
    y, state = example(mutable=("cache",))
    rows = layout.rows(layout.queries)
    cached = example.part(layout.cached_anchors, rows, state["cache"])
    assert_close(cached, y[:, rows], FORWARD)


def test_the_whole_sequence_runs_in_one_kernel() -> None:
    example = splash_example("self", "two_branches")
    traced = jax.make_jaxpr(lambda x: example.module.apply(example.variables, x, *example.static, example.freqs))
    assert str(traced(example.x)).count("pallas_call[") == 1


@pytest.mark.parametrize("precision", [None, "high", "highest"])
def test_precision_is_that_of_all_products_of_all_kernels(precision: str | None) -> None:
    call = functools.partial(with_gradients, implementation="splash", precision=precision)
    with jax.default_matmul_precision(None):
        traced = str(jax.make_jaxpr(call)(*arrays_and_cotangent(SMALL)))
    assert traced.count("pallas_call[") == 3
    highest = traced.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
    assert highest == (traced.count("dot_general[") if precision else 0)


# The mask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_anchors", [16384, 16000])
def test_the_mask_of_a_long_sequence_is_never_held(num_anchors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    num_queries, num_keys = 65536, 2 * num_anchors
    half = num_queries // 2
    requested = []
    get_block = splash.RectangleMask.__getitem__

    def record(mask: splash.RectangleMask, block: tuple[slice, slice]) -> np.ndarray:
        requested.append(get_block(mask, block).size)
        return get_block(mask, block)

    monkeypatch.setattr(splash.RectangleMask, "__getitem__", record)
    splash._kernel.cache_clear()
    rectangles = [(0, half, 0, num_anchors), (half, num_queries, num_anchors, num_keys)]
    q, k = (jax.ShapeDtypeStruct((1, size, 3, 64), jnp.bfloat16) for size in (num_queries, num_keys))
    gradient = jax.grad(lambda *arrays: splash.splash_attention(*arrays, rectangles=rectangles).sum(), (0, 1, 2))
    traced = jax.make_jaxpr(gradient)(q, k, k)
    held = sum(np.asarray(const).nbytes for const in jax.tree.leaves(traced.consts))
    assert len(requested) >= num_queries * num_keys / splash.MAX_BLOCK**2
    assert max(requested) <= splash.MAX_BLOCK**2
    assert held < num_queries * num_keys / 100


def test_a_block_of_the_mask_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        starts_q, starts_k = rng.integers(0, 30, (2, 4))
        sizes_q, sizes_k = rng.integers(1, 12, (2, 4))
        rectangles = tuple(zip(starts_q, starts_q + sizes_q, starts_k, starts_k + sizes_k, strict=True))
        whole = np.zeros((42, 42), bool)
        for start_q, stop_q, start_k, stop_k in rectangles:
            whole[start_q:stop_q, start_k:stop_k] = True
        mask = splash.RectangleMask(rectangles, whole.shape)
        for block in [(slice(0, 42), slice(0, 42)), (slice(7, 14), slice(14, 28)), (slice(12, 18), slice(12, 13))]:
            np.testing.assert_array_equal(mask[block], whole[block])


def test_equal_masks_have_equal_hashes() -> None:
    masks = [splash.RectangleMask(((0, 2, 0, 3),), (4, 4)) for _ in range(2)]
    assert masks[0] == masks[1]
    assert len({*masks, splash.RectangleMask(((0, 2, 0, 2),), (4, 4))}) == 2


# Who is served ---------------------------------------------------------------------------------------------------


def test_other_platforms_are_refused() -> None:
    with target_platform("cpu"), pytest.raises(NotImplementedError, match=r"runs on TPUs .*cpu.*: masked, xla, block"):
        dot_product_attention(*SMALL.arrays(), implementation="splash")


@pytest.mark.parametrize("platform", ["tpu", TPU_INTERPRETER])
def test_dropout_other_masks_and_other_dtypes_are_refused(platform: str) -> None:
    q, k, v = SMALL.arrays()
    with target_platform(platform):
        with pytest.raises(NotImplementedError, match=r"'splash' has no attention dropout.*: masked, xla, blockwise$"):
            resolve_implementation("splash", q, k, None, 0.1)
        for form in ("bnts", "11ts", "1n1s"):
            with pytest.raises(NotImplementedError, match=r"'splash' takes masks of keys alone.*: masked, xla, block"):
                dot_product_attention(q, k, v, mask=SMALL.random_mask(form), implementation="splash")
        with pytest.raises(NotImplementedError, match=r"'splash' computes in float32 or bfloat16 .*float16"):
            dot_product_attention(*SMALL.arrays(jnp.float16), implementation="splash")


def test_auto_is_splash_on_tpu_where_it_serves() -> None:
    q, k, _ = SMALL.arrays()
    with target_platform("tpu"):
        assert resolve_implementation("auto", q, k) == "splash"
        assert resolve_implementation("auto", q, k, SMALL.random_mask("b11s")) == "splash"
        assert resolve_implementation("auto", q, k, SMALL.random_mask("11ts")) == "xla"
        assert resolve_implementation("auto", q, k, None, 0.1) == "xla"
    with target_platform(None):
        assert resolve_implementation("auto", q, k) == "xla"


def test_a_compiled_function_does_not_outlive_its_platform() -> None:
    call = jax.jit(functools.partial(dot_product_attention, implementation="auto"))
    traced = [str(call.trace(*SMALL.arrays()).jaxpr)]
    with target_platform("cpu"):
        traced.append(str(call.trace(*SMALL.arrays()).jaxpr))
    assert ["pallas_call" in jaxpr for jaxpr in traced] == [True, False]


def test_pallas_is_imported_only_where_it_is_used() -> None:
    program = (
        "import sys, jax.numpy as jnp; from emmi_jax.ops.attention import dot_product_attention; "
        "dot_product_attention(*[jnp.ones((1, 2, 1, 2))] * 3); print('jax.experimental.pallas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
