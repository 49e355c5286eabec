from pathlib import Path

import jax
import numpy as np
import pytest

from emmi_jax.cfd.cases import Fields, PointSet, Sample, SampleSizes
from emmi_jax.cfd.point_cloud import PointCloudDataset

SIZES = SampleSizes(batch_size=2, num_anchors=6, num_queries=5, num_test_anchors=8)


def make_points(num_points: int = 100) -> PointSet:
    rng = np.random.default_rng(0)
    position = rng.normal(size=(num_points, 3))
    return PointSet(position, {"velocity": position * 2, "vorticity": rng.normal(size=(num_points, 3)) * 1e4})


def make_dataset(num_points: int = 100, sizes: SampleSizes = SIZES) -> PointCloudDataset:
    return PointCloudDataset(make_points(num_points), sizes, position_range=1000.0)


def rows(position: np.ndarray) -> set[tuple[float, ...]]:
    return {tuple(x) for x in position.reshape(-1, 3)}


def test_a_fifth_of_the_points_is_held_out_and_none_is_lost():
    dataset = make_dataset()
    train, test = rows(dataset.train_points.position), rows(dataset.test_points.position)
    assert (len(train), len(test)) == (80, 20)
    assert train | test == rows(make_points().position)


def test_fields_stay_with_their_points():
    dataset = make_dataset()
    for points in (dataset.train_points, dataset.test_points):
        np.testing.assert_array_equal(points.fields["velocity"], points.position * 2)


def test_test_points_are_never_trained_on_nor_anchors():
    dataset = make_dataset()
    test = rows(dataset.test_points.position)
    seen = rows(dataset.fixed_case.anchors["volume"].position)
    for step in range(20):
        batch = dataset.train_batch(seed=0, step=step)
        seen |= rows(batch.anchors["volume"].position) | rows(batch.queries["volume"].position)
    assert not seen & test
    assert len(seen) > 60


def test_no_point_comes_twice_in_a_draw():
    batch = make_dataset().train_batch(seed=0, step=0)
    for anchors, queries in zip(batch.anchors["volume"].position, batch.queries["volume"].position, strict=True):
        assert len(rows(anchors) | rows(queries)) == 11


def test_a_batch_depends_on_seed_and_step_alone():
    first, second = make_dataset(), make_dataset()
    second.train_batch(seed=0, step=0)
    jax.tree.map(np.testing.assert_array_equal, first.train_batch(1, 2), second.train_batch(1, 2))


def test_the_case_to_evaluate_holds_every_test_point_as_a_query():
    dataset = make_dataset()
    (case,) = dataset.evaluation_cases()
    assert rows(case.sample.queries["volume"].position) == rows(dataset.test_points.position)
    assert len(case.sample.anchors["volume"].position) == 8
    assert set(case.baselines) == {"mean_predictor", "nearest_neighbors"}


def test_vorticity_alone_is_log_scaled():
    scales = make_dataset().normalizer.fields["volume"]
    assert {name: scale.log_scale for name, scale in scales.items()} == {"velocity": False, "vorticity": True}


def test_a_field_without_divergence_is_not_log_scaled_and_has_one_deviation():
    dataset = PointCloudDataset(make_points(), SIZES, position_range=1000.0, divergence_free=("vorticity",))
    scales = dataset.normalizer.fields["volume"]
    assert not scales["vorticity"].log_scale
    assert {name: len(set(scale.std)) for name, scale in scales.items()} == {"velocity": 3, "vorticity": 1}


def test_statistics_do_not_see_the_test_points():
    points = make_points()
    dataset = make_dataset()
    held_out = np.isin(points.position[:, 0], dataset.test_points.position[:, 0])
    points.fields["velocity"][held_out] = 1e6
    other = PointCloudDataset(points, SIZES, position_range=1000.0)
    assert other.normalizer == dataset.normalizer


@pytest.mark.parametrize("num_points", [1, 2, 13])
def test_too_few_points_for_a_step_are_refused(num_points):
    with pytest.raises(ValueError, match=f"{num_points} points are too few"):
        make_dataset(num_points)


def test_all_training_points_are_anchors_where_they_are_few():
    sizes = SampleSizes(batch_size=1, num_anchors=6, num_queries=5, num_test_anchors=500)
    dataset = make_dataset(100, sizes)
    assert rows(dataset.fixed_case.anchors["volume"].position) == rows(dataset.train_points.position)


def test_a_picture_is_drawn_of_every_field(tmp_path: Path):
    dataset = make_dataset()

    def predict(sample: Sample) -> Fields:
        return {
            "volume": {name: np.zeros((len(sample.queries["volume"].position), 3)) for name in dataset.fields["volume"]}
        }

    paths = dataset.draw(predict, tmp_path)
    assert [path.name for path in paths] == ["volume_velocity.png", "volume_vorticity.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
