"""One measured car, where the file is at hand."""

import json
from pathlib import Path

import pytest

from tests.jobs.tiny_runs import run, tiny_settings

CAR = Path(__file__).parents[3] / "shared" / "data" / "drivaerml_run_11_volume.npz"


@pytest.mark.skipif(not CAR.is_file(), reason="the file of the car is not here")
def test_a_few_steps_on_a_real_car_learn_its_velocity(tmp_path):
    settings = tiny_settings(CAR, steps=40, num_anchors=64, num_queries=192, num_test_anchors=128, checkpoint_every=100)
    _, printed = run(settings, tmp_path / "car")
    assert "107314 points to train on, 26828 to test on" in printed
    errors = json.loads((tmp_path / "car" / "metrics.json").read_text())["test"]
    assert set(errors) == {"volume/velocity", "volume/vorticity", "volume/total_pressure_coefficient"}
    for row in errors.values():
        assert row["nearest_neighbors"] < row["mean_predictor"]
    assert errors["volume/velocity"]["relative_l2"] < errors["volume/velocity"]["mean_predictor"]
