"""A run that depends on conditions, through the commands and the exported file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import emmi_jax
from emmi_jax import deploy
from emmi_jax.cli import main
from emmi_jax.data.potential_flow import random_ellipsoids
from emmi_jax.data.samples import Context
from emmi_jax.inference.streaming import _query
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.runs.directory import RunDirectory
from tests.convert.cases import golden_ab_upt_config
from tests.data.case_folders import write_case_folder
from tests.golden_files import load_golden
from tests.jobs.tiny_runs import run, tiny_settings
from tests.tolerances import TOLERANCES, assert_close

EMBEDDED = 1e-4
"""The frequencies of named conditions are exact to this, see `tests/parity`."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the built-in data with the direction of the stream as condition."""
    path = tmp_path_factory.mktemp("runs") / "stream"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emmi_jax.data.ellipsoids.NUM_TEST_QUERIES", 12)
        run(tiny_settings(None, stream_angle=15.0, steps=4, learning_rate=0.05), path)
    return path


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    body, rng = random_ellipsoids(1, seed=5)[0], np.random.default_rng(0)
    path = tmp_path_factory.mktemp("points") / "points.npz"
    np.savez(path, surface=body.sample_surface(rng, 30), volume=body.sample_volume(rng, 30))
    return path


def predict(run: Path, points: Path, out: Path, *options: str) -> dict[str, np.ndarray]:
    assert main(["predict", str(run), "--points", str(points), "--out", str(out), *options]) == 0
    return dict(np.load(out))


def test_the_run_keeps_names_units_ranges_and_scales(trained):
    config = RunDirectory.open(trained).read_config()
    assert config.model.condition_dim == 2
    kept = {name: (c.unit, c.kind, c.low, c.high) for name, c in config.normalizer.conditions.items()}
    assert kept == {"pitch": ("deg", "angle", -15, 15), "yaw": ("deg", "angle", -15, 15)}


def test_cases_that_differ_in_the_condition_alone_get_different_predictions(trained, points, tmp_path):
    first, again, other = (
        predict(trained, points, tmp_path / f"{number}.npz", "--condition", text)
        for number, text in enumerate(("yaw=5,pitch=0", "pitch=0,yaw=5", "yaw=-5,pitch=0"))
    )
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
        assert np.abs(values - other[name]).max() > 1e-4 * np.abs(values).max()


def test_a_named_condition_is_the_array_that_the_model_takes(trained, points):
    surrogate, queries = emmi_jax.load_run(trained), dict(np.load(points))
    named = surrogate.encode(points=queries, condition={"yaw": 15.0, "pitch": -15.0}).predict(queries)
    channels = np.array([-15.0, 15.0]) / (30 / np.sqrt(12))  # in the order of the names
    array = surrogate.encode(points=queries, condition=channels).predict(queries)
    for name, values in named.items():
        np.testing.assert_allclose(values, array[name], rtol=1e-5, atol=1e-6)


def test_an_exported_file_gives_the_same_numbers_by_the_same_names(trained, points, tmp_path):
    assert main(["export", str(trained), "--out", str(tmp_path / "run.emmi")]) == 0
    exported, queries = deploy.load(tmp_path / "run.emmi"), dict(np.load(points))
    assert exported.conditions["yaw"][:4] == ("deg", "angle", -15.0, 15.0)
    options = {"points": queries, "condition": {"yaw": 5.0, "pitch": -3.0}}
    expected, found = (s.encode(**options).predict(queries) for s in (emmi_jax.load_run(trained), exported))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    for surrogate in (emmi_jax.load_run(trained), exported):
        with pytest.raises(ValueError, match=r"needs a value of the condition pitch \[deg\], trained from -15 to 15"):
            surrogate.encode(points=queries, condition={"yaw": 5.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the model needs a value of the condition pitch [deg], trained from -15 to 15; and of yaw [deg]"),
        (["--condition", "yaw=1"], "needs a value of the condition pitch [deg], trained from -15 to 15; given: yaw"),
        (["--condition", "yaw"], "a condition has the form speed=40,yaw=5, got 'yaw'"),
        (["--condition", "yaw=1,2,pitch=0"], "the condition 'yaw' has 1 number, got [1.0, 2.0]"),
        (["--condition", "yaw=1,pitch=x"], "a condition has the form speed=40,yaw=5, got 'yaw=1,pitch=x'"),
        (["--condition", "yaw=1,pitch=nan"], "pitch [deg], trained from -15 to 15, must be a finite number, got nan"),
        (["--condition", "yaw=1,pitch=1,mach=2"], "the model takes the conditions pitch, yaw, got a value of 'mach'"),
    ],
)
def test_a_wrong_condition_costs_one_line(trained, points, tmp_path, capsys, options, message):
    out = tmp_path / "fields.npz"
    assert main(["predict", str(trained), "--points", str(points), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_value_outside_the_trained_range_is_a_warning(trained, points, tmp_path, capsys):
    predict(trained, points, tmp_path / "fields.npz", "--condition", "yaw=18,pitch=0")
    assert "warning: the condition yaw is 18 deg, outside the trained range -15 … 15 by 3 deg, 10% of the range" in (
        capsys.readouterr().out
    )


def test_a_run_is_resumed_under_its_own_conditions_alone(trained):
    settings = tiny_settings(None, stream_angle=15.0, steps=4, learning_rate=0.05)
    with pytest.raises(ValueError, match=r"started with settings\.stream_angle = 15\.0, now it is 10\.0"):
        run(settings.updated({"stream_angle": 10.0}), trained, resume=True)


@pytest.mark.parametrize("name", ["ab_upt_2026_1", "ab_upt_main_1"])
def test_a_converted_checkpoint_predicts_the_recorded_fields_under_a_condition_with_names(name, tmp_path, capsys):
    """One takes an array of numbers, which get names; the other has names of its own, one of three numbers."""
    safetensors = pytest.importorskip("safetensors.numpy")
    golden, config = load_golden(name), golden_ab_upt_config(name)
    inputs, sizes = golden.inputs, config.conditioning_dims
    safetensors.save_file(golden.params, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    names = [f"c{number}" for number in range(config.condition_dim)]
    path = tmp_path / "run"
    convert = ["convert", str(tmp_path / "weights.safetensors"), "--out", str(path)]
    convert += ["--config", str(tmp_path / "config.json")]
    assert main([*convert, "--conditions", ",".join(names[:-1])]) == 2
    assert main([*convert, *(["--conditions", ",".join(names)] if sizes is None else [])]) == 0
    geometry, idx = inputs["geometry_position"], inputs["geometry_supernode_idx"].astype(np.int32)
    anchors = {branch: inputs[f"anchor/{branch}"][0] for branch in config.branches}
    features = {branch: inputs[f"anchor_feature/{branch}"][0] for branch in config.feature_dims}
    RunDirectory.open(path).write_context(Context(anchors, Geometry(geometry[0], idx[0]), features))
    queries = {branch: inputs[f"query/{branch}"][0] for branch in config.branches if f"query/{branch}" in inputs}
    of_queries = {f"{branch}_features": inputs[f"query_feature/{branch}"][0] for branch in config.feature_dims}
    np.savez(tmp_path / "points.npz", **queries, **of_queries)
    given = dict(zip(names, inputs["condition"][0][:, None], strict=True)) if sizes is None else {}
    given |= {c: inputs[f"condition/{c}"][0] for c in sizes or {}}
    text = ",".join(f"{name}={','.join(map(str, numbers.tolist()))}" for name, numbers in given.items())
    found = predict(path, tmp_path / "points.npz", tmp_path / "fields.npz", "--condition", text)
    assert len(found) == sum(len(config.fields[branch]) for branch in queries)
    for field, values in found.items():
        tolerance = TOLERANCES["float32"].forward if sizes is None else EMBEDDED
        assert_close(values, golden.outputs[f"query_{field}"][0], tolerance)
    if sizes is not None:
        options = ["--points", str(tmp_path / "points.npz"), "--out", str(tmp_path / "other.npz"), "--condition"]
        assert main(["predict", str(path), *options, "design=1,2,inflow=0"]) == 2
        assert "the condition 'design' has 3 numbers, got [1.0, 2.0]" in capsys.readouterr().err
        assert main(["predict", str(path), *options, "inflow=0"]) == 2
        assert "the model takes the conditions design (3), inflow (1), got inflow" in capsys.readouterr().err


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = write_case_folder(tmp_path_factory.mktemp("meshes") / "case")
    return ["--surface", str(folder / "boundary_1.vtp"), "--volume", str(folder / "volume_1.vtu")]


FORCES = ["--speed", "1", "--area", "2"]


def test_a_sweep_gives_the_coefficients_of_single_predictions_and_compiles_once(trained, meshes, tmp_path, capsys):
    options = [*meshes, *FORCES, "--out", str(tmp_path / "sweep"), "--condition", "pitch=2"]
    before = _query._cache_size()
    assert main(["predict", str(trained), *options, "--condition-sweep", "yaw=-16:8:4"]) == 0
    assert _query._cache_size() <= before + 1
    printed = capsys.readouterr().out
    assert printed.count("warning: the condition yaw is -16 deg, outside the trained range -15 … 15 by 1 deg") == 1
    assert "yaw [deg]" in printed
    with open(tmp_path / "sweep" / "sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["yaw [deg]"]) for row in rows] == [-16, -8, 0, 8]
    assert (tmp_path / "sweep" / "sweep.png").is_file()
    single = [*meshes, *FORCES, "--out", str(tmp_path / "single"), "--condition", "yaw=8,pitch=2"]
    assert main(["predict", str(trained), *single]) == 0
    known = json.loads((tmp_path / "single" / "forces.json").read_text())["predicted"]
    np.testing.assert_allclose([float(rows[-1]["cd"]), float(rows[-1]["cl"])], [known["cd"], known["cl"]], rtol=1e-5)
    assert len({row["cd"] for row in rows}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--condition-sweep", "yaw=1:2"], "a sweep has the form yaw=-10:10:21, got 'yaw=1:2'"),
        (["--condition-sweep", "yaw=-1e308:1e308:3"], "a sweep has the form yaw=-10:10:21"),
        (["--condition-sweep", "yaw=-10:10:0"], "a sweep has the form yaw=-10:10:21, got 'yaw=-10:10:0'"),
        (["--condition-sweep", "yaw=1:2:3"], "needs a value of the condition pitch [deg]"),
        (["--condition-sweep", "yaw=1:2:3", "--condition", "yaw=1,pitch=2"], "'yaw' has a range and a value"),
        (["--condition-sweep", "mach=1:2:3", "--condition", "yaw=1,pitch=2"], "pitch, yaw, got a value of 'mach'"),
    ],
)
def test_a_wrong_sweep_costs_one_line(trained, meshes, tmp_path, capsys, options, message):
    assert main(["predict", str(trained), *meshes, *FORCES, "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
