"""Calibrated runs: what `calibrate` stores, what `predict --interval` writes, and what is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emmi_jax import deploy
from emmi_jax.cli import main
from emmi_jax.data.conformal import conformal_quantile, covering_score
from emmi_jax.jobs.calibrate import unit_of_widths
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.runs.calibration import read_calibration
from emmi_jax.runs.load import load_run
from tests.data.case_folders import read_case_folder, write_case_folder
from tests.jobs.tiny_runs import NO_GEOMETRY, run, tiny_settings

NAMES = [f"run_{number}" for number in range(6)]
SPLIT = {"train": NAMES[:1], "validation": NAMES[1:5], "test": NAMES[5:]}
SPEED, AREA = 2.0, 0.5


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases whose fields differ by a factor, with a solver's forces."""
    folder = tmp_path_factory.mktemp("data") / "cases"
    first = write_case_folder(tmp_path_factory.mktemp("data") / "case")
    for number, name in enumerate(NAMES):
        case = shutil.copytree(first, folder / name)
        for file in ("boundary_1.vtp", "volume_1.vtu"):
            mesh = read_mesh(case / file).dataset
            for array in mesh.cell_data:
                mesh.cell_data[array] = np.asarray(mesh.cell_data[array]) * (1 + number)
            mesh.save(case / file)
        (case / "forces.json").write_text(json.dumps({"CdA": 0.1 * number, "ClA": -0.2 * number, "speed": SPEED}))
    (folder / "split.json").write_text(json.dumps(SPLIT))
    return folder


@pytest.fixture(scope="module")
def trained(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run(tiny_settings(cases, steps=1, **NO_GEOMETRY), path)
    return path


@pytest.fixture
def calibrated(trained: Path, tmp_path: Path) -> Path:
    path = shutil.copytree(trained, tmp_path / "run")
    assert main(["calibrate", str(path)]) == 0
    return path


def meshes_of(case: Path) -> list[str]:
    return ["--surface", str(case / "boundary_1.vtp"), "--volume", str(case / "volume_1.vtu")]


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_scores_are_those_of_the_cases_by_their_share_of_points(calibrated, cases):
    surrogate = load_run(calibrated)
    found = read_calibration(calibrated, surrogate)
    assert (found.cases, found.repeats, found.share, found.known_forces) == (tuple(NAMES[1:5]), 1, 0.9, "solver")
    points, *_ = read_case_folder(cases / "run_2")
    position = points["volume"].position
    predicted = surrogate.encode(points=points).predict({"volume": position})["volume_velocity"]
    scale = np.array(surrogate.normalizer.fields["volume"]["velocity"].std)
    expected = covering_score(np.abs(predicted - points["volume"].fields["velocity"]) / scale, 0.9)
    assert found.scores["volume/velocity"][1] == pytest.approx(expected, rel=1e-5)
    assert set(found.scores) == {
        "surface/pressure_coefficient", "volume/velocity", "volume/pressure_coefficient", "cd", "cl",
    }  # fmt: skip


def test_intervals_have_the_widths_of_the_quantiles_on_meshes_and_for_forces(calibrated, cases, tmp_path, capsys):
    options = ["--interval", "0.7", "--speed", str(SPEED), "--area", str(AREA), "--out", str(tmp_path / "out")]
    assert main(["predict", str(calibrated), *meshes_of(cases / "run_5"), *options]) == 0
    surrogate = load_run(calibrated)
    scores = read_calibration(calibrated, surrogate).scores
    written = read_mesh(tmp_path / "out" / "volume_1.vtu")
    names = ["predicted_velocity", "velocity_low", "velocity_high"]
    mean, low, high = (written.points({n: FieldSource(n)}, location="cells").fields[n] for n in names)
    half = conformal_quantile(scores["volume/velocity"], 0.7) * np.array(
        surrogate.normalizer.fields["volume"]["velocity"].std
    )
    np.testing.assert_allclose(high - mean, np.broadcast_to(half, mean.shape), rtol=1e-4)
    np.testing.assert_allclose(mean - low, np.broadcast_to(half, mean.shape), rtol=1e-4)
    forces = json.loads((tmp_path / "out" / "forces.json").read_text())
    width = np.diff(forces["interval"]["cd"])[0]
    assert width == pytest.approx(2 * conformal_quantile(scores["cd"], 0.7) / AREA)
    cd = forces["predicted"]["cd"]
    lowest, highest = forces["interval"]["cd"]
    printed = capsys.readouterr().out.replace("\n", " ")
    assert f"predicted: Cd {cd:z.4f} [{lowest:z.4f}, {highest:z.4f}]" in printed
    assert " at 70 %" in printed


def test_draws_scale_the_intervals_and_predictions_take_as_many(trained, cases, tmp_path, capsys):
    path = shutil.copytree(trained, tmp_path / "run")
    assert main(["calibrate", str(path), "--repeats", "3"]) == 0
    surrogate = load_run(path)
    position = np.random.default_rng(0).uniform(-1, 1, (40, 3))
    np.savez(tmp_path / "points.npz", surface=position, volume=position)
    base = ["predict", str(path), "--points", str(tmp_path / "points.npz")]
    assert main([*base, "--interval", "0.5", "--out", str(tmp_path / "out.npz")]) == 0
    points = {"surface": position, "volume": position}
    each = [surrogate.encode(points=points, seed=seed).predict(points)["volume_velocity"] for seed in range(3)]
    deviation = np.std(np.asarray(each, np.float64), axis=0, ddof=1)
    quantile = conformal_quantile(read_calibration(path, surrogate).scores["volume/velocity"], 0.5)
    with np.load(tmp_path / "out.npz") as written:
        np.testing.assert_allclose(written["volume_velocity"], np.mean(each, axis=0), atol=1e-5)
        np.testing.assert_allclose(written["volume_velocity_deviation_draws"], deviation, rtol=1e-2, atol=1e-6)
        half = written["volume_velocity_high"] - written["volume_velocity"]
        np.testing.assert_allclose(half, quantile * deviation, rtol=1e-2, atol=1e-4)
    message = error_of(capsys, *base, "--interval", "0.5", "--repeats", "2", "--out", str(tmp_path / "no.npz"))
    assert "calibrated with --repeats 3, got 2" in message
    assert not (tmp_path / "no.npz").exists()


def test_an_evaluation_counts_the_cases_inside_the_intervals(calibrated, cases, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["evaluate", str(calibrated), "--out", str(out), "--speed", str(SPEED), "--area", str(AREA)]
    assert main(words) == 0
    found = json.loads((out / "evaluation_test.json").read_text())
    coverage, forces = found["coverage"], found["forces"]["cases"]["run_5"]
    assert (coverage["calibration_cases"], coverage["cases"], list(coverage["levels"])) == (4, 1, ["0.5", "0.8"])
    scores = read_calibration(calibrated, load_run(calibrated)).scores
    error = AREA * abs(forces["cd"]["predicted"] - forces["cd"]["solver"])
    for level, of_level in coverage["levels"].items():
        quantile = conformal_quantile(scores["cd"], float(level))
        assert of_level["covered"]["cd"] == (error <= quantile)
        assert of_level["half_width"]["cd"] == pytest.approx(quantile / AREA)
        assert set(of_level["covered"]) == set(scores)
    assert coverage["levels"]["0.8"]["promised"] == pytest.approx(0.8)
    assert (out / "evaluation_test_coverage.png").is_file()
    assert coverage["rank_correlation"] == {}
    assert main([*words, "--lift-direction", "0,1,0"]) == 0
    found = json.loads((out / "evaluation_test.json").read_text())["coverage"]["levels"]["0.5"]
    assert {"cd", "cl"} & set(found["covered"]) == set()
    capsys.readouterr()
    assert main([*words, "--split", "validation"]) == 0
    assert "no coverage of intervals: the run was calibrated on these cases" in capsys.readouterr().out


def test_widths_are_said_in_deviations_of_what_varies():
    assert unit_of_widths(3, 1) == "deviations of 3 members"
    assert unit_of_widths(3, 2) == "deviations of 3 members and 2 draws"
    assert unit_of_widths(1, 1).startswith("deviations of the training data")


def test_what_cannot_be_guaranteed_is_refused(calibrated, trained, cases, tmp_path, capsys):
    predict = ["predict", *meshes_of(cases / "run_5"), "--out", str(tmp_path / "out"), "--interval"]
    for run_path, level, message in (
        (calibrated, "0.9", "level 0.9 needs at least 9 calibration cases, there are 4"),
        (calibrated, "1", "level must be below 1, got 1"),
        (calibrated, "90", "level must be above 0 and at most 1, got 90"),
        (trained, "0.5", f"{trained} is not calibrated: emmi-jax calibrate {trained}"),
    ):
        assert message in error_of(capsys, predict[0], str(run_path), *predict[1:], level)
    assert not (tmp_path / "out").exists()
    file = calibrated / "calibration.json"
    whole = file.read_text()
    file.write_text(re.sub(r'"share": 0\.9', '"share": 0.8', whole))
    assert "damaged: calibrate the run again" in error_of(capsys, predict[0], str(calibrated), *predict[1:], "0.5")
    run(tiny_settings(cases, steps=2, **NO_GEOMETRY), tmp_path / "longer")
    file.write_text(whole)
    shutil.copy(file, tmp_path / "longer")
    message = error_of(capsys, predict[0], str(tmp_path / "longer"), *predict[1:], "0.5")
    assert "trained on since: calibrate it again" in message
    assert main(["evaluate", str(tmp_path / "longer"), "--out", str(tmp_path / "evaluated")]) == 0
    printed = capsys.readouterr().out
    assert "warning: no coverage of intervals" in printed
    assert "coverage" not in json.loads((tmp_path / "evaluated" / "evaluation_test.json").read_text())


@pytest.mark.parametrize("split", ["train", "all"])
def test_cases_to_train_on_are_no_calibration_cases(split, trained, capsys):
    message = error_of(capsys, "calibrate", str(trained), "--split", split)
    assert "the run was trained on run_0: errors there are too small" in message
    assert not (trained / "calibration.json").exists()


def test_copies_of_training_cases_are_found_by_their_content(trained, cases, tmp_path, capsys):
    copies = shutil.copytree(cases, tmp_path / "copies")
    (copies / "split.json").write_text(json.dumps({"train": NAMES[1:2], "validation": NAMES[:1], "test": NAMES[2:]}))
    message = error_of(capsys, "calibrate", str(trained), "--data", str(copies))
    assert "the run was trained on run_0" in message
    case = error_of(capsys, "calibrate", str(trained), "--data", str(cases / "run_1"))
    assert "run_1 is a single case: a calibration needs several" in case


def test_an_exported_file_gives_the_intervals_of_its_run(trained, cases, tmp_path, capsys):
    ensemble = shutil.copytree(trained, tmp_path / "other")
    assert main(["ensemble", str(trained), str(ensemble), "--out", str(tmp_path / "run")]) == 0
    assert main(["calibrate", str(tmp_path / "run"), "--repeats", "2"]) == 0
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "run.emmi")]) == 0
    assert "intervals: calibrated on 4 cases" in capsys.readouterr().out
    live, exported = load_run(tmp_path / "run"), deploy.load(tmp_path / "run.emmi")
    points = {branch: of.position for branch, of in read_case_folder(cases / "run_5")[0].items()}
    expected = read_calibration(tmp_path / "run", live).intervals(0.7)
    found = exported.encode_with_intervals(0.7, points=points, seed=3)
    assert found.intervals == expected
    whole = live.encode_draws(2, points=points, seed=3, intervals=expected).predict(points)
    streamed = found.predict(points)
    assert streamed.keys() == whole.keys() >= {"volume_velocity_low", "surface_pressure_coefficient_high"}
    for name, values in whole.items():
        np.testing.assert_allclose(streamed[name], values, rtol=1e-3, atol=1e-3 * np.abs(values).max(), err_msg=name)
    values = deploy.Spread.of(np.array([[1.0, 1.2], [1.1, 1.3]]))
    low, high = found.intervals.of_number("cd", values, unit=AREA)
    assert high - 1.15 == pytest.approx(1.15 - low) == pytest.approx(expected.quantiles["cd"] * values.deviation)
    for arguments, message in (
        ((0.9, {"points": points}), "level 0.9 needs at least 9 calibration cases, there are 4"),
        ((0.7, {"anchors": points}), "intervals of 2 draws need points to draw anchors from"),
    ):
        with pytest.raises(ValueError, match=message):
            exported.encode_with_intervals(arguments[0], **arguments[1])
    for number, message in (
        (("cl", values), "no scores of 'cl', but of"),
        (("cd", deploy.Spread.of(np.array([[1.0]]))), "is of several members or draws of each case, got a single"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(found.intervals, quantiles={"cd": 1.0}).of_number(*number)
    with pytest.raises(ValueError, match="unit must be above 0, got -2"):
        found.intervals.of_number("cd", values, unit=-2)
