"""The parts of the AB-UPT model: names, shapes and parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emmi_jax import (
    AnchoredBranchedUPT,
    PerceiverBlock,
    RopeFrequencies,
    SelfAnchorAttention,
    SupernodePooling,
    TokenSpec,
    TransformerBlock,
    rope_frequencies,
)
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.mlp import Mlp
from emmi_jax.ops.sincos import sincos_embedding
from tests.models.ab_upt_cases import (
    BATCH,
    CONFIG,
    FIELDS,
    FORWARD,
    SMALL,
    make_inputs,
    predict,
    predictions,
    shapes,
    variables_of,
)
from tests.tolerances import assert_close


@pytest.mark.parametrize(
    "branches",
    [
        ("car",),
        ("surface", "volume"),
        ("wing", "body", "wake"),
        ("vol", "volume"),
        ("physics", "geometry"),
        ("a b", "ü"),
    ],
)
@pytest.mark.parametrize("with_queries", ["none", "first", "last", "all"])
def test_every_field_is_named_after_its_branch_at_anchors_and_at_queries(branches, with_queries):
    asked = {"none": (), "first": branches[:1], "last": branches[-1:], "all": branches}[with_queries]
    blocks = ("perceiver", "self_untied") if len(branches) == 1 else ("perceiver", "cross", "joint_untied")
    fields = {branch: {"p": 1, f"u{i}": 2 + i} for i, branch in enumerate(branches)}
    config = dataclasses.replace(
        CONFIG, fields=fields, physics_blocks=blocks, decoder_depths={branches[0]: 1}, geometry_depth=0
    )
    num_anchors = {branch: 3 + i for i, branch in enumerate(branches)}
    num_queries = {branch: 7 + i for i, branch in enumerate(branches) if branch in asked}
    predicted, _ = shapes(config, **make_inputs(config, num_anchors, num_queries))
    expected = {
        f"{prefix}{branch}_{field}": (BATCH, sizes[branch], channels)
        for prefix, sizes in (("", num_anchors), ("query_", num_queries))
        for branch in sizes
        for field, channels in fields[branch].items()
    }
    assert predicted == expected


@pytest.mark.parametrize("suffix", ["_queries", "_anchors", "_2"])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_branch_may_be_named_like_another_with_any_suffix(kind, suffix):
    config = dataclasses.replace(
        SMALL, fields={"a": {"p": 1}, f"a{suffix}": {"p": 1}}, physics_blocks=(kind,), decoder_depths={"a": 1}
    )
    predicted, _ = shapes(config, **make_inputs(config, {"a": 3, f"a{suffix}": 4}, {"a": 5}))
    assert predicted == {"a_p": (BATCH, 3, 1), "query_a_p": (BATCH, 5, 1), f"a{suffix}_p": (BATCH, 4, 1)}


@pytest.mark.parametrize("branches", [("block", "rows"), ("config", "setup"), ("name", "variables")])
def test_branch_may_be_named_like_an_attribute_of_a_module(branches):
    config = dataclasses.replace(
        SMALL,
        fields={branch: {"p": 1} for branch in branches},
        physics_blocks=("perceiver_untied", "self_untied", "cross"),
        decoder_depths={branches[0]: 1},
    )
    predicted, _ = shapes(config, **make_inputs(config, dict.fromkeys(branches, 3), {}))
    assert predicted == {f"{branch}_p": (BATCH, 3, 1) for branch in branches}


@pytest.mark.parametrize("depths", [{}, {"surface": 0, "volume": 2}, {"surface": 1}])
def test_decoder_of_a_branch_has_as_many_blocks_as_configured(depths):
    config = dataclasses.replace(SMALL, decoder_depths=depths)
    predicted, params = shapes(config, **make_inputs(config))
    assert set(predicted) == {f"{q}{b}_{f}" for q in ("", "query_") for b, fields in FIELDS.items() for f in fields}
    found = {name for name in params if "_decoder_blocks_" in name}
    assert found == {f"{branch}_decoder_blocks_{i}" for branch, depth in depths.items() for i in range(depth)}


def test_parameters_have_the_documented_names():
    _, params = shapes(CONFIG, **make_inputs())
    blocks = {f"physics_blocks_{i}" for i in range(3)} | {"geometry_blocks_0", "surface_decoder_blocks_0"}
    branches = {f"{branch}_{part}" for branch in FIELDS for part in ("bias", "decoder")}
    assert set(params) == {"encoder", *blocks, *branches}
    assert set(params["surface_bias"]) == {"mlp_0", "mlp_2"}
    assert set(params["physics_blocks_1"]) == set(FIELDS)
    assert set(params["physics_blocks_2"]["attention_block"]) == {"mixed_attention"}


@pytest.mark.parametrize("implementation", ["masked", "blockwise"])
def test_parameters_do_not_depend_on_the_implementation(implementation):
    config = dataclasses.replace(CONFIG, implementation=implementation)
    assert shapes(config, **make_inputs()) == shapes(CONFIG, **make_inputs())


@pytest.mark.parametrize("scope", ["all", "transformer_blocks", "attention"])
def test_without_bias_as_much_loses_its_biases_as_the_scope_says(scope):
    _, params = shapes(dataclasses.replace(CONFIG, bias=False, bias_scope=scope), **make_inputs())
    lost = flatten_dict(shapes(CONFIG, **make_inputs())[1]).keys() - flatten_dict(params).keys()
    blocks = {f"physics_blocks_{i}": kind for i, kind in enumerate(CONFIG.physics_blocks)}
    perceivers = {name for name, kind in blocks.items() if kind == "perceiver"}
    untied = {name for name, kind in blocks.items() if kind.endswith("_untied")}

    def loses(path: tuple[str, ...]) -> bool:
        if "encoder" in path or "modulation" in path or (path[0] in untied and "mlp" in path):
            return False
        if scope == "attention":
            return bool({"attn", "attention_block"} & set(path))
        return scope == "all" or ("blocks" in path[0] and path[0] not in perceivers)

    biases = {path for path in flatten_dict(shapes(CONFIG, **make_inputs())[1]) if path[-1] == "bias"}
    assert lost == {path for path in biases if loses(path)}


def test_every_linear_layer_follows_init_weights():
    config = dataclasses.replace(CONFIG, init_weights="zeros", option_scope="all")
    leaves = flatten_dict(jax.jit(AnchoredBranchedUPT(config).init)(jax.random.key(0), **make_inputs())["params"])
    assert {path[-1] for path in leaves} == {"kernel", "bias"}
    assert not any(leaf.any() for leaf in leaves.values())


def test_without_perceiver_blocks_there_is_no_geometry_branch():
    config = dataclasses.replace(CONFIG, physics_blocks=("self", "cross"))
    _, params = shapes(config, **make_inputs(config))
    assert not [name for name in params if name.startswith(("encoder", "geometry"))]


def test_positions_may_have_two_axes():
    config = dataclasses.replace(CONFIG, num_position_axes=2)
    assert shapes(config, **make_inputs(config))[0] == jax.tree.map(np.shape, predictions())


def test_the_model_is_its_parts_one_after_the_other():
    # Conditions, decoders and other wavelengths aside, the recorded cases show the same.
    config = dataclasses.replace(SMALL, physics_blocks=("perceiver", "self"), geometry_depth=1, max_wavelength=300.0)
    inputs, attention = make_inputs(config), config.attention
    specs = tuple(TokenSpec(f"{b}_{g}", inputs[g][b].shape[1]) for b in FIELDS for g in ("anchors", "queries"))

    @jax.jit
    def compose(params: Any, inputs: dict[str, Any]) -> dict[str, jax.Array]:
        def apply(name: str, module: nn.Module, *args: Any, **kwargs: Any) -> jax.Array:
            return module.apply({"params": params[name]}, *args, **kwargs)

        def rotations(positions: jax.Array) -> RopeFrequencies:
            return rope_frequencies(positions, config.head_dim, 300.0)

        points, idx, *_ = inputs["geometry"]
        pooling = SupernodePooling(config.dim, config.supernode_pooling, attention)
        geometry = apply("encoder", pooling, inputs["geometry"])
        at = rotations(jnp.take_along_axis(points, idx[..., None], axis=1))
        block = TransformerBlock(attention, mlp_ratio=2)
        geometry = apply("geometry_blocks_0", block, geometry, freqs=at)
        positions = {b: jnp.concatenate([inputs["anchors"][b], inputs["queries"][b]], axis=1) for b in FIELDS}
        bias = Mlp(config.dim, config.dim, attention, names=("mlp_0", "mlp_2"))
        tokens = [apply(f"{b}_bias", bias, sincos_embedding(x, config.dim, 300.0)) for b, x in positions.items()]
        x, freqs = jnp.concatenate(tokens, axis=1), rotations(jnp.concatenate(list(positions.values()), axis=1))
        x = apply("physics_blocks_0", PerceiverBlock(attention, mlp_ratio=2), x, geometry, freqs, at)
        block = TransformerBlock(attention, mlp_ratio=2, attention=SelfAnchorAttention)
        x = apply("physics_blocks_1", block, x, specs, freqs)
        groups = dict(
            zip([s.name for s in specs], jnp.split(x, np.cumsum([s.size for s in specs])[:-1], 1), strict=True)
        )
        return {
            f"{prefix}{b}": apply(f"{b}_decoder", Linear(sum(FIELDS[b].values()), attention), groups[f"{b}_{group}"])
            for b in FIELDS
            for prefix, group in (("", "anchors"), ("query_", "queries"))
        }

    predicted = predict(config, **inputs)
    for name, fields in compose(variables_of(config)["params"], inputs).items():
        names = [f"{name}_{field}" for field in FIELDS[name.removeprefix("query_")]]
        assert_close(jnp.concatenate([predicted[field] for field in names], axis=-1), fields, FORWARD)
