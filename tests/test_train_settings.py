import json
import re
from dataclasses import replace

import jax
import pytest

from emmi_jax.config import TrainSettings
from emmi_jax.training.plan import default_settings
from emmi_jax.training.settings import model_config

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
    assert config.has_geometry == (settings.sampling.num_geometry_points > 0)


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
        ({"dense_fraction": 1.5}, "dense_fraction must be a number from 0 to 1, got 1.5"),
        ({"batch_size": -1}, "batch_size must be an integer >= 1, got -1"),
        ({"sampling.num_queries": 1.5}, "num_queries must be an integer >= 0, got 1.5"),
        ({"sampling.method": "farthest"}, "method must be one of uniform, weighted, got 'farthest'"),
        ({"sampling.supernode_method": "x"}, "supernode_method must be one of uniform, farthest, got 'x'"),
        ({"sampling": {"num_geometry_points": 4, "num_supernodes": 5}}, "expected at most 4, got 5"),
        ({"optimizer.learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"optimizer.learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"optimizer.weight_decay": -1}, "weight_decay must be a number from 0 to inf, got -1"),
        ({"optimizer.ema_decay": 1.5}, "ema_decay must be a number from 0 to 0.999999, got 1.5"),
        ({"optimizer.b1": True}, "b1 must be a number from 0 to 0.999999, got True"),
        ({"optimizer.name": "sgd"}, "name of the optimizer must be one of adamw, lion, muon, got 'sgd'"),
        ({"optimizer.schedule": "step"}, "schedule must be one of cosine, linear, constant, got 'step'"),
        ({"optimizer.accumulation": 4}, "batch_size must be a multiple of accumulation, got 2 and 4"),
        ({"optimizer.accumulation.of": 4}, "'optimizer.accumulation.of': 'accumulation' has no keys"),
        ({"optimizer": 3}, "optimizer must be a mapping, got 3"),
        ({"optimiser": {}}, "unknown key 'optimiser' for TrainSettings; did you mean 'optimizer'?"),
        (
            {"optimizer.learning_rat": 1},
            "unknown key 'learning_rat' for OptimizerSettings; did you mean 'learning_rate'?",
        ),
        ({"model.dims": 96}, "unknown key 'dims' for model; did you mean 'dim'?"),
        ({"model.fields": {}}, "unknown key 'fields' for model"),
        ({"model.dtype": "float16"}, "gradients underflow in float16: expected dtype auto, bfloat16 or float32"),
        ({"model.num_position_axes": 2}, "unknown key 'num_position_axes' for model"),
        ({"model.physics_blocks": []}, "physics_blocks must name at least one block, got ()"),
        ({"optimizer.b1": None}, "b1 must be a number from 0 to 0.999999, got None"),
        ({"optimizer.b2": 1}, "b2 must be a number from 0 to 0.999999, got 1"),
        ({"optimizer.ema_decay": 0.99999999}, "ema_decay must be a number from 0 to 0.999999, got 0.99999999"),
        ({"optimizer.learning_rate": 10**400}, "learning_rate must be positive, got 1000"),
        ({"steps": 10**12}, "steps must be at most 100000000, got 1000000000000"),
        ({"data": 3}, "data must be a path or none, got 3"),
        ({"divergence_free": "pressure"}, "divergence_free must be a sequence of names, got 'pressure'"),
        (
            {"loss_weights": {"volume/p": -1.0}},
            "the loss weight of 'volume/p' must be a number from 0 to inf, got -1.0",
        ),
    ],
)
def test_unusable_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainSettings().updated(changes)


def test_a_change_keeps_what_it_does_not_name():
    before = DEFAULTS["ellipsoids"]
    after = before.updated({"model": {"dim": 48}, "sampling.num_anchors": 7, "model.supernode_pooling.k": 3})
    expected = before.to_dict()
    expected["model"] |= {"dim": 48, "supernode_pooling": {"radius": None, "k": 3}}
    expected["sampling"]["num_anchors"] = 7
    assert after.to_dict() == expected
    radius = before.updated({"model": {"supernode_pooling": {"radius": 0.5}}})
    assert radius.model["supernode_pooling"] == {"radius": 0.5}


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_the_dtype_is_that_of_the_device_unless_it_is_given(platform, dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    fields = {"surface": {"pressure": 1}, "volume": {"velocity": 3}}
    config = model_config(TrainSettings(), fields)
    assert (config.dtype.name, config.param_dtype.name) == (dtype, "float32")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[dtype]
    assert model_config(TrainSettings(model={"dtype": other}), fields).dtype.name == other


def test_changes_that_fit_together_are_judged_together():
    settings = TrainSettings().updated({"optimizer": {"accumulation": 4}}, {"batch_size": 8})
    assert (settings.batch_size, settings.optimizer.accumulation) == (8, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.physics_blocks": ("perceiver", "self")}, "perceiver blocks read the geometry points"),
        ({"sampling.num_geometry_points": 8}, "and num_geometry_points 8"),
        ({"loss_weights": {"volume/velocity": 0.0}}, "loss_weights are zero for all fields"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes, message):
    settings = TrainSettings(model={"physics_blocks": ("self",)}).updated(changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        model_config(settings, {"volume": {"velocity": 3}})


def test_weights_of_unknown_fields_are_refused():
    with pytest.raises(ValueError, match=re.escape("loss_weights names the unknown fields ['volume/speed']")):
        model_config(TrainSettings(loss_weights={"volume/speed": 2.0}), {"volume": {"velocity": 3}})
