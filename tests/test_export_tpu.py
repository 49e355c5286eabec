"""Modules and a training step with the TPU kernel lower for a TPU on a machine that has none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from emmi_jax import AbUptConfig, AnchorAttentionConfig, AnchoredBranchedUPT, Geometry
from emmi_jax.ops.attention import target_platform
from emmi_jax.ops.rope import RopeFrequencies
from tests.cases import ANCHOR_ATTENTIONS, specs

BRANCHES = ("surface", "volume")
TOKENS = specs(surface_anchors=1024, surface_queries=700, volume_anchors=1500, volume_queries=0)
KERNELS = {f"splash_mha_{phase}" for phase in ("fwd", "dq", "dkv")}


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def exported_kernels(function: Callable[..., Any], *args: Any) -> tuple[set[str], list[jax.core.ShapedArray]]:
    """Exports for TPU; returns which of `KERNELS` are called, and what comes out."""
    with target_platform("tpu"):
        exported = jax.export.export(jax.jit(function), platforms=("tpu",))(*args)
    assert exported.platforms == ("tpu",)
    module = exported.mlir_module()
    assert "tpu_custom_call" in module
    return {kernel for kernel in KERNELS if kernel in module}, list(exported.out_avals)


@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
@pytest.mark.parametrize("implementation", ["splash", "auto"])
def test_anchor_attention_exports_with_one_kernel_for_the_whole_sequence(kind: str, implementation: str) -> None:
    config = AnchorAttentionConfig(
        dim=192, num_heads=3, use_rope=True, branches=BRANCHES, implementation=implementation, dtype=jnp.bfloat16
    )
    module, num_tokens = ANCHOR_ATTENTIONS[kind](config), sum(spec.size or 0 for spec in TOKENS)
    x, freqs = array(2, num_tokens, config.dim), RopeFrequencies(*[array(2, num_tokens, config.head_dim // 2)] * 2)
    mask = array(2, num_tokens, dtype=bool)

    def apply(variables: Any, x: jax.Array, freqs: RopeFrequencies, mask: jax.Array) -> jax.Array:
        return module.apply(variables, x, TOKENS, freqs, key_padding_mask=mask)

    with target_platform("tpu"):
        variables = jax.eval_shape(lambda x, f: module.init(jax.random.key(0), x, TOKENS, f), x, freqs)
        traced = str(jax.make_jaxpr(apply)(variables, x, freqs, mask))
    assert traced.count("pallas_call[") == 1
    kernels, (y,) = exported_kernels(apply, variables, x, freqs, mask)
    assert kernels == {"splash_mha_fwd"}
    assert (y.shape, y.dtype) == (x.shape, jnp.bfloat16)


OPTIMIZER = optax.adamw(1e-3)
INPUTS = {
    "anchors": {branch: array(2, 1024, 3) for branch in BRANCHES},
    "queries": {"surface": array(2, 333, 3)},
    "anchor_masks": {"surface": array(2, 1024, dtype=bool)},
    "geometry": Geometry(array(2, 2000, 3), array(2, 300, dtype=jnp.int32)),
}


def ab_upt(**options: Any) -> AnchoredBranchedUPT:
    blocks, depths = ("perceiver", "cross"), {"surface": 1}
    return AnchoredBranchedUPT(
        AbUptConfig(dim=192, num_heads=3, physics_blocks=blocks, decoder_depths=depths, **options)
    )


@functools.cache
def ab_upt_state() -> tuple[Any, Any]:
    """Shapes of the parameters and the optimiser's state, which no option of the test changes."""
    params = jax.eval_shape(lambda inputs: ab_upt().init(jax.random.key(0), **inputs)["params"], INPUTS)
    return params, jax.eval_shape(OPTIMIZER.init, params)


@pytest.mark.parametrize("options", [{}, {"dtype": jnp.bfloat16, "remat": True}], ids=["float32", "bfloat16_remat"])
def test_a_training_step_of_ab_upt_exports(options: dict[str, Any]) -> None:
    model = ab_upt(implementation="splash", **options)

    def loss(params: Any, inputs: dict[str, Any]) -> jax.Array:
        fields = model.apply({"params": params}, **inputs)
        return sum(jnp.square(field.astype(jnp.float32)).mean() for field in fields.values())

    def step(params: Any, state: Any, inputs: dict[str, Any]) -> tuple[jax.Array, Any, Any]:
        value, gradients = jax.value_and_grad(loss)(params, inputs)
        updates, state = OPTIMIZER.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    # Optax and Flax's LayerNorm rely on implicit promotion.
    with jax.numpy_dtype_promotion("standard"):
        kernels, outputs = exported_kernels(step, *ab_upt_state(), INPUTS)
    assert kernels == KERNELS
    expected = [array(), *jax.tree.leaves(ab_upt_state())]
    assert [(y.shape, y.dtype) for y in outputs] == [(a.shape, a.dtype) for a in expected]
