import jax
import numpy as np
import pytest

from emmi_jax.config import Sampling
from emmi_jax.data.ellipsoids import EllipsoidDataset, sample_body
from emmi_jax.data.potential_flow import random_ellipsoids

SAMPLING = Sampling(
    num_anchors=6,
    num_queries=5,
    num_test_anchors=8,
    num_geometry_points=12,
    num_supernodes=4,
    num_test_supernodes=7,
)


@pytest.fixture(scope="module")
def dataset() -> EllipsoidDataset:
    return EllipsoidDataset(SAMPLING, num_train_cases=10, num_test_cases=2)


def test_samples_have_the_asked_shapes(dataset):
    batch = dataset.train_sample(seed=0, number=0)
    for branch, fields in dataset.fields.items():
        for part, num_points in ((batch.anchors, 6), (batch.queries, 5)):
            assert part[branch].position.shape == (num_points, 3)
            assert {name: a.shape for name, a in part[branch].fields.items()} == {
                name: (num_points, channels) for name, channels in fields.items()
            }
    assert batch.geometry.position.shape == (12, 3)
    assert batch.geometry.supernode_idx.shape == (4,)


def test_a_sample_depends_on_seed_and_number_alone(dataset):
    first = dataset.train_sample(seed=3, number=5)
    jax.tree.map(np.testing.assert_array_equal, first, dataset.train_sample(seed=3, number=5))
    for seed, number in ((3, 6), (4, 5)):
        other = dataset.train_sample(seed=seed, number=number)
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
    dataset = EllipsoidDataset(SAMPLING)
    assert (len(dataset.train_bodies), len(dataset.test_bodies)) == (400, 40)
    train, test = ({tuple(body.semi_axes) for body in bodies} for bodies in (dataset.train_bodies, dataset.test_bodies))
    assert len(train) == 400
    assert not train & test


def test_no_query_is_an_anchor(dataset):
    for sample in dataset.test_samples():
        for branch, queries in sample.queries.items():
            anchors = {tuple(x) for x in sample.anchors[branch].position}
            assert len(anchors) == 8
            assert not anchors & {tuple(x) for x in queries.position}


def test_test_samples_have_the_test_sizes(dataset):
    samples = list(dataset.test_samples())
    assert len(samples) == 2
    for sample in samples:
        assert sample.geometry.supernode_idx.shape == (7,)
        assert {len(points.position) for points in sample.anchors.values()} == {8}


def test_statistics_come_from_the_training_geometries_alone():
    few, many = (EllipsoidDataset(SAMPLING, num_train_cases=10, num_test_cases=n).measure() for n in (1, 5))
    assert few.normalizer(position_range=1.0) == many.normalizer(position_range=1.0)


def test_positions_fill_the_position_range(dataset):
    normalizer = dataset.measure().normalizer(position_range=100.0)
    assert (normalizer.position_low, normalizer.position_high) == ((-4.8,) * 3, (4.8,) * 3)
    for points in dataset.train_sample(seed=0, number=0).anchors.values():
        scaled = normalizer.normalize_position(points.position)
        assert scaled.min() > 0
        assert scaled.max() < 100
