"""Inputs that do not fit the AB-UPT model are refused, each by one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from emmi_jax import (
    AnchoredBranchedUPT,
    SupernodePoolingConfig,
)
from emmi_jax.models.init import init_params
from emmi_jax.ops.neighbors import Neighbors
from tests.models.ab_upt_cases import (
    BATCH,
    CONDITION_DIM,
    CONFIG,
    NUM_POINTS,
    SMALL,
    cached,
    make_inputs,
    run,
    shapes,
    variables_of,
)

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
