"""Initial weights and named axes of the linear layer and of whole models."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from emmi_jax import AnchorAttentionConfig, AttentionConfig, PerceiverBlock, SelfAnchorAttention, TransformerBlock
from emmi_jax.layers.linear import Linear, named_axes
from tests.cases import specs


def kernel(size: int, init_weights: str, param_dtype: str, seed: int = 0) -> np.ndarray:
    config = AttentionConfig(dim=2, num_heads=1, init_weights=init_weights, param_dtype=param_dtype)
    params = jax.jit(Linear(size, config).init)(jax.random.key(seed), jnp.zeros((1, size), param_dtype))["params"]
    assert params["kernel"].dtype == param_dtype
    return np.asarray(params["kernel"], np.float32)


@pytest.mark.parametrize("param_dtype", ["bfloat16", "float16", "float32"])
def test_normal_weights_have_the_deviation_and_tails_of_the_reference_in_every_dtype(param_dtype: str) -> None:
    values = kernel(512, "truncnormal002", param_dtype)
    assert abs(values.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * values.size)
    # Of 2**18 normal numbers, one beyond 7 deviations has a probability of 7e-7.
    assert np.abs(values).max() < 7 * 0.02


def test_no_float32_weight_of_millions_is_an_outlier() -> None:
    assert np.abs(kernel(4096, "truncnormal002", "float32")).max() < 8 * 0.02


@pytest.mark.parametrize("param_dtype", ["bfloat16", "float16", "float32"])
def test_uniform_weights_fill_their_interval_evenly_in_every_dtype(param_dtype: str) -> None:
    values = kernel(512, "torch", param_dtype) * 512**0.5
    counts, _ = np.histogram(values, bins=8, range=(-1.0, 1.0))
    assert np.abs(counts / values.size - 1 / 8).max() < 5 * np.sqrt(1 / 8 / values.size) + 2**-8
    assert abs(values.mean()) < 5 / np.sqrt(3 * values.size) + 2**-9


def axes(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, P]:
    with named_axes(True):
        variables = jax.eval_shape(module.init, jax.random.key(0), *args, **kwargs)
    return flatten_dict(nn.get_partition_spec(variables)["params"], sep="/")


LINEAR_AXES = {
    "qkv": P("embed", "heads"),
    "proj": P("heads", "embed"),
    "fc1": P("embed", "mlp"),
    "fc2": P("mlp", "embed"),
}
LINEAR_AXES |= {"q": P("embed", "heads"), "kv": P("embed", "heads"), "modulation": P("condition", "embed")}


@pytest.mark.parametrize("options", [{"layer_scale": 0.1}, {"condition_dim": 3}], ids=["plain", "conditioned"])
@pytest.mark.parametrize("kind", ["transformer", "perceiver"])
def test_every_parameter_has_a_name_for_each_axis(kind: str, options: dict[str, Any]) -> None:
    x = jnp.zeros((1, 5, 12))
    condition = jnp.zeros((1, 3)) if "condition_dim" in options else None
    if kind == "perceiver":
        found = axes(PerceiverBlock(AttentionConfig(dim=12, num_heads=2), **options), x, x, condition=condition)
    else:
        config = AnchorAttentionConfig(dim=12, num_heads=2, branches=("a",))
        block = TransformerBlock(config, attention=SelfAnchorAttention, **options)
        found = axes(block, x, specs(a_anchors=5), condition=condition)
    for path, names in found.items():
        layer, leaf = path.split("/")[-2:]
        expected = LINEAR_AXES.get(layer, P("embed"))
        assert names == (P(expected[-1]) if leaf == "bias" else expected), path


def test_boxed_parameters_give_what_plain_ones_give() -> None:
    layer, x = Linear(3, AttentionConfig(dim=2, num_heads=1), axes=("embed", "mlp")), jnp.ones((1, 4))
    plain = layer.init(jax.random.key(0), x)
    with named_axes(True):
        boxed = layer.init(jax.random.key(0), x)
    assert isinstance(boxed["params"]["kernel"], nn.LogicallyPartitioned)
    jax.tree.map(np.testing.assert_array_equal, nn.unbox(boxed), plain)
    np.testing.assert_array_equal(layer.apply(boxed, x), layer.apply(plain, x))
