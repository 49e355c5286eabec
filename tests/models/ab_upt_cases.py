"""A small AB-UPT model with every kind of block, its inputs, and what it predicts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emmi_jax import (
    AbUptConfig,
    AnchoredBranchedUPT,
    Geometry,
    SupernodePoolingConfig,
)
from emmi_jax.ops.neighbors import Neighbors
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
