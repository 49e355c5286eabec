"""The cuDNN kernel on a real GPU; skipped where there is none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops.attention import dot_product_attention, platform, resolve_implementation
from tests.cases import AttentionShape

pytestmark = pytest.mark.skipif(platform() != "cuda", reason="no NVIDIA GPU")

SHAPES = {
    "small": AttentionShape(2, 3, 64, 128, 96),
    "odd": AttentionShape(3, 2, 64, 133, 77),
    "wide_heads": AttentionShape(1, 2, 128, 256, 192),
    "long": AttentionShape(1, 3, 64, 2048, 4096),
}


def output_and_gradients(shape: AttentionShape, mask: jax.Array | None, implementation: str, dtype: Any) -> list[Any]:
    arrays = [a.astype(jnp.bfloat16).astype(dtype) for a in shape.arrays()]
    cotangent = jnp.asarray(np.random.default_rng(9).standard_normal(shape.q_shape, np.float32)).astype(dtype)

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        def attend(*arrays: jax.Array) -> jax.Array:
            return dot_product_attention(*arrays, mask=mask, implementation=implementation, precision="highest")

        y, vjp = jax.vjp(attend, q, k, v)
        return [y, *vjp(cotangent)]

    return [np.asarray(a.astype(jnp.float32)) for a in run(*arrays)]


@pytest.mark.parametrize("padding", [None, "some", "all_of_a_sample"])
@pytest.mark.parametrize("name", SHAPES)
def test_cudnn_agrees_with_masked_in_float32(name: str, padding: str | None) -> None:
    shape = SHAPES[name]
    mask = None
    if padding is not None:
        real = np.random.default_rng(1).random((shape.batch, 1, 1, shape.num_keys)) < 0.7
        if padding == "all_of_a_sample":
            real[-1] = False
        mask = jnp.asarray(real)
    expected = output_and_gradients(shape, mask, "masked", jnp.float32)
    for actual, wanted in zip(output_and_gradients(shape, mask, "cudnn", jnp.bfloat16), expected, strict=True):
        assert np.abs(actual - wanted).max() <= 2e-2 * max(np.abs(wanted).max(), 1e-6)


def test_auto_takes_cudnn_in_half_precision_and_not_in_float32() -> None:
    q, k, _ = SHAPES["small"].arrays(jnp.bfloat16)
    assert resolve_implementation("auto", q, k) == "cudnn"
    q, k, _ = SHAPES["small"].arrays()
    assert resolve_implementation("auto", q, k) != "cudnn"
