"""Conditions of case folders, from training to a store and an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.config import TrainSettings
from emmi_jax.data.cases import Case
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.load import load_dataset
from emmi_jax.data.store import Store
from emmi_jax.jobs.evaluation_details import CaseDetails
from emmi_jax.meshes.mesh import read_mesh
from emmi_jax.runs.directory import RunDirectory
from tests.data.case_folders import write_case_folder
from tests.jobs.tiny_runs import NO_GEOMETRY, run, tiny_settings

SPLIT = {"train": ["run_0", "run_1", "run_2"], "test": ["run_3"]}
SPEED = {"run_0": 20.0, "run_1": 30.0, "run_2": 40.0, "run_3": 25.0}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of one case that differ in their speed."""
    folder = tmp_path_factory.mktemp("data") / "cases"
    first = write_case_folder(tmp_path_factory.mktemp("data") / "case")
    for name, speed in SPEED.items():
        shutil.copytree(first, folder / name)
        conditions = {"speed": {"value": speed, "unit": "m/s"}, "density": 1.2}
        (folder / name / "conditions.json").write_text(json.dumps(conditions))
    (folder / "split.json").write_text(json.dumps(SPLIT))
    return folder


def settings(data: Path, **changes: object) -> TrainSettings:
    return tiny_settings(
        data, steps=2, learning_rate=0.05, **{"conditions.names": ("speed",)}, **NO_GEOMETRY, **changes
    )


@pytest.fixture(scope="module")
def trained(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run(settings(cases), path)
    return path


def test_a_run_on_cases_keeps_their_condition(trained):
    config = RunDirectory.open(trained).read_config()
    (speed,) = config.normalizer.conditions.values()
    assert (config.model.condition_dim, speed.unit, speed.low, speed.high, speed.mean) == (1, "m/s", 20, 40, 30)


def test_a_condition_that_is_constant_is_refused_with_advice(cases, tmp_path, capsys):
    options = ["--data", str(cases), "--out", str(tmp_path), "--no-geometry", "--steps", "1"]
    assert main(["train", *options]) == 2
    message = "the condition 'density' is 1.2 in all 3 training cases, so that nothing can be learned of it"
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cases_without_a_condition_are_reported_together_with_other_broken_cases(cases, tmp_path, capsys):
    broken = shutil.copytree(cases, tmp_path / "cases")
    (broken / "run_0" / "conditions.json").write_text('{"density": 1.2}')
    (broken / "run_2" / "volume_1.vtu").write_bytes(b"")
    assert main(["train", "--data", str(broken), "--out", str(tmp_path / "runs"), "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert "2 of 4 cases are unusable: run_0: no condition 'speed'; run_2: volume_1.vtu: empty" in error


def test_a_store_keeps_conditions_and_stats_prints_them(cases, trained, tmp_path, capsys):
    store = tmp_path / "store"
    assert main(["prepare", str(cases), "--out", str(store)]) == 0
    kept = Store(str(store)).cases
    assert {name: case.conditions["speed"].value for name, case in kept.items()} == SPEED
    raw, stored = (load_dataset(settings(path)) for path in (cases, store))
    assert stored.conditions == raw.conditions
    assert stored.train_sample(0, 1).condition == raw.train_sample(0, 1).condition
    capsys.readouterr()
    for data in (cases, store):
        assert main(["stats", str(data)]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("condition speed"))
        assert line.split() == ["condition", "speed", "[m/s]", "4", "20", "40", "28.75", "7.395"]
    (cases / "run_3" / "conditions.json").write_text('{"speed": {"value": 26.0, "unit": "m/s"}, "density": 1.2}')
    try:
        assert main(["prepare", str(cases), "--out", str(store)]) == 0
        assert Store(str(store)).cases["run_3"].conditions["speed"].value == 26.0
    finally:
        shutil.copy(cases / "run_0" / "conditions.json", cases / "run_3")
        (cases / "run_3" / "conditions.json").write_text('{"speed": {"value": 25.0, "unit": "m/s"}, "density": 1.2}')


def test_an_evaluation_predicts_each_case_under_its_own_condition(trained, cases, tmp_path):
    assert main(["evaluate", str(trained), "--split", "all", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation_all.json").read_text())["cases"]
    errors = [found[name]["volume/velocity"]["relative_l2"] for name in SPEED]
    assert len(set(errors)) == len(SPEED)  # the cases are copies but for the speed


def test_an_evaluation_refuses_a_condition_in_another_unit(trained, cases, tmp_path, capsys):
    other = shutil.copytree(cases, tmp_path / "cases")
    (other / "run_3" / "conditions.json").write_text('{"speed": {"value": 90.0, "unit": "km/h"}}')
    assert main(["evaluate", str(trained), "--data", str(other), "--out", str(tmp_path / "out")]) == 2
    assert "run_3: the condition 'speed' is in km/h, the run takes it in m/s" in capsys.readouterr().err


def test_an_evaluation_tells_errors_by_bins_of_a_condition_weights_components_and_intervals(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--split", "all", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation_all.json").read_text())
    bins = found["conditions"]["speed"]
    assert [(b["low"], b["high"], b["cases"]) for b in bins] == [(20, 25, 1), (25, 30, 1), (30, 35, 1), (35, 40, 1)]
    errors = {name: metrics["volume/velocity"]["relative_l2"] for name, metrics in found["cases"].items()}
    assert bins[1]["relative_l2"]["volume/velocity"] == pytest.approx(errors["run_3"])
    interval = found["intervals"]["volume/velocity"]
    half = 3.182446 * np.std(list(errors.values()), ddof=1) / 2  # Student's t of three degrees of freedom
    assert interval["mean"] == pytest.approx(np.mean(list(errors.values())))
    assert interval["high"] - interval["mean"] == pytest.approx(half, rel=1e-5)
    assert set(found["weighted"]["mean"]) == set(found["mean"])
    assert set(found["components"]) == {f"volume/velocity {axis}" for axis in "xyz"}
    assert "speed [m/s]" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["run_3", "all"])
def test_units_that_differ_are_found_before_training(broken, trained, cases, tmp_path, capsys):
    """A case to test on has another unit than those to train on, or all have another than the weights to start from."""
    other = shutil.copytree(cases, tmp_path / "cases")
    for name in SPEED if broken == "all" else [broken]:
        speed = {"value": SPEED[name] * 3.6, "unit": "km/h"}
        (other / name / "conditions.json").write_text(json.dumps({"speed": speed}))
    options = ["--data", str(other), "--out", str(tmp_path / "runs"), "--set", "conditions.names=['speed']"]
    init = ["--init-from", str(trained)] if broken == "all" else []
    assert main(["train", *options, *init]) == 2
    message = {
        "run_3": "run_3: the condition 'speed' is in km/h, the run takes it in m/s",
        "all": "the run takes the condition 'speed' in m/s, the data have it in km/h",
    }[broken]
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*"))


def test_a_run_is_not_resumed_after_a_condition_has_changed(trained, cases, tmp_path):
    other = shutil.copytree(cases, tmp_path / "cases")
    (other / "run_1" / "conditions.json").write_text('{"speed": {"value": 31.0, "unit": "m/s"}}')
    path = shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(ValueError, match="not the data that the run was started with, or they have changed since"):
        run(settings(other), path, resume=True)


def test_bins_of_an_angle_know_its_turns():
    """359 degrees are -1, in the first of four parts of -1 … 3."""
    scales = {"yaw": ConditionScale(unit="deg", kind="angle", low=-15, high=15)}
    details, values = CaseDetails(scales), {"a": 359.0, "b": -0.5, "c": 3.0}
    for name, value in values.items():
        details.add(name, {}, Case({}, None, condition={"yaw": value}))
    found = details.to_dict({name: {"f": {"relative_l2": 1.0}} for name in values})["conditions"]["yaw"]
    assert [(b["low"], b["high"], b["cases"]) for b in found] == [(-1, 0, 2), (2, 3, 1)]


def test_an_ensemble_with_features_and_a_condition_is_calibrated_swept_and_optimized(cases, tmp_path):
    cases = shutil.copytree(cases, tmp_path / "cases")
    for file in cases.glob("*/boundary_1.vtp"):
        surface = read_mesh(file).dataset
        surface.cell_data["patch"] = np.arange(surface.n_cells) % 3.0
        surface.save(file)
    for seed in (0, 1):
        run(settings(cases, features={"surface": ("patch",)}, seed=seed), tmp_path / f"run_{seed}")
    path, meshes = str(tmp_path / "both"), [cases / "run_3" / name for name in ("boundary_1.vtp", "volume_1.vtu")]
    assert main(["ensemble", str(tmp_path / "run_0"), str(tmp_path / "run_1"), "--out", path]) == 0
    assert main(["calibrate", path, "--split", "test", "--speed", "25"]) == 0
    shown = ["--surface", str(meshes[0]), "--volume", str(meshes[1]), "--speed", "25", "--area", "2", "--out"]
    one = [*shown, str(tmp_path / "one"), "--condition", "speed=30"]
    assert main(["predict", path, *one, "--interval", "0.5"]) == 0
    found = json.loads((tmp_path / "one" / "forces.json").read_text())
    low, high = found["interval"]["cd"]
    assert low < found["predicted"]["cd"] < high
    assert main(["predict", path, *shown, str(tmp_path / "sweep"), "--condition-sweep", "speed=30:40:2"]) == 0
    swept = np.loadtxt(tmp_path / "sweep" / "sweep.csv", delimiter=",", skiprows=1)
    assert swept[0, :2] == pytest.approx([30, found["predicted"]["cd"]], rel=1e-4)
    words = ["--condition", "2*speed=30", "--condition", "1*speed=40", "--lattice", "2x2x2", "--steps", "1"]
    options = [*shown, str(tmp_path / "lower"), *words, "--max-displacement", "0.01"]
    assert main(["optimize", path, *options]) == 0
    lowered = json.loads((tmp_path / "lower" / "optimization.json").read_text())
    assert max(lowered["after"]) < min(lowered["before"])
