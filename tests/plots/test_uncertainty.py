"""Pictures of coverage and of deviations."""

import numpy as np
import pytest
from matplotlib.image import imread

from emmi_jax.plots.uncertainty import draw_coverage, draw_errors_over_deviations


@pytest.mark.parametrize("shares", [np.array([0.52, 0.88]), np.array([[0.5, 0.9], [0.6, 0.8]])])
def test_coverage_is_drawn_for_one_calibration_and_for_several(shares, tmp_path):
    path = draw_coverage(tmp_path / "a.png", [0.5, 0.9], {"cd": shares, "cl": shares}, [(0.4, 0.6), (0.8, 0.99)])
    assert np.ptp(imread(path)[..., :3]) > 0.5


def test_errors_are_drawn_over_deviations_even_where_there_are_none(tmp_path):
    rng = np.random.default_rng(0)
    deviation = rng.exponential(size=50)
    path = draw_errors_over_deviations(tmp_path / "b.png", "Cd", deviation * rng.normal(size=50), deviation)
    flat = draw_errors_over_deviations(tmp_path / "c.png", "Cd", np.zeros(3), np.zeros(3))
    assert all(np.ptp(imread(picture)[..., :3]) > 0.5 for picture in (path, flat))
