import numpy as np
import pytest

from emmi_jax import points
from emmi_jax.data.metrics import field_metrics


def test_metrics_by_hand():
    metrics = field_metrics(np.array([[1.0, 2.0]]), np.array([[1.0, -1.0]]))
    assert metrics == {"relative_l2": pytest.approx(3 / np.sqrt(2)), "mae": 1.5, "max": 3.0}


def test_a_zero_reference_does_not_divide():
    assert field_metrics(np.full((2, 2), 0.5), np.zeros((2, 2))) == {"relative_l2": 1.0, "mae": 0.5, "max": 0.5}


def test_metrics_of_chunks_are_those_of_the_whole(monkeypatch):
    predicted, reference = np.random.default_rng(0).normal(size=(2, 100, 3)).astype(np.float32)
    whole = field_metrics(predicted, reference)
    monkeypatch.setattr(points.row_chunks, "__defaults__", (7,))
    assert field_metrics(predicted, reference) == pytest.approx(whole)
