"""How far cases are from the training cases: calibrated, then said by predict, sensitivity and optimize."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.meshes.mesh import read_mesh
from tests.data.case_folders import write_case_folder
from tests.jobs.tiny_runs import GEOMETRY, run, tiny_settings

NUM_TRAIN, NUM_VALIDATION = 12, 6
NAMES = [f"run_{number}" for number in range(NUM_TRAIN + NUM_VALIDATION + 2)]
SPLIT = {
    "train": NAMES[:NUM_TRAIN],
    "validation": NAMES[NUM_TRAIN : NUM_TRAIN + NUM_VALIDATION],
    "test": NAMES[NUM_TRAIN + NUM_VALIDATION :],
}
FAR = NAMES[-1]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bodies that differ a little in their height; the last one is three times as high."""
    folder = tmp_path_factory.mktemp("data") / "cases"
    first = write_case_folder(tmp_path_factory.mktemp("data") / "case")
    heights = np.random.default_rng(0).uniform(0.9, 1.1, len(NAMES))
    heights[-1] = 3.0
    for name, height in zip(NAMES, heights, strict=True):
        case = shutil.copytree(first, folder / name)
        for file in ("boundary_1.vtp", "volume_1.vtu", "body_1.stl"):
            dataset = read_mesh(case / file).dataset
            dataset.points = np.asarray(dataset.points) * [1, 1, height]
            dataset.save(case / file)
    (folder / "split.json").write_text(json.dumps(SPLIT))
    return folder


@pytest.fixture(scope="module")
def calibrated(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    options = {"num_geometry_points": 64, "num_supernodes": 16, "num_test_supernodes": 64}
    run(tiny_settings(cases, steps=1, **GEOMETRY | {"physics_blocks": ("perceiver", "cross")} | options), path)
    assert main(["calibrate", str(path)]) == 0
    return path


def design(case: Path, out: Path) -> list[str]:
    files = {"surface": "boundary_1.vtp", "volume": "volume_1.vtu", "geometry": "body_1.stl"}
    meshes = [word for name, file in files.items() for word in (f"--{name}", str(case / file))]
    return [*meshes, "--speed", "1", "--area", "1", "--out", str(out)]


@pytest.mark.parametrize(("name", "is_far"), [(FAR, True), (NAMES[0], False)])
def test_every_command_says_whether_a_case_is_far_from_the_training_cases(
    name, is_far, calibrated, cases, tmp_path, capsys
):
    words = design(cases / name, tmp_path / "predicted")
    assert main(["predict", str(calibrated), *words]) == 0
    printed = capsys.readouterr().out
    assert ("warning: distance from the training cases" in printed) == is_far
    found = json.loads((tmp_path / "predicted" / "familiarity.json").read_text())
    assert found["calibration_cases"] == NUM_VALIDATION
    assert (found["p_value"] == pytest.approx(1 / (NUM_VALIDATION + 1))) == is_far
    assert main(["sensitivity", str(calibrated), *design(cases / name, tmp_path / "push")]) == 0
    pushed = json.loads((tmp_path / "push" / "sensitivity.json").read_text())["familiarity"]
    assert (pushed["p_value"] == found["p_value"] == pytest.approx(1 / (NUM_VALIDATION + 1))) == is_far
    assert "distance from the training cases" in capsys.readouterr().out


def test_an_optimisation_says_how_familiar_the_shape_was_and_is(calibrated, cases, tmp_path, capsys):
    words = [*design(cases / NAMES[0], tmp_path / "out"), "--lattice", "2x2x2", "--max-displacement", "0.1"]
    assert main(["optimize", str(calibrated), *words, "--steps", "2", "--keep", "familiar"]) == 0
    found = json.loads((tmp_path / "out" / "optimization.json").read_text())["familiarity"]
    assert set(found) == {"before", "after"}
    assert found["before"]["distance"] > 0
    printed = capsys.readouterr().out
    assert "before: distance from the training cases" in printed
    assert "after: distance from the training cases" in printed


def test_a_run_that_does_not_know_its_training_cases_says_so(calibrated, cases, tmp_path, capsys):
    path = shutil.copytree(calibrated, tmp_path / "run")
    (file,) = path.glob("familiarity-*.npz")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    words = [*design(cases / NAMES[0], tmp_path / "out"), "--lattice", "2x2x2", "--max-displacement", "0.1"]
    assert main(["optimize", str(path), *words, "--keep", "familiar"]) == 2
    assert f"{file}: damaged: calibrate the run again" in capsys.readouterr().err
    (path / "calibration.json").unlink()
    assert main(["optimize", str(path), *words, "--keep", "familiar"]) == 2
    assert "--keep familiar needs a run that knows its training cases: emmi-jax calibrate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
