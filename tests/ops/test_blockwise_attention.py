"""What is particular to tiled attention: memory, tile boundaries, derivatives, dropout drawn again, transforms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops import blockwise_attention as module
from emmi_jax.ops.blockwise_attention import blockwise_attention
from tests.cases import AttentionShape, random_array
from tests.tolerances import TOLERANCES, assert_close, largest_entry

FORWARD, GRADIENT = TOLERANCES["float32"]
Arrays = tuple[jax.Array, ...]
Attention = Callable[..., jax.Array]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes several tiles out of few tokens, which compile and run quickly."""
    monkeypatch.setattr(module, "BLOCK_QUERIES", 8)
    monkeypatch.setattr(module, "BLOCK_KEYS", 16)


def random_arrays(num_queries: int, num_keys: int, *, batch: int = 1, num_heads: int = 2, head_dim: int = 4) -> Arrays:
    """Random q, k, v and cotangent of the output."""
    rng = np.random.default_rng(0)
    sizes = (num_queries, num_keys, num_keys, num_queries)
    return tuple(random_array(rng, (batch, size, num_heads, head_dim)) for size in sizes)


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    logits = jnp.einsum("btnh,bsnh->bnts", q, k, precision="highest") / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(logits if mask is None else jnp.where(mask, logits, -1e30), axis=-1)
    weights = weights if mask is None else jnp.where(mask, weights, 0.0)
    return jnp.einsum("bnts,bsnh->btnh", weights, v, precision="highest")


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(attention: Attention, arrays: Arrays, mask: jax.Array | None = None) -> Arrays:
    """The output, and the gradients of q, k and v under the cotangent."""
    *qkv, cotangent = arrays
    y, pullback = jax.vjp(functools.partial(attention, mask=mask), *qkv)
    return y, *pullback(cotangent)


def assert_same_as_dense(arrays: Arrays, mask: jax.Array | None = None) -> None:
    # A new partial every time: tile sizes change under one and the same function.
    y, *gradients = with_gradients(functools.partial(blockwise_attention, precision="highest"), arrays, mask)
    expected, *expected_gradients = with_gradients(dense_attention, arrays, mask)
    assert_close(y, expected, FORWARD)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient, GRADIENT)


def compiled_gradient_temp_bytes(num_queries: int, num_keys: int) -> int:
    shapes = [jax.ShapeDtypeStruct((1, size, 3, 64), jnp.float32) for size in (num_queries, num_keys, num_keys)]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.square(blockwise_attention(q, k, v)).sum()

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_gradient_memory_is_linear_in_tokens() -> None:
    fewer, more = (compiled_gradient_temp_bytes(num_tokens, num_tokens) for num_tokens in (8192, 16384))
    assert fewer < 8192 * 8192  # not even one byte for each logit of one head
    assert more < 2.1 * fewer


def test_a_large_gradient_needs_less_than_2_gib() -> None:
    assert compiled_gradient_temp_bytes(65536, 16384) < 2**31


@pytest.mark.parametrize(
    ("size", "largest", "expected"),
    [(1, 8, (1, 1)), (8, 8, (8, 1)), (9, 8, (3, 3)), (10, 8, (5, 2)), (11, 8, (6, 2)), (17, 8, (6, 3))],
)
def test_blocks_cover_all_tokens_and_pad_only_where_they_must(
    size: int, largest: int, expected: tuple[int, int]
) -> None:
    assert module._cut(size, largest) == expected


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("mask_form", [None, "111s", "11ts", "11t1"])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(8, 16), (9, 17), (17, 37)])
def test_sizes_around_a_tile_boundary(num_queries: int, num_keys: int, mask_form: str | None) -> None:
    arrays, mask = random_arrays(num_queries, num_keys), None
    if mask_form is not None:
        shape = AttentionShape(1, 2, 4, num_queries, num_keys).mask_shape(mask_form)
        mask = np.random.default_rng(1).random(shape) < 0.6
        if mask_form.endswith("s"):
            mask[..., : num_keys // 2] = False  # no query attends to any key of the first tile, where there are more
    assert_same_as_dense(arrays, None if mask is None else jnp.asarray(mask))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0], ids=["tiny_logits", "usual_logits", "logits_beyond_exp"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_any_size_of_logits(scale: float, sign: int) -> None:
    q, k, v, cotangent = random_arrays(19, 40)
    assert_same_as_dense((scale * jnp.abs(q), sign * jnp.abs(k), v, cotangent))


@pytest.mark.usefixtures("small_tiles")
def test_dropout_drops_the_same_weights_in_both_passes() -> None:
    # The output is linear in v, so <f(v), c> = <v, fᵀ(c)> holds only if forward and backward drop the same weights.
    q, k, v, cotangent = random_arrays(19, 45)
    dropout = {"dropout_rate": 0.4, "dropout_rng": jax.random.key(3), "precision": "highest"}

    @jax.jit
    def output_and_gradient(v: jax.Array) -> Arrays:
        y, pullback = jax.vjp(lambda v: blockwise_attention(q, k, v, **dropout), v)
        return y, *pullback(cotangent)

    y, dv = output_and_gradient(v)
    np.testing.assert_allclose(jnp.vdot(y, cotangent), jnp.vdot(v, dv), rtol=1e-5)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("argument", ["q", "k"])
def test_gradient_under_dropout_is_the_slope_of_the_forward_pass(argument: str) -> None:
    q, k, v, cotangent = random_arrays(19, 45)
    key = jax.random.key(3)

    def loss(x: jax.Array) -> jax.Array:
        pair = (x, k) if argument == "q" else (q, x)
        y = blockwise_attention(*pair, v, dropout_rate=0.4, dropout_rng=key, precision="highest")
        return jnp.vdot(cotangent, y)

    x = q if argument == "q" else k
    direction = random_array(np.random.default_rng(5), x.shape)
    step = 1e-2
    quick_loss = jax.jit(loss)
    slope = (quick_loss(x + step * direction) - quick_loss(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(loss))(x), direction), slope, rtol=1e-2)


@pytest.mark.usefixtures("small_tiles")
def test_dropout_draws_every_tile_afresh_and_keeps_the_mean() -> None:
    # With equal logits and the identity for v, the output is the dropped weights themselves.
    size, rate = 32, 0.25
    q = jnp.zeros((2, size, 2, size))
    v = jnp.broadcast_to(jnp.eye(size)[None, :, None], q.shape)
    y = blockwise_attention(q, q, v, dropout_rate=rate, dropout_rng=jax.random.key(0))
    weights = np.moveaxis(np.asarray(y) * size, 2, 1)  # [B, N, T, S]
    np.testing.assert_allclose(np.unique(weights), [0.0, 1 / (1 - rate)], rtol=1e-6)
    standard_error = math.sqrt(rate / (1 - rate) / weights.size)
    assert abs(weights.mean() - 1.0) < 4 * standard_error
    tiles = weights.reshape(4, size // 8, 8, size // 16, 16).swapaxes(2, 3).reshape(-1, 8 * 16)
    assert len(np.unique(tiles, axis=0)) == len(tiles)


@pytest.mark.usefixtures("small_tiles")
def test_raw_and_typed_keys_drop_the_same() -> None:
    q, k, v, _ = random_arrays(9, 20)
    typed = blockwise_attention(q, k, v, dropout_rate=0.5, dropout_rng=jax.random.key(7))
    raw = blockwise_attention(q, k, v, dropout_rate=0.5, dropout_rng=jax.random.key_data(jax.random.key(7)))
    np.testing.assert_array_equal(typed, raw)


@pytest.mark.usefixtures("small_tiles")
def test_vmap_is_a_loop_over_calls() -> None:
    arrays = tuple(x.reshape(3, 2, *x.shape[1:]) for x in random_arrays(9, 20, batch=6))

    def gradients(arrays: Arrays) -> Arrays:
        *qkv, cotangent = arrays
        y, pullback = jax.vjp(functools.partial(blockwise_attention, precision="highest"), *qkv)
        return y, *pullback(cotangent)

    together = jax.jit(jax.vmap(gradients))(arrays)
    one_by_one = jax.jit(functools.partial(jax.lax.map, gradients))(arrays)
    for a, b in zip(together, one_by_one, strict=True):
        assert_close(a, b, GRADIENT)


@pytest.mark.usefixtures("small_tiles")
def test_remat_inside_a_scan_keeps_values_and_gradients() -> None:
    q, k, v, _ = random_arrays(9, 20)

    def attend(x: jax.Array) -> jax.Array:
        return blockwise_attention(x, k, v, dropout_rate=0.3, dropout_rng=jax.random.key(0), precision="highest")

    def stacked(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (jax.checkpoint(attend)(x), None), x, length=2)[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(stacked))(q)
    expected, expected_gradient = jax.jit(jax.value_and_grad(lambda x: attend(attend(x)).sum()))(q)
    assert_close(value, expected, FORWARD)
    assert_close(gradient, expected_gradient, GRADIENT)


DERIVATIVES: dict[str, Callable[[Attention, Arrays, Arrays], Any]] = {
    "jvp": lambda f, primals, tangents: jax.jvp(f, primals, tangents),
    "jvp_of_queries": lambda f, primals, tangents: jax.jvp(lambda q: f(q, *primals[1:]), primals[:1], tangents[:1]),
    "jvp_of_values": lambda f, primals, tangents: jax.jvp(lambda v: f(*primals[:2], v), primals[2:], tangents[2:]),
    "jacfwd": lambda f, primals, tangents: jax.jacfwd(lambda k: f(primals[0], k, primals[2])[0, :2, 0])(primals[1]),
    "forward_over_reverse": lambda f, primals, tangents: jax.jvp(gradient_of_cube(f), primals, tangents),
    "reverse_over_reverse": lambda f, primals, tangents: jax.vjp(gradient_of_cube(f), *primals)[1](tangents),
    "reverse_over_forward": lambda f, primals, tangents: jax.grad(
        lambda *primals: jnp.square(jax.jvp(f, primals, tangents)[1]).sum(), (0, 1, 2)
    )(*primals),
    "third": lambda f, primals, tangents: jax.jvp(
        lambda *primals: jax.jvp(gradient_of_cube(f), primals, tangents)[1], primals, tangents
    )[1],
}


def cube(f: Attention) -> Callable[..., jax.Array]:
    return lambda *primals: (f(*primals) ** 3).sum()


def gradient_of_cube(f: Attention) -> Callable[..., Arrays]:
    return jax.grad(cube(f), (0, 1, 2))


def random_tangents(primals: Arrays) -> Arrays:
    rng = np.random.default_rng(2)
    return tuple(random_array(rng, x.shape) for x in primals)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_every_derivative_across_tiles_is_that_of_the_formula(derivative: str) -> None:
    *primals, _ = random_arrays(18, 37)
    mask = jnp.asarray(np.random.default_rng(1).random((1, 1, 18, 37)) < 0.6)
    differentiate = jax.jit(DERIVATIVES[derivative], static_argnums=0)

    def run(attention: Attention) -> list[jax.Array]:
        return jax.tree.leaves(
            differentiate(functools.partial(attention, mask=mask), tuple(primals), random_tangents(tuple(primals)))
        )

    actual, expected = run(functools.partial(blockwise_attention, precision="highest")), run(dense_attention)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, GRADIENT)


@pytest.mark.usefixtures("small_tiles")
def test_derivatives_of_any_order_see_the_same_dropout() -> None:
    (*primals, cotangent), rng = random_arrays(19, 45), jax.random.key(3)
    primals, tangents = tuple(primals), random_tangents(tuple(primals))

    @jax.jit
    def products() -> tuple[Arrays, Arrays]:
        attend = functools.partial(blockwise_attention, dropout_rate=0.4, dropout_rng=rng, precision="highest")
        along, pullback = jax.jvp(attend, primals, tangents)[1], jax.vjp(attend, *primals)[1]
        first = jnp.vdot(cotangent, along), sum(map(jnp.vdot, pullback(cotangent), tangents))
        over_reverse = jax.jvp(gradient_of_cube(attend), primals, tangents)[1]
        over_forward = jax.jvp(lambda *x: jax.jvp(cube(attend), x, tangents)[1], primals, tangents)[1]
        return first, (sum(map(jnp.vdot, over_reverse, tangents)), over_forward)

    for one, other in products():
        np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.usefixtures("small_tiles")
def test_gradients_at_huge_logits_lose_no_digits() -> None:
    # The logits reach 5e5, where neighbouring float32 numbers are 0.03 apart: a weight of 1 must not come back as 0.97.
    q, k, v, cotangent = random_arrays(19, 45, head_dim=16)
    arrays = (1e5 * q, k, v, cotangent)
    actual = with_gradients(functools.partial(blockwise_attention, precision="highest"), arrays)
    # The gradients of q and k are differences of equal numbers, times k and q.
    sizes = [largest_entry([x]) for x in (v, k, arrays[0], cotangent)]
    for a, b, size in zip(actual, with_gradients(dense_attention, arrays), sizes, strict=True):
        assert_close(a, b, FORWARD, largest=size)


def test_second_derivatives_need_memory_linear_in_tokens() -> None:
    def temp_bytes(num_tokens: int) -> int:
        shape = jax.ShapeDtypeStruct((1, num_tokens, 1, 16), jnp.float32)

        def product(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            return jax.jvp(jax.grad(lambda *x: jnp.square(blockwise_attention(*x)).sum()), (q, k, v), (q, k, v))

        return jax.jit(product).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    fewer, more = temp_bytes(8192), temp_bytes(16384)
    assert more < 2.1 * fewer


@pytest.mark.usefixtures("small_tiles")
def test_nan_in_a_key_reaches_exactly_the_queries_that_attend_to_it() -> None:
    q, k, v, _ = random_arrays(19, 40)
    mask = jnp.asarray(np.random.default_rng(1).random((1, 1, 19, 40)) < 0.6)
    y = blockwise_attention(q, k.at[:, 7].set(jnp.nan), v.at[:, 7].set(jnp.nan), mask=mask)
    np.testing.assert_array_equal(np.isnan(y).all(axis=(0, 2, 3)), mask[0, 0, :, 7])
    np.testing.assert_array_equal(np.isnan(y).any(axis=(0, 2, 3)), mask[0, 0, :, 7])


def test_one_exported_program_serves_every_batch() -> None:
    def gradients(*arrays: jax.Array) -> Arrays:
        return with_gradients(blockwise_attention, arrays)

    arrays = random_arrays(9, 20, batch=3)
    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(gradients))(
        *(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in arrays)
    )
    for actual, expected in zip(exported.call(*arrays), gradients(*arrays), strict=True):
        assert_close(actual, expected, FORWARD)


@pytest.mark.parametrize("with_mask", [False, True])
def test_an_export_takes_any_numbers_of_queries_and_keys(with_mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_SYMBOLIC", 8)
    t, s = jax.export.symbolic_shape("t, s")
    shapes = [jax.ShapeDtypeStruct((1, size, 2, 4), jnp.float32) for size in (t, s, s)]
    mask_shape = jax.ShapeDtypeStruct((1, 1, 1, s), bool)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return blockwise_attention(q, k, v, mask=mask if with_mask else None)

    mesh = jax.sharding.AbstractMesh((1,), ("x",), (jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        exported = jax.export.export(jax.jit(attend))(*shapes, mask_shape)
    rng = np.random.default_rng(0)
    for num_queries, num_keys in ((13, 21), (8, 16), (1, 1)):
        q, k, v = (jnp.asarray(rng.normal(size=(1, n, 2, 4)), jnp.float32) for n in (num_queries, num_keys, num_keys))
        mask = jnp.asarray(rng.random((1, 1, 1, num_keys)) < 0.7).at[..., 0].set(True)
        expected = dense_attention(q, k, v, mask=mask if with_mask else None)
        np.testing.assert_allclose(exported.call(q, k, v, mask), expected, atol=1e-6)
