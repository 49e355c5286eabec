"""Flash attention on NVIDIA GPUs, run by Pallas' interpreter, and by a stand-in for the package FlashAttention-4."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops import attention, fa4, flash_attention, flash_derivatives, flash_passes
from emmi_jax.ops.attention import (
    CUDA_INTERPRETER,
    dot_product_attention,
    forward_mode,
    resolve_implementation,
    target_platform,
)
from tests.cases import ATTENTION_SHAPES, AttentionShape, random_array
from tests.ops.test_attention_contract import exact, formula
from tests.tolerances import TOLERANCES, assert_close, largest_entry

FORWARD, GRADIENT = TOLERANCES["float32"]
SMALL = ATTENTION_SHAPES["small"]
CALLS = [
    ("small", None, "float32"),
    ("odd", "b11s", "float32"),
    ("one_query", "111s", "float32"),
    ("one_key", None, "float32"),
    ("single_channel", "b111", "float32"),
    ("several_blocks", "b11s", "float32"),
    ("padded", "b11s", "bfloat16"),
    ("pattern", None, "float16"),
]


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    with target_platform(CUDA_INTERPRETER):
        yield


@pytest.fixture(params=["pallas", "fa4"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pallas alone, or with a stand-in for the package."""
    if request.param == "fa4":
        monkeypatch.setattr(fa4, "_backend", lambda q, num_keys: (StandIn, q.shape[-1] ** -0.5))
        made = functools.partial(flash_derivatives.Kernels, True, True)
        monkeypatch.setattr(attention, "_flash_kernels", made)
    return request.param


class StandIn:
    """What a backend of fa4-jax computes, by the formula. Rows that do not count are zero."""

    @staticmethod
    def fwd_lse(scale: float, q: Any, k: Any, v: Any, aux: Any, lengths: Any = None) -> tuple[jax.Array, jax.Array]:
        assert aux == ()
        logits = jnp.einsum("...tnh,...snh->...nts", *(x.astype(jnp.float32) for x in (q, k))) * scale
        together = StandIn._together(q, k, lengths)
        logits = jnp.where(together, logits, -1e30)
        lse = jax.nn.logsumexp(logits, axis=-1)
        weights = jnp.where(together, jnp.exp(logits - lse[..., None]), 0.0)
        return jnp.einsum("...nts,...snh->...tnh", weights, v.astype(jnp.float32)).astype(q.dtype), lse

    @staticmethod
    def vjp(
        scale: float, q: Any, k: Any, v: Any, out: Any, lse: Any, d_out: Any, d_lse: None, aux: Any, lengths: Any = None
    ) -> tuple[jax.Array, ...]:
        def outputs(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return StandIn.fwd_lse(scale, q, k, v, aux, lengths)[0]

        value, pullback = jax.vjp(outputs, q, k, v)
        assert value.shape == out.shape
        assert lse.shape == (*q.shape[:-3], q.shape[-2], q.shape[-3])
        assert d_lse is None
        return tuple(
            jnp.nan_to_num(x) for x in pullback(d_out + 0 * jnp.swapaxes(lse, -1, -2)[..., None].astype(q.dtype) * 0)
        )

    @staticmethod
    def _together(q: Any, k: Any, lengths: Any) -> Any:
        """Which packed queries and keys are of one sample, and count."""
        if lengths is None:
            return True
        starts_q, starts_k, used_q, used_k = lengths
        token_q, token_k = jnp.arange(q.shape[0])[:, None], jnp.arange(k.shape[0])[:, None]
        of_q = (starts_q[:-1] <= token_q) & (token_q < starts_q[:-1] + used_q)
        of_k = (starts_k[:-1] <= token_k) & (token_k < starts_k[:-1] + used_k)
        return (of_q[:, None] & of_k[None]).any(axis=-1)


def with_gradients(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array, **options: Any) -> Any:
    y, pullback = jax.vjp(functools.partial(dot_product_attention, **options), q, k, v)
    return y, *pullback(cotangent)


quick_with_gradients = jax.jit(with_gradients, static_argnames="implementation")


def arrays_and_cotangent(shape: AttentionShape, dtype: str = "float32") -> tuple[jax.Array, ...]:
    return *shape.arrays(dtype), random_array(np.random.default_rng(2), shape.q_shape, dtype)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("name", "form", "dtype"), CALLS)
def test_output_and_gradients_are_those_of_the_formula(name: str, form: str | None, dtype: str) -> None:
    shape = ATTENTION_SHAPES[name]
    arrays, mask = arrays_and_cotangent(shape, dtype), shape.random_mask(form)
    y, *gradients = jax.jit(functools.partial(with_gradients, mask=mask, implementation="flash"))(*arrays)
    q, k, v, cotangent = exact(arrays)
    expected, *expected_gradients = formula(q, k, v, mask, cotangent)
    tolerance = TOLERANCES["float32" if dtype == "float32" else "bfloat16"]
    assert {a.dtype.name for a in (y, *gradients)} == {dtype}
    assert_close(y, expected, tolerance.forward)
    largest = largest_entry(expected_gradients)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, wanted, tolerance.gradient, largest=largest)


DERIVATIVES = ("push", "pull", "push_pull", "pull_push", "pull_pull", "push_push", "third", "curls", "pull_curls")


def derivative(kind: str, attend: Any, points: Any, tangents: Any, cotangent: jax.Array) -> Any:
    def push(*points: jax.Array) -> jax.Array:
        return jax.jvp(attend, points, tangents)[1]

    def pull(*points: jax.Array) -> Any:
        return jax.vjp(attend, *points)[1](cotangent)

    def curls(*points: jax.Array) -> jax.Array:
        def along(factor: jax.Array) -> jax.Array:
            return jax.jvp(
                lambda q: attend(q, *points[1:]), points[:1], (factor.astype(tangents[0].dtype) * tangents[0],)
            )[1]

        return jax.vmap(along)(jnp.arange(1.0, 4.0))

    def product(*points: jax.Array) -> jax.Array:
        return sum((a * b).sum() for a, b in zip(pull(*points), tangents, strict=True))

    return {
        "push": lambda: push(*points),
        "pull": lambda: pull(*points),
        "push_pull": lambda: jax.jvp(pull, points, tangents)[1],
        "pull_push": lambda: jax.vjp(push, *points)[1](cotangent),
        "pull_pull": lambda: jax.grad(product, (0, 1, 2))(*points),
        "push_push": lambda: jax.jvp(push, points, tangents)[1],
        "third": lambda: jax.grad(lambda *p: jax.jvp(product, p, tangents)[1], (0, 1, 2))(*points),
        "curls": lambda: curls(*points),
        "pull_curls": lambda: jax.grad(lambda *p: (curls(*p) ** 2).sum(), (0, 1, 2))(*points),
    }[kind]()


@pytest.mark.parametrize("name", ["small", "padded"])
def test_derivatives_of_every_order_and_mode_are_those_of_the_formula(name: str) -> None:
    shape = ATTENTION_SHAPES[name]
    *points, cotangent = arrays_and_cotangent(shape)
    mask = shape.random_mask(shape.mask)
    tangents = tuple(random_array(np.random.default_rng(3), a.shape) for a in points)

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation: str) -> dict[str, Any]:
        attend = functools.partial(dot_product_attention, mask=mask, implementation=implementation, precision="highest")
        return {kind: derivative(kind, attend, tuple(points), tangents, cotangent) for kind in DERIVATIVES}

    found, expected = run("flash"), run("xla")
    for kind in DERIVATIVES:
        wanted = jax.tree.leaves(expected[kind])
        for a, b in zip(jax.tree.leaves(found[kind]), wanted, strict=True):
            assert_close(a, b, GRADIENT, largest=largest_entry(wanted))


def test_tangents_of_a_curl_share_one_pass_over_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = SMALL.arrays()
    shapes = []

    def record(name: str, arrays: Any, *rest: Any, call: Any = flash_passes._call) -> Any:
        shapes.append((name, arrays["k"].shape, arrays["dq"].shape if name == "tangents" else None))
        return call(name, arrays, *rest)

    monkeypatch.setattr(flash_passes, "_call", record)

    def along(factor: jax.Array) -> jax.Array:
        return jax.jvp(lambda q: dot_product_attention(q, k, v, implementation="flash"), (q,), (factor * q,))[1]

    jax.make_jaxpr(jax.vmap(along))(jnp.arange(1.0, 4.0))
    assert ("tangents", SMALL.k_shape, (3, *SMALL.q_shape)) in shapes
    assert {keys for _, keys, _ in shapes} == {SMALL.k_shape}


@pytest.mark.usefixtures("kernels")
def test_a_single_key_leaves_no_tangent_of_queries_in_half_precision() -> None:
    rng = np.random.default_rng(0)
    q, dq = (random_array(rng, (1, 5, 2, 16)).astype(jnp.bfloat16) for _ in range(2))
    k, v = (random_array(rng, (1, 1, 2, 16)).astype(jnp.bfloat16) for _ in range(2))
    attend = functools.partial(dot_product_attention, k=k, v=v, implementation="flash")
    y, tangent = jax.jit(lambda q, dq: jax.jvp(attend, (q,), (dq,)))(q, dq)
    assert np.asarray(y).any()
    np.testing.assert_array_equal(np.asarray(tangent, np.float32), 0.0)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("empty", ["one_sample", "everything"])
def test_a_query_with_nothing_to_attend_to_gives_zeros_and_finite_gradients(empty: str) -> None:
    mask = np.ones(SMALL.mask_shape("b11s"), bool)
    mask[{"one_sample": (1,), "everything": ()}[empty]] = False
    nothing = ~mask.any(axis=(1, 2, 3))
    arrays = arrays_and_cotangent(SMALL)
    y, *gradients = jax.jit(functools.partial(with_gradients, mask=jnp.asarray(mask), implementation="flash"))(*arrays)
    for array in (y, *gradients):
        assert np.isfinite(array).all()
        assert not np.asarray(array)[nothing].any()
        assert np.asarray(array)[~nothing].any() or empty == "everything"


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_masked_key_and_value_may_be_anything(value: float) -> None:
    q, k, v, cotangent = arrays_and_cotangent(SMALL)
    mask = SMALL.random_mask("b11s").at[..., 2].set(False)
    run = jax.jit(functools.partial(with_gradients, mask=mask, implementation="flash"))
    expected = run(q, k, v, cotangent)
    found = run(q, k.at[:, 2].set(value), v.at[:, 2].set(value), cotangent)
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, FORWARD)


@pytest.mark.usefixtures("kernels")
def test_huge_logits_stay_finite() -> None:
    q, *rest = arrays_and_cotangent(SMALL)
    assert all(np.isfinite(array).all() for array in quick_with_gradients(1e5 * q, *rest, implementation="flash"))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("mapped", [(0, 0, 0), (0, None, None), (None, 0, 0)])
def test_vmap_equals_a_loop(mapped: tuple[int | None, ...]) -> None:
    rng = np.random.default_rng(0)
    shapes = (SMALL.q_shape, SMALL.k_shape, SMALL.k_shape)
    arrays = [
        random_array(rng, shape if axis is None else (3, *shape)) for axis, shape in zip(mapped, shapes, strict=True)
    ]
    cotangent = random_array(rng, SMALL.q_shape)
    call = functools.partial(
        quick_with_gradients, cotangent=cotangent, mask=SMALL.random_mask("b11s"), implementation="flash"
    )
    picked = [[x if axis is None else x[i] for x, axis in zip(arrays, mapped, strict=True)] for i in range(3)]
    looped = jax.tree.map(lambda *parts: jnp.stack(parts), *(call(*each) for each in picked))
    for actual, wanted in zip(jax.vmap(call, mapped)(*arrays), looped, strict=True):
        assert_close(actual, wanted, FORWARD)


@pytest.mark.usefixtures("kernels")
def test_scan_and_remat_keep_the_gradients() -> None:
    q, k, v, cotangent = arrays_and_cotangent(SMALL)

    def twice(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str, wrap: Any) -> jax.Array:
        layer = wrap(lambda q, _: (dot_product_attention(q, k, v, implementation=implementation), None))
        return (jax.lax.scan(layer, q, length=2)[0] * cotangent).sum()

    gradient = jax.jit(jax.grad(twice, (0, 1, 2)), static_argnums=(3, 4))
    expected = gradient(q, k, v, "xla", lambda f: f)
    for actual, wanted in zip(gradient(q, k, v, "flash", jax.checkpoint), expected, strict=True):
        assert_close(actual, wanted, GRADIENT)


# Who is served ---------------------------------------------------------------------------------------------------


class Gpu:
    compute_capability = "9.0"


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stands in for a GPU with the package installed; nothing is computed on it."""
    monkeypatch.setattr(attention, "platform", lambda: "cuda")
    monkeypatch.setattr(flash_attention.jax, "devices", lambda kind: [Gpu])
    monkeypatch.setattr(fa4, "fa4_limit", lambda: None)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    with target_platform(None):
        yield


HALF = AttentionShape(2, 3, 64, 48, 32)


def resolve(
    name: str, shape: AttentionShape = HALF, dtype: Any = jnp.bfloat16, form: str | None = None, **call: Any
) -> str:
    q, k, _ = shape.arrays(dtype)
    return resolve_implementation(name, q, k, shape.random_mask(form), **call)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("form", [None, "b11s", "111s"])
def test_auto_is_flash_where_it_serves(form: str | None) -> None:
    assert resolve("auto", form=form) == resolve("flash", form=form) == "flash"


REFUSED = {
    "float32": ({"dtype": jnp.float32}, r"bfloat16 or float16 \(the arrays are float32\)", "xla"),
    "odd_head_dim": ({"shape": AttentionShape(1, 1, 20, 4, 4)}, r"multiple of 8 and at most 128 \(it is 20\)", "xla"),
    "large_head_dim": ({"shape": AttentionShape(1, 1, 256, 4, 4)}, r"at most 128 \(it is 256\)", "cudnn"),
    "mask": ({"form": "11ts"}, r"masks of keys alone.*\[1, 1, 48, 32\]", "xla"),
    "dropout": ({"dropout_rate": 0.1}, r"no attention dropout \(dropout_rate=0.1\)", "xla"),
}


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", REFUSED)
def test_what_flash_cannot_do_is_refused_and_auto_takes_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_compute_capability", lambda _: True)
    call, reason, other = REFUSED[name]
    with pytest.raises(NotImplementedError, match=f"'flash' .*{reason}.*; these serve the call: masked, .*blockwise"):
        resolve("flash", **call)
    assert resolve("auto", **call) == other


@pytest.mark.usefixtures("hopper")
def test_without_the_package_flash_serves_forward_mode_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa4, "fa4_limit", lambda: "needs the package fa4-jax: pip install 'emmi-jax[flash]'")
    assert resolve("auto") == "cudnn"
    with pytest.raises(
        NotImplementedError, match=r"'flash' needs the package fa4-jax: pip install 'emmi-jax\[flash\]'"
    ):
        resolve("flash")
    with forward_mode(True):
        assert resolve("auto") == resolve("flash") == "flash"


@pytest.mark.usefixtures("hopper")
def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpu, "compute_capability", "8.0")
    with pytest.raises(
        NotImplementedError, match=r"'flash' needs compute capability 9.0 or higher \(the GPU has 8.0\)"
    ):
        resolve("flash")
    assert resolve("auto") == "cudnn"


@pytest.mark.usefixtures("hopper")
def test_flash_is_not_exported() -> None:
    with target_platform("cuda"):
        assert resolve("auto") == "cudnn"
        with pytest.raises(NotImplementedError, match="'flash' is not exported"):
            resolve("flash")


def test_other_platforms_are_refused() -> None:
    with target_platform("rocm"), pytest.raises(NotImplementedError, match=r"'flash' runs on NVIDIA GPUs .*rocm"):
        resolve("flash")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa4.sys, "version_info", (3, 12))
    monkeypatch.setattr(fa4.importlib.util, "find_spec", lambda name: None)
    assert fa4.fa4_limit.__wrapped__() == "needs the package fa4-jax: pip install 'emmi-jax[flash]'"
