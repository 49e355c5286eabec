"""The whole AB-UPT model gives the recorded fields, with weights from every published layout."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, SupernodePoolingConfig
from emmi_jax.convert import ab_upt_from_torch, load_torch_file
from emmi_jax.ops.neighbors import Neighbors
from tests.convert.cases import golden_ab_upt_config
from tests.golden_files import FOLDER, golden_names, load_golden
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
NAMES = golden_names("ab_upt")
EMBEDDED = 1e-4  # of conditions: their angles reach 1024 pi
PATHS = {
    "anchors": ("{}_anchor_position", "anchor/{}"),
    "queries": ("query_{}_position", "query/{}", "{}_query_position"),
    "anchor_features": ("anchor_feature/{}",),
    "query_features": ("query_feature/{}",),
}


@functools.cache
def arguments(name: str) -> tuple[AbUptConfig, Any, dict[str, Any]]:
    """Configuration, variables and inputs of a recorded case."""
    golden, config = load_golden(name), golden_ab_upt_config(name)
    inputs = {key: jnp.asarray(array) for key, array in golden.inputs.items()}
    positions = {
        group: {b: inputs[path.format(b)] for b in config.branches for path in paths if path.format(b) in inputs}
        for group, paths in PATHS.items()
    }
    assert set(positions["anchors"]) == set(config.branches)
    geometry, supernodes = inputs["geometry_position"], inputs["geometry_supernode_idx"].astype(jnp.int32)
    if geometry.ndim == 2:
        geometry, supernodes = geometry[None], supernodes[None]
    condition = inputs.get("condition", inputs.get("geometry_design_parameters"))
    if config.conditioning_dims:
        condition = {name: inputs[f"condition/{name}"] for name in config.conditioning_dims}
    rest = {"geometry": Geometry(geometry, supernodes), "condition": condition}
    return config, {"params": ab_upt_from_torch(golden.params, config)}, positions | rest


def with_all_points_as_neighbors(config: SupernodePoolingConfig, geometry: Geometry) -> Geometry:
    """Every point as a candidate, under a mask of those that are neighbours."""
    points, supernodes = np.asarray(geometry.position, np.float64), np.asarray(geometry.supernode_idx)
    centers = np.take_along_axis(points, supernodes[..., None], axis=1)
    distance = np.linalg.norm(centers[:, :, None] - points[:, None], axis=-1)
    if config.k is None:
        mask = distance <= config.radius
        assert mask.sum(axis=-1).max() <= config.max_degree
    else:
        mask = distance.argsort(axis=-1, kind="stable").argsort(axis=-1) < config.k
    return geometry._replace(neighbors=Neighbors(np.broadcast_to(np.arange(points.shape[1]), mask.shape), mask))


@functools.partial(jax.jit, static_argnames=("config", "mutable"))
def run(config: AbUptConfig, variables: Any, *, mutable: tuple[str, ...] | bool = False, **inputs: Any) -> Any:
    return AnchoredBranchedUPT(config).apply(variables, mutable=mutable, **inputs)


def assert_recorded(predictions: dict[str, Any], name: str, *, queries: bool | None = None) -> None:
    """Compares all fields, or those of queries or of anchors alone."""
    recorded = {}
    for key, field in load_golden(name).outputs.items():
        # The tutorial model names a field {branch}_{group}_{field} and drops the batch axis.
        key = re.sub(r"^([a-z]+)_query_", r"query_\1_", re.sub(r"^([a-z]+)_anchor_", r"\1_", key))
        recorded[key] = field if field.ndim == 3 else field[None]
    if queries is not None:
        recorded = {key: field for key, field in recorded.items() if key.startswith("query_") == queries}
    assert recorded
    assert set(predictions) == set(recorded)
    tolerance = EMBEDDED if load_golden(name).meta.get("conditioning_dims") else FORWARD
    for key, field in recorded.items():
        assert_close(predictions[key], field, tolerance)


@pytest.mark.parametrize("implementation", ["masked", "blockwise"])
@pytest.mark.parametrize("name", NAMES)
def test_fields_are_the_recorded_ones(name, implementation):
    config, variables, inputs = arguments(name)
    config = dataclasses.replace(config, implementation=implementation)
    assert_recorded(run(config, variables, **inputs), name)


@pytest.mark.parametrize("name", NAMES)
def test_fields_from_given_neighbors_and_cached_anchors_are_the_recorded_ones(name):
    config, variables, inputs = arguments(name)
    config = dataclasses.replace(config, implementation="xla")
    geometry = with_all_points_as_neighbors(config.supernode_pooling, inputs["geometry"])
    first = inputs | {"queries": None, "query_features": None, "geometry": geometry}
    anchors, cache = run(config, variables, mutable=("cache",), **first)
    assert_recorded(anchors, name, queries=False)
    if inputs["queries"]:
        second = {name: inputs[name] for name in ("queries", "query_features", "condition")}
        assert_recorded(run(config, variables | cache, **second), name, queries=True)


def test_fields_from_the_tutorial_checkpoint_file_are_the_recorded_ones():
    pytest.importorskip("torch")
    config, _, inputs = arguments("ab_upt_tutorial_48")
    params = ab_upt_from_torch(load_torch_file(FOLDER / "ab_upt_tutorial_48.th").state_dict, config)
    config = dataclasses.replace(config, implementation="blockwise")
    assert_recorded(run(config, {"params": params}, **inputs), "ab_upt_tutorial_48")
