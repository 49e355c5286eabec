import numpy as np
import pytest

from emmi_jax import points
from emmi_jax.data.metrics import (
    coefficient_metrics,
    field_metrics,
    mean_interval,
    mean_metrics,
    weighted_relative_l2,
)


def test_metrics_by_hand():
    metrics = field_metrics(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[1.0, -1.0], [5.0, 0.0]]))
    expected = {"relative_l2": np.sqrt(13 / 27), "relative_l1": 5 / 7, "mae": 1.25, "max": 3.0, "r2": 1 - 13 / 8.5}
    assert metrics == pytest.approx(expected)


def test_a_zero_reference_does_not_divide():
    metrics = field_metrics(np.full((2, 2), 0.5), np.zeros((2, 2)))
    assert metrics == {"relative_l2": 1.0, "relative_l1": 2.0, "mae": 0.5, "max": 0.5, "r2": 0.0}


def test_r2_keeps_its_digits_far_from_zero():
    noise = np.random.default_rng(0).normal(size=(1000, 1))
    near, far = (field_metrics(shift + 1.1 * noise, shift + noise)["r2"] for shift in (0.0, 1e7))
    assert far == pytest.approx(near, abs=1e-6)


def test_means_are_over_cases():
    cases = [{"volume/u": {"mae": 1.0, "max": 2.0}}, {"volume/u": {"mae": 3.0, "max": 2.5}}]
    assert mean_metrics(cases) == {"volume/u": {"mae": 2.0, "max": 2.25}}


def test_metrics_of_chunks_are_those_of_the_whole(monkeypatch):
    predicted, reference = np.random.default_rng(0).normal(size=(2, 100, 3)).astype(np.float32)
    whole = field_metrics(predicted, reference)
    monkeypatch.setattr(points.row_chunks, "__defaults__", (7,))
    assert field_metrics(predicted, reference) == pytest.approx(whole)


@pytest.mark.parametrize("row", [0, 60])
def test_an_error_that_is_nan_makes_every_metric_nan(monkeypatch, row):
    monkeypatch.setattr(points.row_chunks, "__defaults__", (7,))
    predicted = np.ones((100, 2), np.float32)
    predicted[row] = np.nan
    assert np.isnan(list(field_metrics(predicted, np.zeros((100, 2))).values())).all()


def test_small_integers_do_not_overflow():
    predicted, reference = np.array([100, -100], np.int8), np.array([-100, 100], np.int8)
    assert coefficient_metrics(predicted, reference)["mae"] == 200
    assert field_metrics(predicted[:, None], reference[:, None])["max"] == 200


def test_weights_count_points_as_often_as_they_say():
    rng = np.random.default_rng(0)
    predicted, known, counts = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)), np.array([1, 3, 2, 1, 4])
    repeated = [np.repeat(values, counts, axis=0) for values in (predicted, known)]
    assert weighted_relative_l2(predicted, known, counts) == pytest.approx(field_metrics(*repeated)["relative_l2"])
    assert weighted_relative_l2(predicted, known, np.ones(5)) == pytest.approx(
        field_metrics(predicted, known)["relative_l2"]
    )


def test_the_interval_of_a_single_case_is_unknown():
    assert mean_interval([0.5], 0.95) == {"mean": 0.5, "low": None, "high": None}


def test_points_without_a_known_value_are_left_out():
    rng = np.random.default_rng(3)
    predicted, known, weights = rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), rng.uniform(1, 2, size=9)
    holes = known.copy()
    holes[[1, 4], [0, 2]] = np.nan
    rest = np.delete(np.arange(9), [1, 4])
    assert field_metrics(predicted, holes) == field_metrics(predicted[rest], known[rest])
    found = weighted_relative_l2(predicted, holes, weights)
    assert found == weighted_relative_l2(predicted[rest], known[rest], weights[rest])
