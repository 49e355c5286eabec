from dataclasses import replace

import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.cfd.cases import PointSet, Sample, SampleSizes
from emmi_jax.cfd.normalization import FieldScale, Normalizer
from emmi_jax.cfd.sampling import sample_points
from emmi_jax.config import SupernodePoolingConfig
from emmi_jax.inference.predict import point_names, predict_fields
from emmi_jax.models.init import init_params
from emmi_jax.training.evaluation import make_predict

SIZES = SampleSizes(
    batch_size=1,
    num_anchors=4,
    num_queries=0,
    num_test_anchors=6,
    num_geometry_points=8,
    num_supernodes=2,
    num_test_supernodes=4,
)
RNG = np.random.default_rng(0)
POINTS = {"surface": RNG.uniform(size=(20, 3)), "volume": RNG.uniform(size=(30, 3))}
ANCHORS = {"surface_anchors": RNG.uniform(size=(6, 3)), "volume_anchors": RNG.uniform(size=(6, 3))}
GEOMETRY = {"geometry": RNG.uniform(size=(8, 3))}


def build(fields: dict[str, dict[str, int]], blocks: tuple[str, ...]):
    config = AbUptConfig(
        dim=24,
        num_heads=2,
        fields=fields,
        physics_blocks=blocks,
        decoder_depths={},
        supernode_pooling=SupernodePoolingConfig(radius=None, k=2),
        init_weights="torch",
    )
    scales = {
        branch: {name: FieldScale(mean=(5.0,) * c, std=(2.0,) * c) for name, c in names.items()}
        for branch, names in fields.items()
    }
    normalizer = Normalizer(position_low=(0.0, 0.0, 0.0), position_scale=50.0, fields=scales)
    model = AnchoredBranchedUPT(config)
    return model, init_params(model, seed=0), normalizer


@pytest.fixture(scope="module")
def two_branches():
    return build({"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}}, ("perceiver", "joint"))


@pytest.fixture(scope="module")
def one_branch():
    return build({"volume": {"velocity": 3}}, ("self",))


def predict(trained, positions, **changes):
    return predict_fields(*trained, positions, **{"sizes": SIZES, "chunk_size": 7} | changes)


def test_fields_of_all_branches_come_out_in_order(two_branches):
    fields = predict(two_branches, POINTS)
    assert {name: (values.shape, values.dtype) for name, values in fields.items()} == {
        "surface_pressure": ((20, 1), np.float32),
        "volume_velocity": ((30, 3), np.float32),
        "volume_pressure": ((30, 1), np.float32),
    }


def test_given_anchors_and_geometry_give_what_evaluation_gives(two_branches):
    fields = predict(two_branches, POINTS | ANCHORS | GEOMETRY, sizes=SIZES)
    anchors = {branch: PointSet(ANCHORS[f"{branch}_anchors"], {}) for branch in POINTS}
    # Drawing all of the geometry only permutes it, so evaluation gets the same permutation.
    order = sample_points(0, GEOMETRY["geometry"], 8)
    queries = {branch: PointSet(position, {}) for branch, position in POINTS.items()}
    sample = Sample(anchors, queries, GEOMETRY["geometry"][order], np.arange(4, dtype=np.int32))
    expected = make_predict(*two_branches)(sample)
    np.testing.assert_allclose(fields["volume_velocity"], expected["volume"]["velocity"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fields["surface_pressure"], expected["surface"]["pressure"], rtol=1e-4, atol=1e-4)


def test_a_branch_without_points_needs_only_its_anchors(two_branches):
    everything = predict(two_branches, POINTS | ANCHORS | GEOMETRY)
    only_volume = predict(two_branches, {"volume": POINTS["volume"]} | ANCHORS | GEOMETRY)
    assert set(only_volume) == {"volume_velocity", "volume_pressure"}
    np.testing.assert_allclose(only_volume["volume_velocity"], everything["volume_velocity"], rtol=1e-5, atol=1e-5)


def test_other_points_to_predict_do_not_change_a_prediction(two_branches):
    fixed = ANCHORS | GEOMETRY
    one = predict(two_branches, {"volume": POINTS["volume"][:1]} | fixed)["volume_velocity"]
    np.testing.assert_allclose(one, predict(two_branches, POINTS | fixed)["volume_velocity"][:1], rtol=1e-5, atol=1e-5)


def test_a_model_of_one_branch_takes_positions_and_names_fields_alone(one_branch):
    fields = predict(one_branch, {"position": POINTS["volume"], "volume_anchors": ANCHORS["volume_anchors"]})
    assert {name: values.shape for name, values in fields.items()} == {"velocity": (30, 3)}
    assert point_names(["volume"]) == ["position", "volume_anchors", "geometry"]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({}, "expected an array 'surface' or 'volume'"),
        (ANCHORS | GEOMETRY, "expected an array 'surface' or 'volume'"),
        ({"volume": POINTS["volume"]}, "branch 'surface': expected an array 'surface_anchors', or at least 4 points"),
        (POINTS | {"surface": POINTS["surface"][:3]}, "in 'surface' to draw them from; found 3"),
    ],
)
def test_what_is_missing_is_named(two_branches, positions, message):
    with pytest.raises(ValueError, match=message):
        predict(two_branches, positions)


def test_a_run_that_draws_anchors_by_cells_needs_them_given_with_points(one_branch):
    sizes = replace(SIZES, sampling="weighted")
    with pytest.raises(ValueError, match="by the sizes of cells, which points have not: give 'volume_anchors'"):
        predict(one_branch, {"position": POINTS["volume"]}, sizes=sizes)


def test_a_model_of_one_branch_without_positions_is_refused(one_branch):
    with pytest.raises(ValueError, match="expected an array 'position'"):
        predict(one_branch, {"volume_anchors": ANCHORS["volume_anchors"]})
