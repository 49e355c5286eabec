"""What the AB-UPT model means: names, caches, padding, independence of tokens and branches, sizes and errors."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export

from emmi_jax import (
    AbUptConfig,
    AnchoredBranchedUPT,
    Geometry,
    PerceiverBlock,
    RopeFrequencies,
    SelfAnchorAttention,
    SupernodePooling,
    SupernodePoolingConfig,
    TokenSpec,
    TransformerBlock,
    rope_frequencies,
)
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.mlp import Mlp
from emmi_jax.models.init import init_params
from emmi_jax.ops.neighbors import Neighbors
from emmi_jax.ops.sincos import sincos_embedding
from tests.cases import random_array, random_params, random_positions
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
BATCH, NUM_POINTS, NUM_SUPERNODES, CONDITION_DIM = 2, 9, 4, 5
FIELDS = {"surface": {"pressure": 1, "friction": 3}, "volume": {"velocity": 3}}
NUM_ANCHORS, NUM_QUERIES = {"surface": 5, "volume": 4}, {"surface": 3, "volume": 4}
# Every pattern (self in the decoder), an untied block among the tied ones, and a branch without a decoder.
CONFIG = AbUptConfig(
    dim=24,
    num_heads=2,
    fields=FIELDS,
    physics_blocks=("perceiver", "cross_untied", "joint"),
    decoder_depths={"surface": 1},
    supernode_pooling=SupernodePoolingConfig(radius=200.0),
    condition_dim=CONDITION_DIM,
    mlp_ratio=2,
)
SMALL = dataclasses.replace(
    CONFIG, physics_blocks=("perceiver", "cross_untied"), decoder_depths={}, geometry_depth=0, condition_dim=None
)
TRACED: list[AbUptConfig] = []


@functools.partial(jax.jit, static_argnames=("config", "mutable", "deterministic"))
def run(config: AbUptConfig, variables: Any, *, mutable: tuple[str, ...] | bool = False, **inputs: Any) -> Any:
    TRACED.append(config)
    return AnchoredBranchedUPT(config).apply(variables, mutable=mutable, **inputs)


def shapes(config: AbUptConfig, **inputs: Any) -> tuple[Any, Any]:
    """Shapes of predictions and parameters."""
    init = AnchoredBranchedUPT(config).init_with_output
    predictions, variables = jax.eval_shape(functools.partial(init, jax.random.key(0)), **inputs)
    return jax.tree.map(np.shape, predictions), variables["params"]


def make_inputs(
    config: AbUptConfig = CONFIG,
    num_anchors: Mapping[str, int] = NUM_ANCHORS,
    num_queries: Mapping[str, int] = NUM_QUERIES,
    seed: int = 0,
) -> dict[str, Any]:
    """Random inputs; any points may be given as neighbours, which saves compiling the search."""
    rng, axes = np.random.default_rng(seed), config.num_position_axes
    inputs: dict[str, Any] = {
        "anchors": {b: random_positions(rng, BATCH, num_anchors[b], axes) for b in config.branches},
        "queries": {b: random_positions(rng, BATCH, num_queries[b], axes) for b in config.branches if b in num_queries},
    }
    if config.has_geometry:
        position = random_positions(rng, BATCH, NUM_POINTS, axes)
        idx = jnp.asarray(rng.integers(0, NUM_POINTS, (BATCH, NUM_SUPERNODES), np.int32))
        size = (BATCH, NUM_SUPERNODES, 3)
        neighbor_idx = jnp.asarray(rng.integers(0, NUM_POINTS, size, np.int32))
        inputs["geometry"] = Geometry(position, idx, Neighbors(neighbor_idx, jnp.asarray(rng.random(size) < 0.8)))
    if config.condition_dim is not None:
        inputs["condition"] = random_array(rng, (BATCH, config.condition_dim))
    return inputs


@functools.cache
def variables_of(config: AbUptConfig) -> Any:
    return random_params(AnchoredBranchedUPT(config), **make_inputs(config))


def predict(config: AbUptConfig = CONFIG, **inputs: Any) -> dict[str, jax.Array]:
    return run(config, variables_of(config), **inputs)


@functools.cache
def predictions() -> dict[str, jax.Array]:
    """At anchors and queries of both branches."""
    return predict(**make_inputs())


def assert_same(actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = FORWARD) -> None:
    assert actual
    for name in actual:
        assert_close(actual[name], expected[name], tolerance)


def fields_of(branch: str, predicted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in predicted.items() if branch in name}


# Names and shapes ------------------------------------------------------------------------------------------------


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


# Tokens and branches ---------------------------------------------------------------------------------------------


def test_queries_move_neither_anchors_nor_one_another():
    inputs = make_inputs()
    queries = inputs["queries"]
    changed = {"surface": queries["surface"].at[:, 0].add(50.0), "volume": queries["volume"].at[:, 1:].add(50.0)}
    predicted = predict(**inputs | {"queries": changed})
    for name, field in predicted.items():
        same = {"query_surface": slice(1, None), "query_volume": slice(0, 1)}.get(name.rpartition("_")[0], slice(None))
        assert_close(field[:, same], predictions()[name][:, same], FORWARD)
    assert np.abs(predicted["query_surface_pressure"] - predictions()["query_surface_pressure"])[:, 0].max() > 1e-3


def test_anchors_without_queries_have_the_same_fields():
    assert_same(predict(**make_inputs() | {"queries": None}), predictions())


def test_queries_of_one_branch_alone_change_nothing():
    inputs = make_inputs()
    predicted = predict(**inputs | {"queries": {"volume": inputs["queries"]["volume"]}})
    assert set(predicted) == {name for name in predictions() if not name.startswith("query_surface")}
    assert_same(predicted, predictions())


def test_samples_of_a_batch_do_not_see_one_another():
    flipped = predict(**jax.tree.map(lambda a: a[::-1], make_inputs()))
    assert_same(flipped, {name: field[::-1] for name, field in predictions().items()})


def test_order_of_the_branches_does_not_matter():
    config = dataclasses.replace(CONFIG, fields=dict(reversed(FIELDS.items())))
    assert config.branches == ("volume", "surface")
    predicted = run(config, variables_of(CONFIG), **make_inputs())
    assert set(predicted) == set(predictions())
    assert_same(predicted, predictions())


def tied_and_untied(kinds: tuple[str, ...]) -> tuple[AbUptConfig, AbUptConfig]:
    untied = tuple(f"{kind}_untied" for kind in kinds)
    return tuple(dataclasses.replace(SMALL, physics_blocks=blocks) for blocks in (kinds, untied))


def test_untied_blocks_with_equal_weights_are_the_tied_ones():
    tied, untied = tied_and_untied(("perceiver", "self", "cross", "joint"))
    params = variables_of(tied)["params"]
    copies = {
        name: dict.fromkeys(FIELDS, part) if name.startswith("physics_blocks") else part
        for name, part in params.items()
    }
    assert_same(run(untied, {"params": copies}, **make_inputs(untied)), predict(tied, **make_inputs(tied)))


def test_number_of_tokens_in_a_branch_matters_to_another_only_through_its_anchors():
    # Anchors that come twice weigh the same as once wherever only one branch is attended to.
    _, untied = tied_and_untied(("perceiver", "self", "cross"))
    inputs = make_inputs(untied)
    twice = jnp.concatenate([inputs["anchors"]["volume"]] * 2, axis=1)
    more = {"anchors": inputs["anchors"] | {"volume": twice}, "queries": {"surface": inputs["queries"]["surface"]}}
    expected, predicted = predict(untied, **inputs), predict(untied, **inputs | more)
    assert_same(fields_of("surface", predicted), expected)
    assert_close(predicted["volume_velocity"], jnp.concatenate([expected["volume_velocity"]] * 2, axis=1), FORWARD)


def test_the_condition_and_the_geometry_reach_every_field():
    inputs = make_inputs()
    geometry = inputs["geometry"]
    moved = geometry._replace(position=geometry.position + 1.0)
    for change in ({"condition": inputs["condition"] + 1.0}, {"geometry": moved}):
        changed = predict(**inputs | change)
        for field, before in predictions().items():
            assert np.abs(changed[field] - before).max() > 1e-3


# Caches and padding ----------------------------------------------------------------------------------------------


@functools.cache
def cached(masked: bool = False) -> tuple[dict[str, jax.Array], Any]:
    """Predictions at anchors, and what they leave in the cache."""
    inputs = make_inputs() | {"queries": None} | ({"anchor_masks": MASKS} if masked else {})
    return run(CONFIG, variables_of(CONFIG), mutable=("cache",), **inputs)


KEPT = {"surface": np.array([[0, 1, 4], [1, 2, 3]]), "volume": np.array([[1, 3], [0, 1]])}
MASKS = {
    branch: jnp.asarray((np.arange(NUM_ANCHORS[branch]) == kept[..., None]).any(axis=1))
    for branch, kept in KEPT.items()
}


def test_cache_holds_anchors_and_geometry_alone():
    model, inputs = AnchoredBranchedUPT(CONFIG), make_inputs()
    _, state = jax.eval_shape(lambda v: model.apply(v, mutable=["cache"], **inputs), variables_of(CONFIG))
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, cached()[1])
    kept = {path[:-1]: leaf.shape[1] for path, leaf in flatten_dict(state["cache"]).items()}
    sizes = {"kv": NUM_SUPERNODES} | {f"{branch}:anchors": size for branch, size in NUM_ANCHORS.items()}
    assert {path[-1] for path in kept} == set(sizes)
    assert all(size == sizes[path[-1]] for path, size in kept.items())
    assert {path[0] for path in kept} == {*(f"physics_blocks_{i}" for i in range(3)), "surface_decoder_blocks_0"}


@pytest.mark.parametrize("asked", [("surface", "volume"), ("surface",), ("volume",)])
def test_queries_from_the_cache_equal_those_beside_their_anchors(asked):
    inputs = make_inputs()
    predicted = run(
        CONFIG,
        variables_of(CONFIG) | cached()[1],
        queries={branch: inputs["queries"][branch] for branch in asked},
        condition=inputs["condition"],
    )
    prefixes = tuple(f"query_{branch}" for branch in asked)
    assert set(predicted) == {name for name in predictions() if name.startswith(prefixes)}
    assert_same(predicted, predictions())


def test_queries_from_the_cache_of_padded_anchors_equal_those_beside_them():
    inputs = make_inputs()
    expected = predict(**inputs, anchor_masks=MASKS)
    predicted = run(
        CONFIG,
        variables_of(CONFIG) | cached(masked=True)[1],
        queries=inputs["queries"],
        condition=inputs["condition"],
    )
    assert_same(predicted, expected)


def test_padded_anchors_equal_truncated_ones():
    inputs = make_inputs()
    anchors = {b: jnp.take_along_axis(inputs["anchors"][b], kept[..., None], axis=1) for b, kept in KEPT.items()}
    truncated = predict(**inputs | {"anchors": anchors})
    padded = predict(**inputs, anchor_masks=MASKS)
    for name, field in padded.items():
        if not name.startswith("query_"):
            field = np.take_along_axis(field, KEPT[name.rpartition("_")[0]][..., None], axis=1)
        assert_close(field, truncated[name], FORWARD)


@pytest.mark.parametrize("moved_to", [0.0, np.nan])
def test_positions_of_padded_anchors_do_not_matter(moved_to):
    inputs = make_inputs()
    moved = {b: jnp.where(MASKS[b][..., None], x, moved_to) for b, x in inputs["anchors"].items()}
    before, after = predict(**inputs, anchor_masks=MASKS), predict(**inputs | {"anchors": moved}, anchor_masks=MASKS)
    for name, field in after.items():
        real = ... if name.startswith("query_") else MASKS[name.rpartition("_")[0]]
        assert_close(field[real], before[name][real], FORWARD)


def test_branch_without_a_real_anchor_gives_finite_fields():
    masks = MASKS | {"volume": jnp.zeros((BATCH, NUM_ANCHORS["volume"]), bool)}
    for field in predict(**make_inputs(), anchor_masks=masks).values():
        assert np.isfinite(field).all()


def test_branch_without_a_mask_is_all_real():
    everything = jnp.ones((BATCH, NUM_ANCHORS["surface"]), bool)
    expected = predict(**make_inputs(), anchor_masks=MASKS | {"surface": everything})
    assert_same(predict(**make_inputs(), anchor_masks={"volume": MASKS["volume"]}), expected)
    both = {"surface": everything, "volume": jnp.ones((BATCH, NUM_ANCHORS["volume"]), bool)}
    assert_same(predict(**make_inputs(), anchor_masks=both), predictions())


@jax.jit
def fields_and_gradient(params: Any, inputs: dict[str, Any]) -> tuple[dict[str, jax.Array], Any]:
    def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        fields = AnchoredBranchedUPT(GEOMETRIC).apply({"params": params}, **inputs)
        return sum((field**2).sum() for field in fields.values()), fields

    gradient, fields = jax.grad(loss, has_aux=True)(params)
    return fields, gradient


GEOMETRIC = dataclasses.replace(
    SMALL, fields={"volume": FIELDS["volume"]}, physics_blocks=("perceiver_untied",), geometry_depth=1
)


def padded_geometry(padding: str) -> dict[str, Any]:
    """Inputs of two and three real supernodes out of four, whose first point is absent."""
    inputs = make_inputs(GEOMETRIC)
    position, idx, neighbors, *_ = inputs["geometry"]
    position, real = position.at[:, 0].set(np.nan), jnp.array([[True, False, True, False], [False, True, True, True]])
    idx = jnp.maximum(idx, 1)
    neighbors = Neighbors(jnp.maximum(neighbors.idx, 1), neighbors.mask)
    if padding == "mask":
        return inputs | {"geometry": Geometry(position, idx, neighbors, mask=real)}
    outside = {"negative": -1, "too large": NUM_POINTS, "absent point": 0}[padding]
    return inputs | {"geometry": Geometry(position, jnp.where(real, idx, outside), neighbors)}


@functools.cache
def truncated_geometries() -> tuple[dict[str, jax.Array], Any]:
    """Fields and gradient without padding, sample by sample."""
    params, inputs = variables_of(GEOMETRIC)["params"], padded_geometry("mask")
    results = []
    for i in range(BATCH):
        sample = jax.tree.map(lambda a, i=i: a[i : i + 1], inputs)
        position, idx, neighbors, _, mask = sample["geometry"]
        kept = np.flatnonzero(mask[0])
        near = Neighbors(neighbors.idx[:, kept] - 1, neighbors.mask[:, kept])
        results.append(
            fields_and_gradient(params, sample | {"geometry": Geometry(position[:, 1:], idx[:, kept] - 1, near)})
        )
    fields, gradients = zip(*results, strict=True)
    return jax.tree.map(lambda *a: jnp.concatenate(a), *fields), jax.tree.map(lambda a, b: a + b, *gradients)


@pytest.mark.parametrize("padding", ["mask", "negative", "too large", "absent point"])
def test_padded_geometries_of_different_sizes_equal_truncated_ones(padding):
    fields, gradient = fields_and_gradient(variables_of(GEOMETRIC)["params"], padded_geometry(padding))
    expected_fields, expected_gradient = truncated_geometries()
    assert_same(fields, expected_fields)
    jax.tree.map(functools.partial(assert_close, tolerance=TOLERANCES["float32"].gradient), gradient, expected_gradient)


def test_queries_from_the_cache_of_a_padded_geometry_equal_those_beside_it():
    inputs, variables = padded_geometry("mask"), variables_of(GEOMETRIC)
    _, cache = run(GEOMETRIC, variables, mutable=("cache",), **inputs | {"queries": None})
    predicted = run(GEOMETRIC, variables | cache, queries=inputs["queries"])
    expected, _ = truncated_geometries()
    assert_same(predicted, expected)


def test_geometry_without_a_real_supernode_gives_finite_fields_and_gradients():
    inputs = padded_geometry("mask")
    nothing = inputs["geometry"]._replace(mask=jnp.zeros((BATCH, NUM_SUPERNODES), bool))
    params = variables_of(GEOMETRIC)["params"]
    for leaf in jax.tree.leaves(fields_and_gradient(params, inputs | {"geometry": nothing})):
        assert np.isfinite(leaf).all()


# Compiling and numbers -------------------------------------------------------------------------------------------


def test_equal_configurations_and_shapes_are_traced_once():
    predictions()
    traced = len(TRACED)
    again = AbUptConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())))
    assert again is not CONFIG
    predicted = run(again, variables_of(CONFIG), **make_inputs(seed=1))
    assert len(TRACED) == traced
    assert np.abs(predicted["volume_velocity"] - predictions()["volume_velocity"]).max() > 1e-3


def test_gradients_under_rematerialisation_equal_those_without():
    config = dataclasses.replace(SMALL, physics_blocks=("cross_untied",))
    inputs, variables = make_inputs(config, num_queries={}), variables_of(config)

    def gradient(config: AbUptConfig) -> Any:
        def loss(variables: Any) -> jax.Array:
            fields = AnchoredBranchedUPT(config).apply(variables, **inputs)
            return sum((field**2).sum() for field in fields.values())

        return jax.jit(jax.grad(loss))(variables)

    expected, actual = gradient(config), gradient(dataclasses.replace(config, remat=True))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(assert_close, tolerance=FORWARD), actual, expected)


def test_rematerialisation_changes_neither_parameters_nor_caches():
    def tree(config: AbUptConfig) -> Any:
        model, inputs = AnchoredBranchedUPT(config), make_inputs(config)
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
        first = inputs | {"queries": None}
        _, cache = jax.eval_shape(lambda v: model.apply(v, mutable=["cache"], **first), variables)
        second = {"queries": inputs["queries"], "condition": inputs["condition"]}
        return variables, cache, jax.eval_shape(lambda v: model.apply(v, **second), variables | cache)

    assert tree(dataclasses.replace(CONFIG, remat=True)) == tree(CONFIG)


def test_drop_path_follows_its_key():
    dropping = dataclasses.replace(SMALL, drop_path_rate=0.5)
    inputs, variables = make_inputs(SMALL), variables_of(SMALL)
    first, again, other = (
        run(dropping, variables, deterministic=False, rngs={"dropout": jax.random.key(seed)}, **inputs)
        for seed in (0, 0, 2)
    )
    assert_same(first, again, 0.0)
    assert any((first[name] != other[name]).any() for name in first)


def test_bfloat16_stays_close_to_float32_with_float32_parameters():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    inputs = make_inputs(SMALL)
    _, params = shapes(half, **inputs)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    predicted = run(half, variables_of(SMALL), **inputs)
    assert {field.dtype.name for field in predicted.values()} == {"bfloat16"}
    expected = predict(SMALL, **inputs)
    for name, field in predicted.items():
        assert_close(field.astype(jnp.float32), expected[name], 2 * TOLERANCES["bfloat16"].forward)


def test_vmap_equals_a_loop():
    cases = [make_inputs(SMALL, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    variables = variables_of(SMALL)
    together = jax.jit(jax.vmap(lambda i: AnchoredBranchedUPT(SMALL).apply(variables, **i)))(stacked)
    for i, case in enumerate(cases):
        assert_same({name: field[i] for name, field in together.items()}, predict(SMALL, **case))


def test_model_exports_with_a_symbolic_batch_size():
    config = dataclasses.replace(SMALL, implementation="masked", vector_potentials={"volume": ("velocity",)})
    inputs = make_inputs(config) | {"anchor_masks": MASKS}
    (batch,) = export.symbolic_shape("b")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), inputs)
    apply = jax.jit(functools.partial(AnchoredBranchedUPT(config).apply, variables_of(SMALL)))
    exported = export.export(apply)(**shapes)
    fields = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert fields["query_volume_velocity"].shape == (batch, NUM_QUERIES["volume"], 3)


PUBLISHED = AbUptConfig(
    dim=192,
    num_heads=3,
    fields={
        "surface": {"pressure": 1, "wallshearstress": 3},
        "volume": {"totalpcoeff": 1, "velocity": 3, "vorticity": 3},
    },
)


def test_published_size_has_8_751_179_parameters_and_takes_its_published_inputs():
    positions = jax.ShapeDtypeStruct((1, 16_384, 3), jnp.float32)
    predicted, params = shapes(
        PUBLISHED,
        anchors=dict.fromkeys(PUBLISHED.branches, positions),
        queries=dict.fromkeys(PUBLISHED.branches, positions),
        geometry=Geometry(
            jax.ShapeDtypeStruct((1, 65_536, 3), jnp.float32), jax.ShapeDtypeStruct((1, 16_384), jnp.int32)
        ),
    )
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 8_751_179
    assert predicted == {
        f"{prefix}{branch}_{field}": (1, 16_384, channels)
        for prefix, (branch, fields) in itertools.product(("", "query_"), PUBLISHED.fields.items())
        for field, channels in fields.items()
    }


# Errors ----------------------------------------------------------------------------------------------------------

GIVEN = make_inputs()
SURFACE, VOLUME = GIVEN["anchors"]["surface"], GIVEN["anchors"]["volume"]
GEOMETRY = GIVEN["geometry"]
NO_PERCEIVER = dataclasses.replace(CONFIG, physics_blocks=("self",))
UNCONDITIONED = dataclasses.replace(CONFIG, condition_dim=None)
WITH_FEATURES = dataclasses.replace(CONFIG, supernode_pooling=SupernodePoolingConfig(input_features_dim=3))
FEATURES = jnp.zeros((BATCH, NUM_POINTS, 3))


class Tensor:
    """An array of another library."""

    shape, ndim, dtype = (2, 4, 3), 3, "torch.float32"


def with_geometry(**changes: Any) -> dict[str, Any]:
    return {"geometry": GEOMETRY._replace(**changes)}


ERRORS = {
    "anchors of a branch missing": (
        CONFIG,
        {"anchors": {"surface": SURFACE}},
        r"anchors must name the branches \['surface', 'volume'\], got \['surface'\]",
    ),
    "anchors of another branch": (
        CONFIG,
        {"anchors": GIVEN["anchors"] | {"wake": VOLUME}},
        r"anchors must name the branches .*, got \['surface', 'volume', 'wake'\]",
    ),
    "queries of another branch": (
        CONFIG,
        {"queries": {"wake": VOLUME}},
        r"queries name the unknown branches \['wake'\]; the branches are \['surface', 'volume'\]",
    ),
    "mask of another branch": (CONFIG, {"anchor_masks": {"wake": None}}, r"anchor_masks name the unknown .*\['wake'\]"),
    "mask of numbers": (
        CONFIG,
        {"anchor_masks": {"surface": jnp.ones((BATCH, 5))}},
        r"anchor_masks\['surface'\] must be bool of shape \[2, 5\], got float32 of shape \[2, 5\]",
    ),
    "mask of another shape": (
        CONFIG,
        {"anchor_masks": {"volume": jnp.ones((BATCH, 5), bool)}},
        r"anchor_masks\['volume'\] must be bool of shape \[2, 4\], got bool of shape \[2, 5\]",
    ),
    "anchors with two axes": (
        CONFIG,
        {"anchors": {"surface": SURFACE, "volume": VOLUME[..., :2]}},
        r"anchors\['volume'\] must be float32 of shape \[batch, tokens, 3\], got float32 of shape \[2, 4, 2\]",
    ),
    "queries without a batch axis": (
        CONFIG,
        {"queries": {"surface": SURFACE[0]}},
        r"queries\['surface'\] must be .* \[batch, tokens, 3\], got float32 of shape \[5, 3\]",
    ),
    "no geometry": (
        CONFIG,
        {"geometry": None},
        r"the physics blocks \['perceiver', .*\] read a geometry, but geometry is missing",
    ),
    "geometry with two axes": (
        CONFIG,
        with_geometry(position=GEOMETRY.position[..., :2]),
        r"geometry.position must be float32 of shape \[batch, points, 3\], got float32 of shape \[2, 9, 2\]",
    ),
    "superfluous geometry": (NO_PERCEIVER, {}, "no physics block is a perceiver, but geometry is given"),
    "no condition": (CONFIG, {"condition": None}, "condition_dim=5 but condition is missing"),
    "superfluous condition": (UNCONDITIONED, {}, "condition_dim=None but condition is given"),
    "condition of another shape": (
        CONFIG,
        {"condition": jnp.zeros((BATCH, 4))},
        r"condition must be floating point of shape \[batch, 5\], got float32 of shape \[2, 4\]",
    ),
    "no features": (WITH_FEATURES, {}, "input_features_dim=3 but geometry.features are missing"),
    "superfluous features": (
        CONFIG,
        with_geometry(features=FEATURES),
        "input_features_dim=None but geometry.features are given",
    ),
    "neighbors of other supernodes": (
        CONFIG,
        with_geometry(neighbors=Neighbors(*(a[:, 1:] for a in GEOMETRY.neighbors))),
        r"geometry.neighbors.idx must be integer of shape \[2, 4, K\], got int32 of shape \[2, 3, 3\]",
    ),
    "nothing": (CONFIG, {"anchors": None, "queries": {}, "geometry": None}, "neither anchors nor queries are given"),
    "no cache": (CONFIG, {"anchors": None, "geometry": None}, "kv is None but the cache has no entry 'kv'"),
    "no cache without a perceiver": (
        NO_PERCEIVER,
        {"anchors": None, "geometry": None},
        "token group 'surface:anchors' has size None but no cache entry",
    ),
    "geometry beside the cache": (
        CONFIG,
        {"anchors": None},
        "anchors are read from the cache, and the geometry with them, but geometry is given",
    ),
    "mask beside the cache": (
        CONFIG,
        {"anchors": None, "anchor_masks": {"surface": None}, "geometry": None},
        r"anchor_masks \['surface'\] are given but the anchors are read from the cache",
    ),
    "anchors in bfloat16": (
        CONFIG,
        {"anchors": GIVEN["anchors"] | {"volume": VOLUME.astype(jnp.bfloat16)}},
        r"anchors\['volume'\] must be float32 .*, got bfloat16",
    ),
    "queries in float16": (CONFIG, {"queries": {"volume": VOLUME.astype(jnp.float16)}}, "must be float32 .*float16"),
    "queries in integers": (CONFIG, {"queries": {"volume": VOLUME.astype(jnp.int32)}}, "must be float32 .*int32"),
    "geometry in bfloat16": (
        CONFIG,
        with_geometry(position=GEOMETRY.position.astype(jnp.bfloat16)),
        "geometry.position must be float32 .*, got bfloat16",
    ),
    "condition in integers": (CONFIG, {"condition": jnp.zeros((BATCH, 5), int)}, "condition must be floating point"),
}
BATCHES = {
    "queries": {"queries": {"surface": SURFACE[:1]}},
    "anchors": {"anchors": {"surface": SURFACE, "volume": VOLUME[:1]}},
    "condition": {"condition": GIVEN["condition"][:1]},
    "geometry": {"geometry": jax.tree.map(lambda a: a[:1], GEOMETRY)},
}


@pytest.mark.parametrize("case", ERRORS)
def test_input_that_does_not_fit_is_refused(case):
    config, changes, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        shapes(config, **GIVEN | changes)


@pytest.mark.parametrize("name", BATCHES)
def test_inputs_of_different_batch_sizes_are_refused(name):
    with pytest.raises(ValueError, match=rf"all inputs must have the same batch size, got .*{name}.*: 1"):
        shapes(CONFIG, **GIVEN | BATCHES[name])


@pytest.mark.parametrize("group", ["anchors", "queries"])
def test_arrays_of_other_libraries_are_refused(group):
    message = rf"{group}\['volume'\] must be a NumPy or JAX array, got .*Tensor"
    with pytest.raises(ValueError, match=message):
        AnchoredBranchedUPT(CONFIG).apply({}, **GIVEN | {group: {"surface": SURFACE, "volume": Tensor()}})


def test_cache_of_another_batch_is_refused():
    variables = variables_of(CONFIG) | cached()[1]
    message = r"cached key of 'kv' must be float32 of shape \[3, S, 2, 12\], got float32 of shape \[2, 4, 2, 12\]"
    queries, condition = {"surface": jnp.zeros((BATCH + 1, 2, 3))}, jnp.zeros((BATCH + 1, CONDITION_DIM))
    with pytest.raises(ValueError, match=message):
        run(CONFIG, variables, queries=queries, condition=condition)


SCOPED = {"physics_blocks": ("perceiver", "self"), "layer_scale": 0.1, "eps": 1e-3, "mlp_hidden_dim": 30}


@pytest.mark.parametrize("scope", ["transformer_blocks", "all"])
def test_options_of_blocks_reach_perceivers_only_in_the_scope_of_all(scope):
    config = dataclasses.replace(
        SMALL, **SCOPED, option_scope=scope, init_weights="truncnormal002-identity", bias=False, bias_scope="all"
    )
    params = init_params(AnchoredBranchedUPT(config))
    perceiver, block, branch = params["physics_blocks_0"], params["physics_blocks_1"], config.branches[0]
    assert ("ls1" in perceiver) == (scope == "all")
    assert perceiver["mlp"]["fc1"]["kernel"].shape[1] == (30 if scope == "all" else config.mlp_ratio * config.dim)
    assert bool(perceiver["mlp"]["fc2"]["kernel"].any()) == (scope != "all")
    assert "ls1" in block
    assert block["mlp"]["fc1"]["kernel"].shape[1] == 30
    assert not block["mlp"]["fc2"]["kernel"].any()
    assert params[f"{branch}_bias"]["mlp_2"]["kernel"].any()
    assert params[f"{branch}_decoder"]["kernel"].any()
    assert "bias" not in params[f"{branch}_bias"]["mlp_2"]
    assert "bias" in params["encoder"]["message_0"]
    assert set(perceiver["norm2"]) == {"scale"}
