from pathlib import Path

import jax
import numpy as np
import pytest

from emmi_jax.data.ellipsoids import EllipsoidDataset, exact_points, nearest_case, sample_body
from emmi_jax.data.potential_flow import Ellipsoid, random_ellipsoids
from emmi_jax.data.samples import Sample, SampleSizes
from emmi_jax.points import Fields

SIZES = SampleSizes(
    batch_size=3,
    num_anchors=6,
    num_queries=5,
    num_test_anchors=8,
    num_geometry_points=12,
    num_supernodes=4,
    num_test_supernodes=7,
)


@pytest.fixture(scope="module")
def dataset() -> EllipsoidDataset:
    return EllipsoidDataset(SIZES, position_range=100.0, num_train_cases=10, num_test_cases=2)


def test_batches_have_the_asked_shapes(dataset):
    batch = dataset.train_batch(seed=0, step=0)
    for branch, fields in dataset.fields.items():
        for part, num_points in ((batch.anchors, 6), (batch.queries, 5)):
            assert part[branch].position.shape == (3, num_points, 3)
            assert {name: a.shape for name, a in part[branch].fields.items()} == {
                name: (3, num_points, channels) for name, channels in fields.items()
            }
    assert batch.geometry_position.shape == (3, 12, 3)
    assert batch.supernode_idx.shape == (3, 4)


def test_a_batch_depends_on_seed_and_step_alone(dataset):
    first = dataset.train_batch(seed=3, step=5)
    jax.tree.map(np.testing.assert_array_equal, first, dataset.train_batch(seed=3, step=5))
    for seed, step in ((3, 6), (4, 5)):
        other = dataset.train_batch(seed=seed, step=step)
        assert not np.any(first.anchors["volume"].position == other.anchors["volume"].position)


def test_fields_are_the_exact_flow():
    body = random_ellipsoids(1, seed=5)[0]
    points = sample_body(body, np.random.default_rng(0), 20)
    np.testing.assert_allclose(
        points["surface"].fields["pressure_coefficient"][:, 0], body.pressure_coefficient(points["surface"].position)
    )
    np.testing.assert_allclose(points["volume"].fields["velocity"], body.velocity(points["volume"].position))
    np.testing.assert_allclose(
        points["volume"].fields["pressure_coefficient"][:, 0], body.pressure_coefficient(points["volume"].position)
    )


def test_training_and_test_geometries_differ():
    dataset = EllipsoidDataset(SIZES, position_range=100.0)
    assert (len(dataset.train_bodies), len(dataset.test_bodies)) == (400, 40)
    train, test = ({tuple(body.semi_axes) for body in bodies} for bodies in (dataset.train_bodies, dataset.test_bodies))
    assert len(train) == 400
    assert not train & test


def test_no_query_is_an_anchor(dataset):
    for case in dataset.evaluation_cases():
        for branch, queries in case.sample.queries.items():
            anchors = {tuple(x) for x in case.sample.anchors[branch].position}
            assert len(anchors) == 8
            assert not anchors & {tuple(x) for x in queries.position}


def test_evaluation_cases_have_the_test_sizes_and_baselines_of_every_field(dataset):
    cases = list(dataset.evaluation_cases())
    assert len(cases) == 2
    for case in cases:
        assert case.sample.supernode_idx.shape == (7,)
        assert set(case.baselines) == {"mean_predictor", "nearest_case"}
        for prediction in case.baselines.values():
            for branch, points in case.sample.queries.items():
                assert {n: a.shape for n, a in prediction[branch].items()} == {
                    n: a.shape for n, a in points.fields.items()
                }


def test_statistics_come_from_the_training_geometries_alone():
    few, many = (
        EllipsoidDataset(SIZES, position_range=100.0, num_train_cases=10, num_test_cases=n).normalizer for n in (1, 5)
    )
    assert few == many


def test_positions_fill_the_position_range(dataset):
    batch = dataset.train_batch(seed=0, step=0)
    for points in batch.anchors.values():
        scaled = dataset.normalizer.normalize_position(points.position)
        assert scaled.min() > 0
        assert scaled.max() < 100


def test_nearest_case_is_exact_for_a_known_geometry():
    bodies = random_ellipsoids(5, seed=2)
    queries = sample_body(bodies[3], np.random.default_rng(0), 10)
    prediction = nearest_case(bodies[3], bodies, queries)
    for branch, points in queries.items():
        for name, values in points.fields.items():
            np.testing.assert_allclose(prediction[branch][name], values, rtol=1e-9, atol=1e-9)


def test_nearest_case_does_not_depend_on_the_order_of_the_axes():
    body = random_ellipsoids(1, seed=2)[0]
    order = [1, 2, 0]
    same = Ellipsoid(body.semi_axes[order], body.rotation[:, order])
    queries = sample_body(body, np.random.default_rng(0), 10)
    decoy = Ellipsoid(body.semi_axes * 1.01, body.rotation)
    prediction = nearest_case(body, [decoy, same], queries)
    np.testing.assert_allclose(prediction["volume"]["velocity"], queries["volume"].fields["velocity"], rtol=1e-8)


def test_pictures_are_drawn_from_predictions_at_queries(dataset, tmp_path: Path):
    asked = []

    def predict(sample: Sample) -> Fields:
        asked.append(sample)
        positions = {branch: points.position for branch, points in sample.queries.items()}
        return {b: points.fields for b, points in exact_points(dataset.test_bodies[0], positions).items()}

    paths = dataset.draw(predict, tmp_path)
    assert [path.name for path in paths] == ["surface_pressure.png", "volume_velocity.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert all(len(sample.anchors["surface"].position) == 8 for sample in asked)
