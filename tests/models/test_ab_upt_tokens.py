"""What reaches what in the AB-UPT model: queries, anchors, branches, caches and padding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from emmi_jax import (
    AbUptConfig,
    AnchoredBranchedUPT,
    Geometry,
)
from emmi_jax.ops.neighbors import Neighbors
from tests.models.ab_upt_cases import (
    BATCH,
    CONFIG,
    FIELDS,
    FORWARD,
    KEPT,
    MASKS,
    NUM_ANCHORS,
    NUM_POINTS,
    NUM_SUPERNODES,
    SMALL,
    assert_same,
    cached,
    make_inputs,
    predict,
    predictions,
    run,
    variables_of,
)
from tests.tolerances import TOLERANCES, assert_close


def fields_of(branch: str, predicted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in predicted.items() if branch in name}


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
