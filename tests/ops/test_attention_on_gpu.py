"""The kernels of NVIDIA GPUs on a real one; skipped where there is none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from emmi_jax.ops import fa4
from emmi_jax.ops.attention import dot_product_attention, forward_mode, platform, resolve_implementation
from tests.cases import AttentionShape, random_array
from tests.ops.test_flash_attention import DERIVATIVES, derivative

pytestmark = [
    pytest.mark.skipif(platform() != "cuda", reason="no NVIDIA GPU"),
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:cutlass:DeprecationWarning"),
]

SHAPES = {
    "small": AttentionShape(2, 3, 64, 128, 96),
    "odd": AttentionShape(3, 2, 64, 133, 77),
    "one_key": AttentionShape(2, 2, 32, 40, 1),
    "one_query": AttentionShape(2, 2, 64, 1, 200),
    "narrow_heads": AttentionShape(2, 2, 40, 70, 90),
    "wide_heads": AttentionShape(1, 2, 128, 256, 192),
    "long": AttentionShape(1, 3, 64, 2048, 4096),
}
IMPLEMENTATIONS = ("cudnn", "flash")


def refuse_missing_package(implementation: str) -> None:
    if implementation == "flash" and (reason := fa4.fa4_limit()):
        pytest.skip(reason)


def output_and_gradients(arrays: Any, mask: jax.Array | None, implementation: str, dtype: Any) -> list[Any]:
    *points, cotangent = (a.astype(jnp.bfloat16).astype(dtype) for a in arrays)

    @jax.jit
    def run(points: Any) -> Any:
        def attend(*points: jax.Array) -> jax.Array:
            return dot_product_attention(*points, mask=mask, implementation=implementation, precision="highest")

        y, vjp = jax.vjp(attend, *points)
        return [y, *vjp(cotangent)]

    return [np.asarray(a.astype(jnp.float32)) for a in run(points)]


def arrays_and_mask(name: str, padding: str | None) -> tuple[list[jax.Array], jax.Array | None]:
    shape = SHAPES[name]
    arrays = [*shape.arrays(), random_array(np.random.default_rng(9), shape.q_shape)]
    if padding is None:
        return arrays, None
    real = np.random.default_rng(1).random((shape.batch, 1, 1, shape.num_keys)) < 0.7
    if padding == "all_of_a_sample":
        real[-1] = False
    return arrays, jnp.asarray(real)


@pytest.mark.parametrize("padding", [None, "some", "all_of_a_sample"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_agrees_with_masked_in_float32(implementation: str, name: str, padding: str | None) -> None:
    refuse_missing_package(implementation)
    arrays, mask = arrays_and_mask(name, padding)
    expected = output_and_gradients(arrays, mask, "masked", jnp.float32)
    # With one key, the gradients of q and k are zero up to rounding.
    largest = max(np.abs(a).max() for a in expected)
    for actual, wanted in zip(output_and_gradients(arrays, mask, implementation, jnp.bfloat16), expected, strict=True):
        assert np.abs(actual - wanted).max() <= 2e-2 * max(np.abs(wanted).max(), 0.05 * largest)


@pytest.mark.parametrize("padding", [None, "all_of_a_sample"])
@pytest.mark.parametrize("name", SHAPES)
def test_derivatives_of_flash_agree_with_masked_in_float32(name: str, padding: str | None) -> None:
    arrays, mask = arrays_and_mask(name, padding)
    tangents = [random_array(np.random.default_rng(3), a.shape) for a in arrays[:3]]

    def run(implementation: str, dtype: Any) -> Any:
        *points, cotangent, dq, dk, dv = (a.astype(jnp.bfloat16).astype(dtype) for a in (*arrays, *tangents))

        def attend(*points: jax.Array) -> jax.Array:
            return dot_product_attention(*points, mask=mask, implementation=implementation)

        @jax.jit
        def all_kinds(points: Any) -> Any:
            kinds = [kind for kind in DERIVATIVES if kind not in ("third", "push_push")]
            return {kind: derivative(kind, attend, points, (dq, dk, dv), cotangent) for kind in kinds}

        with forward_mode(True), jax.default_matmul_precision("highest"):
            return all_kinds(tuple(points))

    found, expected = run("flash", jnp.bfloat16), run("masked", jnp.float32)
    norms = {kind: max(np.linalg.norm(a) for a in jax.tree.leaves(wanted)) for kind, wanted in expected.items()}
    for kind, wanted in expected.items():
        exact = [np.asarray(a, np.float32) for a in jax.tree.leaves(wanted)]
        # With one key or none, many of them are zero up to rounding.
        norm = max(norms[kind], 0.05 * max(norms.values()), 1e-6)
        for a, b in zip(jax.tree.leaves(found[kind]), exact, strict=True):
            error = np.linalg.norm(np.asarray(a.astype(jnp.float32)) - b) / norm
            assert error <= 2e-2, f"{kind}: {error:.1e}"


@pytest.mark.parametrize("in_forward_mode", [False, True])
def test_flash_runs_inside_shard_map_and_keeps_nan_behind_a_mask(in_forward_mode: bool) -> None:
    if not in_forward_mode:
        refuse_missing_package("flash")
    arrays, mask = arrays_and_mask("odd", "some")
    mask = mask.at[..., 5].set(False)
    q, k, v, cotangent = (a.astype(jnp.bfloat16) for a in arrays)
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradients(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, cotangent: jax.Array) -> Any:
        def attend(*points: jax.Array) -> jax.Array:
            return dot_product_attention(*points, mask=mask, implementation="flash")

        return jax.vjp(attend, q, k, v)[1](cotangent)

    specs = (P(None, "devices"), P(), P(), P(), P(None, "devices"))
    mapped = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=(P(None, "devices"), P(), P()))
    with forward_mode(in_forward_mode):
        expected = jax.jit(gradients)(q, k, v, mask, cotangent)
        found = jax.jit(mapped)(q, k.at[:, 5].set(jnp.nan), v.at[:, 5].set(jnp.nan), mask, cotangent)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=1e-2)


def test_auto_takes_a_fused_kernel_in_half_precision_and_not_in_float32() -> None:
    q, k, _ = SHAPES["small"].arrays(jnp.bfloat16)
    assert resolve_implementation("auto", q, k) == ("flash" if fa4.fa4_limit() is None else "cudnn")
    with forward_mode(True):
        assert resolve_implementation("auto", q, k) == "flash"
    q, k, _ = SHAPES["small"].arrays()
    assert resolve_implementation("auto", q, k) in ("xla", "blockwise")
