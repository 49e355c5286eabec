"""Every option of the reference, of its main and of release 2026.4, gives the same fields wherever a model runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, SupernodePoolingConfig, encode, predict
from emmi_jax.config import Sampling
from emmi_jax.config.model import BlockConfig, InputConfig
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.deploy import load
from emmi_jax.inference.exporting import export_surrogate
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.models.init import init_params
from tests.tolerances import TOLERANCES, assert_close

FORWARD, GRADIENT = TOLERANCES["float32"]
CONFIG = AbUptConfig(
    dim=24,
    num_heads=2,
    fields={"surface": {"pressure": 1}, "volume": {"velocity": 3}},
    physics_blocks=("perceiver", "cross"),
    decoder_depths={"volume": 1},
    supernode_pooling=SupernodePoolingConfig(radius=None, k=3, mode="absrelpos", message_mode="linear", bias=False),
    norm="rms",
    qk_norm=True,
    bias=False,
    eps=1e-5,
    layer_scale=0.5,
    mlp_hidden_dim=20,
    readout_norm=True,
    conditioning_dims={"inflow": 1, "design": 2},
    geometry_conditioning_dims={"design": 2},
    feature_dims={"volume": 2},
    implementation="xla",
)
RELEASE = AbUptConfig(
    dim=24,
    num_heads=2,
    fields={"surface": {"pressure": 1}, "volume": {"velocity": 3}},
    physics_blocks=("perceiver_untied", "joint_untied"),
    decoder_depths={"volume": 1},
    supernode_pooling=SupernodePoolingConfig(
        radius=3.0,
        max_degree=4,
        mode="relpos",
        message_mode="identity",
        aggregation="sum",
        readd_supernode_pos=False,
        input_features_dim=2,
        max_wavelength=300,
    ),
    qk_norm="geometry",
    bias=False,
    bias_scope="transformer_blocks",
    option_scope="all",
    max_wavelength=400,
    condition_dim=3,
    feature_dims={"surface": 1},
    implementation="xla",
)
PLAIN = AbUptConfig(dim=12, num_heads=1)
CONFIGS = {"main": CONFIG, "release": RELEASE}


def make_params(config: AbUptConfig) -> Any:
    """Random parameters: zero modulations would hide the conditions."""
    shapes = jax.eval_shape(lambda: init_params(AnchoredBranchedUPT(config)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def make_inputs(config: AbUptConfig = CONFIG) -> dict[str, Any]:
    """The arguments of a call for one case, without the batch axis."""
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    anchors = {"surface": 5 * normal(6, 3), "volume": 5 * normal(5, 3)}
    queries = {"surface": 5 * normal(4, 3), "volume": 5 * normal(7, 3)}
    geometry = Geometry(normal(9, 3), np.arange(4, dtype=np.int32))
    if config.conditioning_dims is None:
        condition: Any = normal(3)
    else:
        condition = {"inflow": normal(1), "design": normal(2)}
    if channels := config.supernode_pooling.input_features_dim:
        geometry = geometry._replace(features=normal(9, channels))
    return {
        "anchors": anchors,
        "queries": queries,
        "geometry": geometry,
        "condition": condition,
        "anchor_features": {b: normal(len(anchors[b]), size) for b, size in config.feature_dims.items()},
        "query_features": {b: normal(len(queries[b]), size) for b, size in config.feature_dims.items()},
    }


def call(config: AbUptConfig, *, of: AbUptConfig = CONFIG, **inputs: Any) -> dict[str, jax.Array]:
    """The fields of one case, with the parameters of another configuration of the same model."""
    batched = jax.tree.map(lambda leaf: leaf[None], inputs)
    fields = jax.jit(AnchoredBranchedUPT(config).apply)({"params": make_params(of)}, **batched)
    return {name: field[0] for name, field in fields.items()}


@functools.cache
def expected_fields(name: str) -> dict[str, jax.Array]:
    """The fields at anchors and queries together, compiled once."""
    return call(CONFIGS[name], of=CONFIGS[name], **make_inputs(CONFIGS[name]))


@pytest.mark.parametrize("kind", [BlockConfig, InputConfig, SupernodePoolingConfig])
def test_an_option_that_is_new_has_a_value_of_its_own_in_one_of_the_configurations(kind):
    given = [c.supernode_pooling if kind is SupernodePoolingConfig else c for c in (PLAIN, *CONFIGS.values())]
    plain, *others = given
    for name in kind.__annotations__:
        assert any(getattr(other, name) != getattr(plain, name) for other in others), name


def in_physical_units(name: str) -> Surrogate:
    """A surrogate whose scales are all 1."""
    config = CONFIGS[name]
    scales = {
        b: {n: FieldScale(mean=(0.0,) * c, std=(1.0,) * c) for n, c in of.items()} for b, of in config.fields.items()
    }
    features = {
        part: {"given": FieldScale(mean=(0.0,) * size, std=(1.0,) * size)}
        for part, size in config.input_features.items()
    }
    normalizer = Normalizer(position_low=(0.0,) * 3, position_scale=1.0, fields=scales, features=features)
    sampling = Sampling(
        num_anchors=6, num_queries=4, num_test_anchors=6, num_geometry_points=9, num_supernodes=4, num_test_supernodes=4
    )
    return Surrogate(AnchoredBranchedUPT(config), make_params(config), normalizer, sampling)


def implementation(kind: str) -> Callable[[str, Path], dict[str, Any]]:
    def run(name: str, folder: Path) -> dict[str, Any]:
        config = dataclasses.replace(CONFIGS[name], implementation=kind, remat=kind == "blockwise")
        return call(config, of=CONFIGS[name], **make_inputs(CONFIGS[name]))

    return run


def streamed(name: str, folder: Path) -> dict[str, Any]:
    """Queries in chunks, from cached anchors."""
    inputs, variables = make_inputs(CONFIGS[name]), {"params": make_params(CONFIGS[name])}
    queries, features = inputs.pop("queries"), inputs.pop("query_features")
    model = AnchoredBranchedUPT(CONFIGS[name])
    cache = encode(model, variables, **inputs)
    options = {"condition": inputs["condition"], "query_features": features, "chunk_size": 3}
    fields = predict(model, variables, cache, queries, **options)
    return {f"query_{field}": values for field, values in fields.items()}


def exported(name: str, folder: Path) -> dict[str, Any]:
    """From a file, without the package."""
    export_surrogate(in_physical_units(name), folder / "model.emmi")
    inputs = make_inputs(CONFIGS[name])
    queries, features = inputs.pop("queries"), inputs.pop("query_features")
    encoded = load(folder / "model.emmi").encode(**inputs)
    return {f"query_{f}": values for f, values in encoded.predict(queries, query_features=features).items()}


PLACES = {
    "masked": implementation("masked"),
    "blockwise, recomputed": implementation("blockwise"),
    "cached and streamed": streamed,
    "exported": exported,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CONFIGS)
def test_fields_are_the_same_in_every_place(name, place, tmp_path):
    fields = PLACES[place](name, tmp_path)
    assert {name for name in expected_fields(name) if name.startswith("query_")} <= set(fields)
    for field, values in fields.items():
        assert_close(values, expected_fields(name)[field], FORWARD)


def test_what_is_streamed_must_fit_what_was_encoded():
    inputs, model, variables = make_inputs(), AnchoredBranchedUPT(CONFIG), {"params": make_params(CONFIG)}
    queries, features = inputs.pop("queries"), inputs.pop("query_features")
    cache = encode(model, variables, **inputs)
    options = {"condition": inputs["condition"], "query_features": features, "chunk_size": 3}
    zeros, wide = jax.tree.map(np.zeros_like, options["condition"]), {"volume": np.zeros((7, 3), np.float32)}
    with pytest.raises(ValueError, match="the cache was encoded with another condition"):
        predict(model, variables, cache, queries, **options | {"condition": zeros})
    with pytest.raises(ValueError, match=r"features of the query volume must be numbers of shape \[3, 2\]"):
        predict(model, variables, cache, queries, **options | {"query_features": wide})


def test_an_exported_model_names_the_conditions_that_it_lacks(tmp_path):
    export_surrogate(in_physical_units("main"), tmp_path / "model.emmi")
    inputs = {name: value for name, value in make_inputs().items() if not name.startswith("quer")}
    with pytest.raises(ValueError, match=r"the model takes the conditions \['design', 'inflow'\], got \['design'\]"):
        load(tmp_path / "model.emmi").encode(**inputs | {"condition": {"design": np.zeros(2)}})


@pytest.mark.parametrize("without", [(), ("anchor_features",), ("query_features",)])
def test_curls_with_features_equal_those_of_queries_in_the_same_places(without):
    config = dataclasses.replace(CONFIG, vector_potentials={"volume": ("velocity",)})
    inputs = {name: value for name, value in make_inputs().items() if name not in without}
    fields = call(config, **inputs)
    # As the curl of what the network predicts, by finite differences of one query.
    step = 1e-2
    jacobian = []
    for axis in range(3):
        sides = []
        for sign in (1, -1):
            there = inputs["queries"]["volume"] + sign * step * np.eye(3, dtype=np.float32)[axis]
            moved = {**inputs["queries"], "volume": there}
            sides.append(np.asarray(call(CONFIG, **inputs | {"queries": moved})["query_volume_velocity"], np.float64))
        jacobian.append((sides[0] - sides[1]) / (2 * step))
    (_, xy, xz), (yx, _, yz), (zx, zy, _) = (np.moveaxis(part, -1, 0) for part in jacobian)
    assert_close(fields["query_volume_velocity"], np.stack([yz - zy, zx - xz, xy - yx], axis=-1), 2e-2)
    assert_close(fields["surface_pressure"], call(CONFIG, **inputs)["surface_pressure"], FORWARD)


def test_gradients_reach_every_named_condition_and_feature():
    inputs = jax.tree.map(lambda leaf: leaf[None], make_inputs())
    geometry = inputs.pop("geometry")
    model, params = AnchoredBranchedUPT(CONFIG), make_params(CONFIG)

    @jax.jit
    def gradient(inputs: Any) -> Any:
        def total(inputs: Any) -> jax.Array:
            return sum(field.sum() for field in model.apply({"params": params}, **inputs, geometry=geometry).values())

        return jax.grad(total)(inputs)

    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient(inputs))[0]:
        assert np.abs(leaf).max() > 0, path


def test_tokens_without_features_differ_from_tokens_with_features_of_zero():
    inputs = make_inputs()
    zeros = jax.tree.map(np.zeros_like, inputs["query_features"])
    biased = dataclasses.replace(CONFIG, bias=True)  # the biases of the features' MLP tell them apart
    model = AnchoredBranchedUPT(biased)
    variables = {"params": make_params(biased)}
    batched = jax.tree.map(lambda leaf: leaf[None], inputs)
    apply = jax.jit(model.apply)
    with_zeros = apply(variables, **batched | {"query_features": jax.tree.map(lambda leaf: leaf[None], zeros)})
    without = apply(variables, **batched | {"query_features": None})
    assert not np.allclose(with_zeros["query_volume_velocity"], without["query_volume_velocity"])
    np.testing.assert_allclose(with_zeros["volume_velocity"], without["volume_velocity"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition": None}, r"condition must name \['design', 'inflow'\], as conditioning_dims do, got 'NoneType'"),
        ({"condition": {"design": np.zeros((1, 2), np.float32)}}, r"got \['design'\]"),
        ({"query_features": {"surface": np.zeros((1, 4, 2), np.float32)}}, "which is not in feature_dims"),
        ({"queries": None}, "query_features name branch 'volume', but there are no positions of such tokens"),
    ],
)
def test_conditions_and_features_that_do_not_fit_are_refused(changes, message):
    batched = jax.tree.map(lambda leaf: leaf[None], make_inputs())
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: AnchoredBranchedUPT(CONFIG).apply({"params": make_params(CONFIG)}, **batched | changes))
