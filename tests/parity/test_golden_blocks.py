"""Perceiver attention, the blocks and supernode pooling give the recorded outputs and gradients."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import (
    AttentionConfig,
    Geometry,
    PerceiverAttention,
    PerceiverBlock,
    SupernodePooling,
    SupernodePoolingConfig,
    TransformerBlock,
    rope_frequencies,
)
from emmi_jax.convert import params_from_torch
from emmi_jax.ops.neighbors import nearest_neighbors, radius_neighbors
from tests.golden_files import Golden, golden_names, load_golden
from tests.tolerances import TOLERANCES, assert_close

FORWARD, GRADIENT = TOLERANCES["float32"]
ATTENDING = golden_names("perceiver_attention", "perceiver_block", "transformer_block")
POOLING = golden_names("supernode_pooling")
POOLING_OPTIONS = ("message_mode", "readd_supernode_pos", "input_features_dim", "bias")


def attending_module(meta: dict[str, Any]) -> nn.Module:
    """The module of a recorded case that has attention."""
    dim = meta.get("dim") or meta["hidden_dim"]
    flags = {name: meta[name] for name in ("bias", "qk_norm") if name in meta}
    config = AttentionConfig(dim=dim, num_heads=meta["num_heads"], use_rope=meta["use_rope"], **flags)
    if meta["kind"] == "perceiver_attention":
        return PerceiverAttention(config, meta["kv_dim"])
    options = {name: meta[name] for name in ("mlp_hidden_dim", "eps", "norm", "kv_dim") if name in meta}
    return {"perceiver_block": PerceiverBlock, "transformer_block": TransformerBlock}[meta["kind"]](
        config,
        mlp_ratio=meta["mlp_expansion_factor"],
        condition_dim=meta.get("condition_dim"),
        layer_scale=meta.get("layerscale"),
        **options,
    )


def apply(module: nn.Module, params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
    """Applies it to recorded inputs; frequencies follow from the recorded positions."""
    freqs = {
        {"pos": "freqs", "q_pos": "q_freqs", "k_pos": "k_freqs"}[name]: rope_frequencies(a, module.config.head_dim)
        for name, a in inputs.items()
        if name.endswith("pos")
    }
    others = {name: a for name, a in inputs.items() if not name.endswith("pos")}
    return module.apply({"params": params}, **others, **freqs)


@functools.cache
def output_and_gradients(name: str) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """The output, and the gradients of its product with the recorded cotangent by parameters and inputs."""
    golden = load_golden(name)
    module = attending_module(golden.meta)

    @jax.jit
    def run(params: Any, inputs: dict[str, jax.Array], cotangent: jax.Array) -> Any:
        y, vjp = jax.vjp(functools.partial(apply, module), params, inputs)
        return y, *vjp(cotangent)

    inputs = {name: jnp.asarray(array) for name, array in golden.inputs.items()}
    return run(params_from_torch(golden.params), inputs, jnp.asarray(golden.cotangents["y"]))


@pytest.mark.parametrize("name", ATTENDING)
def test_output_is_the_recorded_one(name):
    assert_close(output_and_gradients(name)[0], load_golden(name).outputs["y"], FORWARD)


@pytest.mark.parametrize("name", ATTENDING)
def test_gradient_by_every_input_is_the_recorded_one(name):
    recorded = {k.removeprefix("in/"): g for k, g in load_golden(name).gradients.items() if k.startswith("in/")}
    assert set(recorded) <= {"x", "q", "kv"}
    assert recorded
    for key, gradient in recorded.items():
        assert_close(output_and_gradients(name)[2][key], gradient, GRADIENT)


@pytest.mark.parametrize("name", ATTENDING)
def test_gradient_by_every_parameter_is_the_recorded_one(name):
    gradients = load_golden(name).gradients
    recorded = params_from_torch({k.removeprefix("param/"): g for k, g in gradients.items() if k.startswith("param/")})
    actual = output_and_gradients(name)[1]
    assert jax.tree.structure(actual) == jax.tree.structure(recorded)
    jax.tree.map(functools.partial(assert_close, tolerance=GRADIENT), actual, recorded)


def pooling_config(meta: dict[str, Any]) -> SupernodePoolingConfig:
    return SupernodePoolingConfig(
        mode=meta["spool_pos_mode"],
        radius=meta.get("radius"),
        k=meta.get("k"),
        max_degree=meta["max_degree"],
        aggregation=meta.get("aggregation", "mean"),
        **{name: meta[name] for name in POOLING_OPTIONS if name in meta},
    )


def pooled(golden: Golden, **kwargs: Any) -> jax.Array:
    config = pooling_config(golden.meta)
    dim = golden.meta["dim"]
    module = SupernodePooling(dim, config, AttentionConfig(dim=dim, num_heads=1))
    variables = {"params": params_from_torch(golden.params)}
    kwargs["features"] = golden.inputs.get("features")
    return jax.jit(module.apply)(variables, Geometry(golden.inputs["pos"], supernode_idx(golden), **kwargs))


def supernode_idx(golden: Golden) -> np.ndarray:
    return golden.inputs["supernode_idx"].astype(np.int32)


@pytest.mark.parametrize("name", POOLING)
def test_pooling_that_searches_gives_the_recorded_output(name):
    golden = load_golden(name)
    assert_close(pooled(golden), golden.outputs["y"], FORWARD)


@pytest.mark.parametrize("name", POOLING)
def test_found_neighbors_are_as_many_as_recorded_and_pool_to_the_recorded_output(name):
    golden = load_golden(name)
    config = pooling_config(golden.meta)
    if config.k is not None:
        search = functools.partial(nearest_neighbors, k=config.k)
    else:
        search = functools.partial(radius_neighbors, radius=config.radius, max_degree=config.max_degree)
    neighbors = search(golden.inputs["pos"], supernode_idx(golden))
    if "degree" in golden.outputs:
        np.testing.assert_array_equal(neighbors.mask.sum(axis=-1), golden.outputs["degree"])
    assert_close(pooled(golden, neighbors=neighbors), golden.outputs["y"], FORWARD)
