import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig
from emmi_jax.config import Sampling
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.files.atomic import write_json
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.meshes.mesh import FieldSource
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import init_params
from emmi_jax.runs.directory import RunConfig, RunDirectory, aside, check_same_config

CONFIG = RunConfig(
    model=AbUptConfig(dim=12, num_heads=2, fields={"volume": {"p": 1}}, physics_blocks=("self",), decoder_depths={}),
    normalizer=Normalizer(
        position_low=(0.0,) * 3, position_scale=2.0, fields={"volume": {"p": FieldScale(mean=(1.0,), std=(2.0,))}}
    ),
    sampling=Sampling(num_anchors=4, num_queries=2, num_test_anchors=8),
    sources={"volume": {"p": {"array": "pMean", "scale": -1.0}}},
    settings={"steps": 1},
)


def test_a_run_that_exists_is_not_touched(tmp_path):
    run = RunDirectory.create(tmp_path / "runs" / "a", CONFIG)
    with pytest.raises(ValueError, match="--resume continues it"):
        RunDirectory.create(run.path, replace(CONFIG, settings={"steps": 2}))
    assert run.read_config() == CONFIG


def test_a_run_from_before_options_had_a_scope_keeps_its_model(tmp_path):
    """`max_wavelength` reached the pooling, block options reached perceivers, and `bias` attention alone."""
    options = {"physics_blocks": ("perceiver",), "max_wavelength": 50, "layer_scale": 0.1, "bias": False}
    config = replace(CONFIG, model=replace(CONFIG.model, **options), settings={"steps": 1, "model": {"bias": False}})
    values = config.to_dict()
    later = ("option_scope", "bias_scope", "norm", "eps", "qk_norm", "readout_norm", "mlp_hidden_dim")
    for name in (*later, "conditioning_dims", "geometry_conditioning_dims", "feature_dims"):
        del values["model"][name]
        values["settings"]["model"].pop(name, None)
    for name in ("max_wavelength", "message_mode", "bias"):
        del values["model"]["supernode_pooling"][name]
    write_json(tmp_path / "config.json", values)
    read = RunDirectory(tmp_path).read_config()
    model = read.model
    assert model.supernode_pooling.max_wavelength == 50
    assert (model.option_scope, model.bias_scope) == ("all", "attention")
    assert read.settings.model["bias_scope"] == "attention"
    params = jax.eval_shape(lambda: init_params(AnchoredBranchedUPT(model)))
    perceiver = params["physics_blocks_0"]
    assert {"ls1", "ls2"} <= set(perceiver)
    assert "bias" in perceiver["norm2"]
    assert "bias" in perceiver["mlp"]["fc1"]
    assert "bias" not in perceiver["attn"]["q"]
    assert "bias" in params["volume_decoder"]
    RunDirectory(tmp_path).write_config(read)
    assert RunDirectory(tmp_path).read_config() == read


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        RunDirectory.open(tmp_path)


def test_metrics_are_cut_after_the_checkpoint(tmp_path):
    run = RunDirectory.create(tmp_path / "a", CONFIG)
    run.metrics_log.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    assert [row["step"] for row in run.truncate_metrics(3)] == [1, 2, 3]
    assert run.metrics_log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_new_run_has_no_metrics(tmp_path):
    run = RunDirectory.create(tmp_path / "a", CONFIG)
    assert run.read_metrics() == run.truncate_metrics(0) == []


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        ({"settings": {"steps": 5}}, {"settings": {"steps": 6}}, r"settings\.steps = 5, now it is 6"),
        ({"a": 1, "b": 2}, {"a": 1}, "b = 2, now it is None"),
        ({"a": 1}, {"a": 1, "b": 2}, "b = None, now it is 2"),
        ({"mean": [1.0, 2.0]}, {"mean": [1.0, 2.5]}, "mean"),
    ],
)
def test_the_first_difference_of_configurations_is_named(stored, asked, message):
    with pytest.raises(ValueError, match=message):
        check_same_config(stored, asked)


def test_equal_configurations_pass():
    assert check_same_config({"a": {"b": [1]}}, {"a": {"b": [1]}}) is None


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_field_sources_come_back_from_a_run(tmp_path):
    sources = RunDirectory.create(tmp_path / "a", CONFIG).read_config().field_sources()
    assert sources == {"volume": {"p": FieldSource("pMean", -1.0)}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"model": {}}', "not the configuration of a run"),
        ('{"modle": {}}', "did you mean 'model'"),
    ],
)
def test_a_damaged_configuration_is_refused_by_name(text, message, tmp_path):
    run = RunDirectory.create(tmp_path / "a", CONFIG)
    (run.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        run.read_config()


@pytest.mark.parametrize("geometry", [None, Geometry(np.ones((5, 3)), np.array([4, 0], np.int32))])
def test_the_context_comes_back(geometry, tmp_path):
    run = RunDirectory.create(tmp_path / "a", CONFIG)
    assert run.read_context(CONFIG) is None
    run.write_context(Context({"volume": np.arange(6.0).reshape(2, 3)}, geometry))
    context = run.read_context(CONFIG)
    np.testing.assert_array_equal(context.anchors["volume"], np.arange(6.0).reshape(2, 3))
    assert (context.geometry is None) == (geometry is None)
    if geometry is not None:
        np.testing.assert_array_equal(context.geometry.supernode_idx, [4, 0])
        assert context.geometry.supernode_idx.dtype == np.int32


def test_a_run_that_cannot_be_made_whole_leaves_nothing(tmp_path):
    path = tmp_path / "runs" / "a"
    with pytest.raises(KeyboardInterrupt), RunDirectory.making(path, CONFIG):
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_what_a_killed_process_left_does_not_hinder_the_next(tmp_path):
    (left := aside(tmp_path / "a") / "checkpoints").mkdir(parents=True)
    (left.parent / "config.json").write_text("{")
    (tmp_path / "a").mkdir()
    run = RunDirectory.create(tmp_path / "a", CONFIG)
    assert run.read_config() == CONFIG
    assert {path.name for path in run.path.iterdir()} == {"config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_do_not_make_the_same_run(tmp_path):
    with RunDirectory.making(tmp_path / "a", CONFIG), pytest.raises(ValueError, match="in use by process"):
        RunDirectory.create(tmp_path / "a", CONFIG)
    assert RunDirectory.open(tmp_path / "a").read_config() == CONFIG


@pytest.mark.parametrize(
    "damage",
    [
        {"position_scale": "NaN"},
        {"position_scale": "Infinity"},
        {"position_scale": "0.0"},
        {"position_low": "[0.0, NaN, 0.0]"},
        {"position_low": "[0.0, 0.0]"},
        {"mean": "[NaN]"},
        {"mean": "[1.0, 1.0]"},
        {"std": "[0.0]"},
        {"std": "[Infinity]"},
        {"std": "[1e999]"},
        {"std": "[]"},
    ],
)
def test_scales_that_cannot_be_are_refused(damage, tmp_path):
    path = RunDirectory.create(tmp_path / "a", CONFIG).path / "config.json"
    ((name, value),) = damage.items()
    text = json.dumps(json.loads(path.read_text()))
    changed = re.sub(rf'"{name}": (\[[^\]]*\]|[\d.]+)', f'"{name}": {value}', text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(ValueError, match=r"config\.json"):
        RunDirectory(path.parent).read_config()
