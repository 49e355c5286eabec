"""Layers and model work as NNX modules through Flax's bridge."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

from emmi_jax import AbUptConfig, AnchorAttentionConfig, AnchoredBranchedUPT, CrossAnchorAttention, TokenSpec
from emmi_jax.models.init import dummy_inputs

SPECS = (TokenSpec("surface_anchors", 5), TokenSpec("surface_queries", 3), TokenSpec("volume_anchors", 4))
LAYER = CrossAnchorAttention(AnchorAttentionConfig(dim=12, num_heads=2, branches=("surface", "volume")))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 12)), jnp.float32)
MODEL = AnchoredBranchedUPT(AbUptConfig(dim=24, num_heads=2, mlp_ratio=1, physics_blocks=("cross",), decoder_depths={}))


@pytest.fixture
def layer() -> Any:
    return bridge.ToNNX(LAYER, rngs=nnx.Rngs(0)).lazy_init(X, SPECS)


def params(module: Any) -> Any:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def test_an_nnx_layer_computes_what_linen_computes(layer: Any) -> None:
    np.testing.assert_array_equal(layer(X, SPECS), LAYER.apply({"params": params(layer)}, X, SPECS))


def test_specs_pass_through_nnx_jit_and_trace_once(layer: Any) -> None:
    traces = []

    @nnx.jit
    def call(module: Any, x: jax.Array, specs: Any) -> jax.Array:
        traces.append(specs)
        return module(x, specs)

    for _ in range(2):
        np.testing.assert_allclose(call(layer, X, SPECS), layer(X, SPECS), atol=1e-6)
    assert traces == [SPECS]


def test_the_cache_becomes_state_that_later_calls_read(layer: Any) -> None:
    whole = layer(X, SPECS)
    anchors = jnp.concatenate([X[:, :5], X[:, 8:]], axis=1)
    layer(anchors, (SPECS[0], SPECS[2]), mutable=["cache"])
    assert jax.tree.leaves(nnx.state(layer, nnx.Cache))
    cached = (TokenSpec("surface_anchors", None), SPECS[1], TokenSpec("volume_anchors", None))
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x, cached))(layer, X[:, 5:8]), whole[:, 5:8], atol=1e-6)


def test_a_model_trains_under_nnx() -> None:
    inputs = dummy_inputs(MODEL)
    model = bridge.ToNNX(MODEL, rngs=nnx.Rngs(0)).lazy_init(**inputs)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> jax.Array:
        def loss(model: Any) -> jax.Array:
            return sum(jnp.square(field - 1).mean() for field in model(**inputs).values())

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    with jax.numpy_dtype_promotion("standard"):
        losses = [float(step(model, optimizer)) for _ in range(5)]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    outputs = MODEL.apply({"params": params(model)}, **inputs)
    np.testing.assert_allclose(outputs["surface_pressure"], model(**inputs)["surface_pressure"], atol=1e-6)
