import json
import re
from dataclasses import replace

import pytest

from emmi_jax.jobs.datasets import default_settings
from emmi_jax.training.settings import TrainSettings, model_config

DEFAULTS = {
    "ellipsoids": default_settings(None),
    "ellipsoids without geometry": default_settings(None, geometry=False),
    "one case": default_settings("case.npz"),
}


@pytest.mark.parametrize("settings", DEFAULTS.values(), ids=DEFAULTS)
def test_settings_survive_json(settings):
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("settings", DEFAULTS.values(), ids=DEFAULTS)
def test_a_model_reads_geometry_exactly_if_batches_have_it(settings):
    branches = ["volume"] if settings.data else ["surface", "volume"]
    config = model_config(settings, {branch: {"velocity": 3} for branch in branches})
    assert config.has_geometry == (settings.num_geometry_points > 0)


def test_fields_without_divergence_are_curls_in_their_branches():
    settings = replace(DEFAULTS["ellipsoids"], divergence_free=("velocity",))
    config = model_config(settings, {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}})
    assert config.vector_potentials == {"volume": ("velocity",)}


@pytest.mark.parametrize(
    ("name", "message"),
    [("speed", "divergence_free names the unknown fields ['speed']"), ("pressure", "volume/pressure has 1 channels")],
)
def test_fields_that_cannot_be_without_divergence_are_named(name, message):
    settings = replace(DEFAULTS["one case"], divergence_free=(name,))
    with pytest.raises(ValueError, match=re.escape(message)):
        model_config(settings, {"volume": {"velocity": 3, "pressure": 1}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"batch_size": -1}, "batch_size must be an integer >= 1, got -1"),
        ({"num_queries": 1.5}, "num_queries must be an integer >= 0, got 1.5"),
        ({"sampling": "farthest"}, "sampling must be one of uniform, weighted, got 'farthest'"),
        ({"supernode_sampling": "x"}, "supernode_sampling must be one of uniform, farthest, got 'x'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"num_geometry_points": 4, "num_supernodes": 5}, "expected at most 4, got 5"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**changes)
