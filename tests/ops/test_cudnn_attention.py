"""The cuDNN implementation: which calls it refuses, when `auto` takes it, and what it lowers to."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from emmi_jax.ops.attention import dot_product_attention, resolve_implementation, target_platform
from tests.cases import ATTENTION_SHAPES, AttentionShape
from tests.tolerances import TOLERANCES, assert_close

SHAPE = AttentionShape(2, 3, 64, 48, 32)


@pytest.fixture
def installed_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the library, of which JAX reads only the version until the program runs."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def resolve(
    implementation: str, shape: AttentionShape = SHAPE, dtype: Any = jnp.bfloat16, form: str | None = None, **call: Any
) -> str:
    q, k, _ = shape.arrays(dtype)
    with target_platform("cuda"):
        return resolve_implementation(implementation, q, k, shape.random_mask(form), **call)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "rocm"])
def test_other_platforms_are_refused(platform: str) -> None:
    q, k, v = SHAPE.arrays(jnp.bfloat16)
    with (
        target_platform(platform),
        pytest.raises(NotImplementedError, match=f"NVIDIA GPUs .*{platform}.*: masked, xla"),
    ):
        dot_product_attention(q, k, v, implementation="cudnn")


def test_a_machine_without_cudnn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", None)
    with pytest.raises(NotImplementedError, match=r"'cudnn' does not serve these arrays \(cuDNN is not detected"):
        resolve("cudnn")
    assert resolve("auto") == "xla"


REFUSED = {
    "float32": ({"dtype": jnp.float32}, r"bfloat16 or float16 \(the arrays are float32\)", "xla"),
    "head_dim": ({"shape": AttentionShape(1, 1, 20, 4, 4)}, "head dim must be .* multiple of 8, but got 20", "xla"),
    "large_head_dim": ({"shape": AttentionShape(1, 1, 264, 4, 4)}, "head dim must be .* but got 264", "xla"),
    "mask": ({"form": "11ts"}, r"masks of keys alone.*\[1, 1, 48, 32\]", "xla"),
    "mask_of_heads": ({"form": "1n1s"}, r"masks of keys alone.*\[1, 3, 1, 32\]", "xla"),
    "dropout": ({"dropout_rate": 0.1}, r"no attention dropout \(dropout_rate=0.1\)", "xla"),
}


@pytest.mark.usefixtures("installed_cudnn")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cudnn_cannot_do_is_refused_and_auto_takes_another(name: str) -> None:
    call, reason, other = REFUSED[name]
    with pytest.raises(NotImplementedError, match=f"'cudnn' .*{reason}.*; these serve the call: masked, .*blockwise$"):
        resolve("cudnn", **call)
    assert resolve("auto", **call) == other


@pytest.mark.usefixtures("installed_cudnn")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("form", [None, "b11s", "111s", "b111"])
def test_auto_is_cudnn_where_it_serves(dtype: Any, form: str | None) -> None:
    assert resolve("auto", dtype=dtype, form=form) == resolve("cudnn", dtype=dtype, form=form) == "cudnn"


@pytest.mark.usefixtures("installed_cudnn")
@pytest.mark.parametrize("form", [None, "b11s"])
@pytest.mark.parametrize("name", ["training", "published"])
def test_lowers_to_cudnn_forward_and_backward_without_an_array_of_logits(name: str, form: str | None) -> None:
    shape = ATTENTION_SHAPES[name]
    q, k = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in (shape.q_shape, shape.k_shape))
    mask = None if form is None else jax.ShapeDtypeStruct(shape.mask_shape(form), bool)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        return dot_product_attention(q, k, v, mask=mask, implementation="auto").sum()

    with target_platform("cuda"):
        gradient = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, k, mask)
        module = gradient.lower(lowering_platforms=("cuda",)).as_text()
    assert module.count("@__cudnn$fmhaSoftmax(") == 1
    assert module.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert f"{shape.num_queries}x{shape.num_keys}x" not in module


@pytest.mark.usefixtures("installed_cudnn")
def test_padded_keys_and_samples_without_keys_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ATTENTION_SHAPES["padded"]
    attend = jax.nn.dot_product_attention

    def on_cpu(*arrays: jax.Array, implementation: str, **options: Any) -> jax.Array:
        assert implementation == "cudnn"
        return attend(*arrays, implementation="xla", **options)

    q, k, v = shape.arrays(jnp.bfloat16)
    mask = shape.random_mask("b11s").at[1].set(False)

    def run(implementation: str) -> Any:
        call = functools.partial(dot_product_attention, q, mask=mask, implementation=implementation)
        y, pullback = jax.vjp(call, k, v)
        return y, *pullback(y)

    expected = jax.jit(lambda: run("masked"))()
    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    with target_platform("cuda"), jax.numpy_dtype_promotion("standard"):
        actual = jax.jit(lambda: run("cudnn"))()
    for array, wanted in zip(actual, expected, strict=True):
        assert_close(array, wanted, TOLERANCES["bfloat16"].forward)
    assert not actual[0][1].any()
