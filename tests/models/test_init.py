"""The one builder of dummy inputs and initial parameters."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry
from emmi_jax.models.init import init_params

FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3}}
SIZES: dict[str, Any] = {"dim": 24, "num_heads": 2, "fields": FIELDS, "decoder_depths": {"volume": 1}}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no geometry": {"physics_blocks": ("cross",)},
    "condition and features": {"condition_dim": 5, "supernode_pooling": {"input_features_dim": 2}},
    "potentials and untied blocks": {
        "vector_potentials": {"volume": ["velocity"]},
        "physics_blocks": ("perceiver_untied", "joint_untied"),
    },
}


def model_of(name: str) -> AnchoredBranchedUPT:
    return AnchoredBranchedUPT(AbUptConfig(**SIZES | {"physics_blocks": ("perceiver", "cross")} | OPTIONS[name]))


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_are_those_of_inputs_of_ordinary_size(name: str) -> None:
    model = model_of(name)
    config = model.config
    inputs: dict[str, Any] = {"anchors": dict.fromkeys(FIELDS, jnp.zeros((2, 4, 3)))}
    inputs["queries"] = {"volume": jnp.zeros((2, 5, 3))}
    if config.has_geometry:
        features = jnp.zeros((2, 6, 2)) if config.supernode_pooling.input_features_dim else None
        inputs["geometry"] = Geometry(jnp.zeros((2, 6, 3)), jnp.zeros((2, 3), jnp.int32), features=features)
    if config.condition_dim:
        inputs["condition"] = jnp.zeros((2, config.condition_dim))
    expected = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), **inputs)["params"]
    actual = jax.eval_shape(functools.partial(init_params, model))
    assert jax.tree.map(np.shape, actual) == jax.tree.map(np.shape, expected)


def test_parameters_are_plain_arrays_that_follow_the_seed() -> None:
    model = AnchoredBranchedUPT(AbUptConfig(**SIZES | {"physics_blocks": (), "decoder_depths": {}}))
    first, again, other = (init_params(model, seed=seed) for seed in (0, 0, 1))
    leaves = jax.tree.leaves(first, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first["volume_bias"]["mlp_0"]["kernel"] != other["volume_bias"]["mlp_0"]["kernel"]).any()
