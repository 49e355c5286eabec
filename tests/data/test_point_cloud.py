import jax
import numpy as np
import pytest

from emmi_jax.config import Sampling
from emmi_jax.data.point_cloud import PointCloudDataset
from emmi_jax.points import PointSet

SAMPLING = Sampling(num_anchors=6, num_queries=5, num_test_anchors=8)


def make_points(num_points: int = 100) -> PointSet:
    rng = np.random.default_rng(0)
    position = rng.normal(size=(num_points, 3))
    return PointSet(position, {"velocity": position * 2, "vorticity": rng.normal(size=(num_points, 3)) * 1e4})


def make_dataset(num_points: int = 100, sampling: Sampling = SAMPLING) -> PointCloudDataset:
    return PointCloudDataset({"volume": make_points(num_points)}, sampling)


def rows(position: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(x) for x in position.reshape(-1, 3)}


def test_a_fifth_of_the_points_is_held_out_and_none_is_lost():
    dataset = make_dataset()
    train, test = rows(dataset.train_points["volume"].position), rows(dataset.test_points["volume"].position)
    assert (len(train), len(test)) == (80, 20)
    assert train | test == rows(make_points().position)


def test_fields_stay_with_their_points():
    dataset = make_dataset()
    for points in (dataset.train_points["volume"], dataset.test_points["volume"]):
        np.testing.assert_array_equal(points.fields["velocity"], points.position * 2)


def test_test_points_are_never_trained_on_nor_anchors():
    dataset = make_dataset()
    test = rows(dataset.test_points["volume"].position)
    seen = rows(dataset.context.anchors["volume"])
    for number in range(40):
        batch = dataset.train_sample(seed=0, number=number)
        seen |= rows(batch.anchors["volume"].position) | rows(batch.queries["volume"].position)
    assert not seen & test
    assert len(seen) > 60


def test_no_point_comes_twice_in_a_draw():
    sample = make_dataset().train_sample(seed=0, number=0)
    assert len(rows(sample.anchors["volume"].position) | rows(sample.queries["volume"].position)) == 11


def test_a_sample_depends_on_seed_and_number_alone():
    first, second = make_dataset(), make_dataset()
    second.train_sample(seed=0, number=0)
    jax.tree.map(np.testing.assert_array_equal, first.train_sample(1, 2), second.train_sample(1, 2))


def test_the_test_sample_holds_every_test_point_as_a_query():
    dataset = make_dataset()
    (sample,) = dataset.test_samples()
    assert rows(sample.queries["volume"].position) == rows(dataset.test_points["volume"].position)
    np.testing.assert_array_equal(sample.anchors["volume"].position, dataset.context.anchors["volume"])
    assert len(sample.anchors["volume"].position) == 8


def test_statistics_do_not_see_the_test_points():
    points = make_points()
    dataset = make_dataset()
    held_out = np.isin(points.position[:, 0], dataset.test_points["volume"].position[:, 0])
    points.fields["velocity"][held_out] = 1e6
    other = PointCloudDataset({"volume": points}, SAMPLING)
    first, second = (d.measure().normalizer(position_range=1.0) for d in (dataset, other))
    assert first == second


@pytest.mark.parametrize("num_points", [1, 2, 13])
def test_too_few_points_for_a_step_are_refused(num_points):
    with pytest.raises(ValueError, match=f"{num_points} points are too few"):
        make_dataset(num_points)


def test_resampled_points_are_split_as_before_and_too_few_are_refused():
    sampling = Sampling(num_anchors=12, num_queries=10, num_test_anchors=8)
    resampled = make_dataset().resampled(sampling)
    jax.tree.map(
        np.testing.assert_array_equal, resampled.train_sample(1, 2), make_dataset(100, sampling).train_sample(1, 2)
    )
    with pytest.raises(ValueError, match="8 points to train on are too few for 12 anchors and 10 queries"):
        make_dataset(23).resampled(sampling)


def test_all_training_points_are_anchors_where_they_are_few():
    sampling = Sampling(num_anchors=6, num_queries=5, num_test_anchors=500)
    dataset = make_dataset(100, sampling)
    assert rows(dataset.context.anchors["volume"]) == rows(dataset.train_points["volume"].position)


CAR_SAMPLING = Sampling(
    num_anchors=6,
    num_queries=5,
    num_test_anchors=8,
    num_geometry_points=12,
    num_supernodes=3,
    num_test_supernodes=4,
)
SURFACE = np.random.default_rng(5).uniform(-1, 1, size=(40, 3))


def make_car(sampling: Sampling = CAR_SAMPLING, **changes: np.ndarray) -> PointCloudDataset:
    points = {"surface": PointSet(SURFACE, {"pressure": SURFACE[:, :1]}), "volume": make_points()}
    return PointCloudDataset(points, sampling, **changes)


def test_every_branch_is_split_and_keeps_its_own_points():
    dataset = make_car()
    assert {branch: len(points.position) for branch, points in dataset.test_points.items()} == {
        "surface": 8,
        "volume": 20,
    }
    assert rows(dataset.train_points["surface"].position) | rows(dataset.test_points["surface"].position) == rows(
        SURFACE
    )
    assert dataset.fields == {"surface": {"pressure": 1}, "volume": {"velocity": 3, "vorticity": 3}}
    batch = dataset.train_sample(0, 0)
    assert {b: p.position.shape for b, p in batch.anchors.items()} == {"surface": (6, 3), "volume": (6, 3)}
    assert rows(batch.anchors["surface"].position) <= rows(dataset.train_points["surface"].position)
    np.testing.assert_array_equal(
        batch.queries["surface"].fields["pressure"], batch.queries["surface"].position[..., :1]
    )


def test_the_geometry_is_drawn_from_the_training_surface_or_from_given_points():
    dataset = make_car()
    batch = dataset.train_sample(0, 0)
    assert batch.geometry.position.shape == (12, 3)
    assert rows(batch.geometry.position) <= rows(dataset.train_points["surface"].position)
    np.testing.assert_array_equal(batch.geometry.supernode_idx, [0, 1, 2])
    np.testing.assert_array_equal(dataset.context.geometry.supernode_idx, [0, 1, 2, 3])
    body = np.random.default_rng(6).normal(size=(30, 3))
    given = make_car(geometry=body)
    assert rows(given.train_sample(0, 0).geometry.position) <= rows(body)
    assert len(rows(given.context.geometry.position)) == 12


def test_one_box_holds_the_training_points_of_all_branches():
    dataset = make_car()
    position = np.concatenate([points.position for points in dataset.train_points.values()])
    normalizer = dataset.measure().normalizer(position_range=1000.0)
    assert normalizer.position_low == tuple(position.min(axis=0))
    assert set(normalizer.fields) == {"surface", "volume"}


def test_a_large_case_is_tested_at_some_of_its_test_points(monkeypatch):
    monkeypatch.setattr("emmi_jax.data.point_cloud.MAX_EVALUATED_POINTS", 10)
    (sample,) = make_car().test_samples()
    assert {b: len(p.position) for b, p in sample.queries.items()} == {"surface": 8, "volume": 10}


def test_too_few_points_are_refused_by_branch():
    surface = PointSet(SURFACE[:5], {"pressure": SURFACE[:5, :1]})
    with pytest.raises(ValueError, match="case: surface: 5 points are too few"):
        PointCloudDataset({"surface": surface, "volume": make_points()}, CAR_SAMPLING)
    with pytest.raises(ValueError, match="draws 12 points, found 0"):
        PointCloudDataset({"volume": make_points()}, CAR_SAMPLING)
    with pytest.raises(ValueError, match="draws 12 points, found 7"):
        make_car(geometry=SURFACE[:7])
