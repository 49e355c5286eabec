"""The surrogate: a case in physical units, what is not given stored or drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.config import Sampling, SupernodePoolingConfig
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.data.sampling import sample_points
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.models.init import init_params
from emmi_jax.points import PointSet

SAMPLING = Sampling(
    num_anchors=4, num_queries=0, num_test_anchors=6, num_geometry_points=8, num_supernodes=2, num_test_supernodes=4
)
RNG = np.random.default_rng(0)
POINTS = {"surface": RNG.uniform(size=(20, 3)), "volume": RNG.uniform(size=(30, 3))}
ANCHORS = {"surface": RNG.uniform(size=(6, 3)), "volume": RNG.uniform(size=(6, 3))}
GEOMETRY = RNG.uniform(size=(8, 3))
TWO_BRANCHES = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}}


def build(fields: dict[str, dict[str, int]], blocks: tuple[str, ...], **changes: Any) -> Surrogate:
    config = AbUptConfig(
        dim=24,
        num_heads=2,
        fields=fields,
        physics_blocks=blocks,
        decoder_depths={},
        supernode_pooling=SupernodePoolingConfig(radius=None, k=2),
        init_weights="torch",
        **changes,
    )
    scales = {
        branch: {name: FieldScale(mean=(5.0,) * c, std=(2.0,) * c) for name, c in names.items()}
        for branch, names in fields.items()
    }
    normalizer = Normalizer(position_low=(0.0, 0.0, 0.0), position_scale=50.0, fields=scales)
    model = AnchoredBranchedUPT(config)
    return Surrogate(model, init_params(model, seed=0), normalizer, SAMPLING)


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return build(TWO_BRANCHES, ("perceiver", "joint"))


def test_anchors_and_geometry_are_drawn_from_points_always_the_same(surrogate: Surrogate) -> None:
    rng = np.random.default_rng(0)
    anchors = {branch: position[sample_points(rng, position, 6)] for branch, position in POINTS.items()}
    surface = POINTS["surface"]
    geometry = Geometry(surface[sample_points(rng, surface, 8)], np.arange(4, dtype=np.int32))
    given = surrogate.encode(anchors=anchors, geometry=geometry).predict(POINTS)
    drawn = surrogate.encode(points=POINTS).predict(POINTS)
    assert {name: (values.shape, values.dtype) for name, values in drawn.items()} == {
        "surface_pressure": ((20, 1), np.float32),
        "volume_velocity": ((30, 3), np.float32),
        "volume_pressure": ((30, 1), np.float32),
    }
    for name, values in drawn.items():
        np.testing.assert_array_equal(values, given[name])


def test_what_is_not_given_comes_from_the_context(surrogate: Surrogate) -> None:
    geometry = Geometry(GEOMETRY, np.arange(4, dtype=np.int32))
    stored = replace(surrogate, context=Context(ANCHORS, geometry))
    expected = surrogate.encode(anchors=ANCHORS, geometry=geometry).predict(POINTS)
    np.testing.assert_array_equal(stored.encode().predict(POINTS)["volume_velocity"], expected["volume_velocity"])
    other = {"volume": ANCHORS["volume"][::-1] + 0.1}
    assert not np.allclose(stored.encode(anchors=other).predict(POINTS)["volume_velocity"], expected["volume_velocity"])


def test_other_queries_do_not_change_a_prediction(surrogate: Surrogate) -> None:
    encoded = surrogate.encode(anchors=ANCHORS, geometry=GEOMETRY)
    one = encoded.predict({"volume": POINTS["volume"][:1]})["volume_velocity"]
    np.testing.assert_allclose(one, encoded.predict(POINTS)["volume_velocity"][:1], rtol=1e-5, atol=1e-5)


def test_streamed_chunks_are_the_prediction(surrogate: Surrogate) -> None:
    encoded = surrogate.encode(anchors=ANCHORS, geometry=GEOMETRY)
    chunks = list(encoded.stream({"volume": POINTS["volume"]}, chunk_size=7))
    velocity = np.concatenate([chunk.fields["velocity"] for chunk in chunks])
    np.testing.assert_allclose(velocity, encoded.predict(POINTS)["volume_velocity"], rtol=1e-5, atol=1e-5)


def test_anchors_are_drawn_by_cell_size_from_a_run_that_drew_them_so() -> None:
    surrogate = build({"volume": {"velocity": 3}}, ("self",))
    weighted = replace(surrogate, sampling=replace(SAMPLING, method="weighted"))
    position, sizes = POINTS["volume"], np.linspace(0.0, 1.0, 30)
    idx = sample_points(np.random.default_rng(0), position, 6, method="weighted", weights=sizes)
    expected = surrogate.encode(anchors={"volume": position[idx]}).predict({"volume": position})
    found = weighted.encode(points={"volume": PointSet(position, {}, sizes)}).predict({"volume": position})
    np.testing.assert_array_equal(found["volume_velocity"], expected["volume_velocity"])
    with pytest.raises(ValueError, match="the points have no cell sizes: pass the anchors instead"):
        weighted.encode(points={"volume": position})


def test_a_condition_may_be_a_list_and_is_remembered() -> None:
    surrogate = build({"volume": {"velocity": 3}}, ("self",), condition_dim=2)
    surrogate = replace(surrogate, params=_randomized(surrogate.params))
    anchors, queries = {"volume": ANCHORS["volume"]}, {"volume": POINTS["volume"]}
    first, second = (
        surrogate.encode(anchors=anchors, condition=condition).predict(queries)["volume_velocity"]
        for condition in ([1, 2], np.array([1.0, 2.5], np.float32))
    )
    assert np.abs(first - second).max() > 1e-4
    with pytest.raises(ValueError, match="condition_dim=2 but condition is missing"):
        surrogate.encode(anchors=anchors)
    with pytest.raises(ValueError, match=r"condition must hold finite numbers, got \[1\.0, nan\]"):
        surrogate.encode(anchors=anchors, condition=[1.0, np.nan])


def _randomized(params: Any) -> Any:
    import jax

    rng = np.random.default_rng(3)
    return jax.tree.map(lambda a: np.asarray(a) + 0.1 * rng.standard_normal(a.shape).astype(np.float32), params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no anchors for the branch 'surface': give them, or points"),
        ({"points": {"volume": POINTS["volume"]}}, "no anchors for the branch 'surface'"),
        ({"points": POINTS | {"surface": POINTS["surface"][:0]}}, "no anchors for the branch 'surface'"),
        ({"anchors": ANCHORS | {"wing": GEOMETRY}}, r"unknown branches \['wing'\]"),
        ({"points": {"wing": GEOMETRY}}, r"unknown branches \['wing'\]"),
        ({"points": {"volume": [[0.0, 0.0, 0.0]]}}, "points of 'volume' must be an array"),
        ({"anchors": ANCHORS, "geometry": Geometry(GEOMETRY, [0, 8])}, r"must lie in \[0, 8\).* got 8"),
        ({"anchors": ANCHORS, "geometry": Geometry(GEOMETRY, [0, -1])}, r"must lie in \[0, 8\).* got -1"),
        ({"anchors": ANCHORS, "geometry": Geometry(GEOMETRY, [0.5])}, "supernode_idx must be integer"),
        ({"anchors": ANCHORS, "geometry": GEOMETRY[:, :2]}, r"float32, float64 or integer arrays of shape"),
    ],
)
def test_what_is_missing_or_wrong_is_named(surrogate: Surrogate, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surrogate.encode(**given)


def test_a_geometry_is_refused_by_a_model_without_a_geometry_branch() -> None:
    surrogate = build({"volume": {"velocity": 3}}, ("self",))
    with pytest.raises(ValueError, match="the model has no geometry branch"):
        surrogate.encode(anchors={"volume": ANCHORS["volume"]}, geometry=GEOMETRY)


def test_a_normalizer_with_another_number_of_channels_is_refused(surrogate: Surrogate) -> None:
    scales = {**surrogate.normalizer.fields, "surface": {"pressure": FieldScale(mean=(0.0, 0.0), std=(1.0, 1.0))}}
    with pytest.raises(ValueError, match="surface/pressure have 2 channels, the data have 1"):
        replace(surrogate, normalizer=replace(surrogate.normalizer, fields=scales))
