"""What is particular to the tiled attention: memory, tile boundaries, dropout that is drawn twice, transforms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops import blockwise_attention as module
from emmi_jax.ops.blockwise_attention import blockwise_attention
from tests.cases import AttentionShape, random_array
from tests.tolerances import TOLERANCES, assert_close

FORWARD, GRADIENT = TOLERANCES["float32"]
Arrays = tuple[jax.Array, ...]


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
def with_gradients(attention: Callable[..., jax.Array], arrays: Arrays, mask: jax.Array | None = None) -> Arrays:
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


def test_forward_mode_is_refused() -> None:
    q, k, v, _ = random_arrays(3, 3)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: blockwise_attention(q, k, v), (q,), (q,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": jnp.ones((1, 1, 2, 5), bool)}, r"\(1, 1, 2, 5\)"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
        ({"dropout_rate": 0.1}, "needs a dropout_rng"),
    ],
    ids=["mask", "rate", "key"],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    q, k, v, _ = random_arrays(3, 5)
    with pytest.raises(ValueError, match=message):
        blockwise_attention(q, k, v, **arguments)
