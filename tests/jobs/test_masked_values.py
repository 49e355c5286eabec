"""Fields that are NaN at some points, from cases and a store to a run and its evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.data.load import load_dataset
from emmi_jax.data.report import Report
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.runs.calibration import read_calibration
from emmi_jax.runs.load import load_run
from tests.data.case_folders import write_case_folder
from tests.jobs.tiny_runs import NO_GEOMETRY, run, tiny_settings

NUM_UNKNOWN = 7


class Lines(Report):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, lines: Iterable[str]) -> None:
        self.lines += lines


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of one case; the surface pressure of some cells is unknown in one to train on and one to test on."""
    folder = tmp_path_factory.mktemp("data") / "cases"
    first = write_case_folder(tmp_path_factory.mktemp("data") / "case")
    for number in range(3):
        shutil.copytree(first, folder / f"run_{number}")
    (folder / "split.json").write_text(json.dumps({"train": ["run_0", "run_1"], "test": ["run_2"]}))
    for name in ("run_1", "run_2"):
        change_pressure(folder / name, slice(NUM_UNKNOWN))
    return folder


def change_pressure(case: Path, rows: slice, value: float = np.nan) -> None:
    mesh = import_pyvista().read(case / "boundary_1.vtp")
    mesh.cell_data["Cp"][rows] = value
    mesh.save(case / "boundary_1.vtp")


def test_values_that_are_nan_are_refused_unless_they_are_masked(cases, tmp_path, capsys):
    options = ["--out", str(tmp_path / "runs"), "--steps", "1"]
    assert main(["train", "--data", str(cases), *options]) == 2
    assert "7 of 448 values of 'Cp' are NaN or infinite" in capsys.readouterr().err
    assert main(["prepare", str(cases), "--out", str(tmp_path / "store"), "--mask-nan"]) == 0
    assert "surface/pressure_coefficient is NaN at 7 of 448 points" in capsys.readouterr().out
    assert main(["train", "--data", str(tmp_path / "store"), *options]) == 2
    assert "is NaN at 7 of 448 points: mask_nan = true leaves such points out" in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "value", "message"), [(slice(None), np.nan, "all 448"), (slice(1), np.inf, "1 of")])
def test_a_field_that_is_unknown_everywhere_or_infinite_is_refused(rows, value, message, cases, tmp_path):
    data = shutil.copytree(cases, tmp_path / "cases")
    change_pressure(data / "run_0", rows, value)
    settings = tiny_settings(data, steps=1, **NO_GEOMETRY, mask_nan=True)
    with pytest.raises(ValueError, match=f"{message}.* values of 'Cp'"):
        load_dataset(settings).measure()


def test_an_input_that_is_unknown_is_refused_before_training_in_cases_and_in_a_store(cases, tmp_path, capsys):
    store = tmp_path / "store"
    features = ["--set", 'features={surface=["pressure_coefficient"]}', "--set", "mask_nan=true"]
    assert main(["prepare", str(cases), "--out", str(tmp_path / "a"), "--mask-nan", "--feature", "surface/Cp"]) == 2
    assert "run_1: the feature 'Cp' of 'surface' is NaN at 7 points" in capsys.readouterr().err
    assert main(["prepare", str(cases), "--out", str(store), "--mask-nan"]) == 0
    assert main(["train", "--data", str(store), "--out", str(tmp_path / "runs"), "--dry-run", *features]) == 2
    assert "run_1: the feature 'pressure_coefficient' of 'surface' is NaN at 7 points" in capsys.readouterr().err


def test_statistics_of_cases_and_of_a_store_are_those_of_the_known_values(cases, tmp_path):
    assert main(["prepare", str(cases), "--out", str(tmp_path / "store"), "--mask-nan"]) == 0
    report = Lines()
    found = [
        load_dataset(tiny_settings(data, steps=1, **NO_GEOMETRY, mask_nan=True)).measure(report)
        for data in (cases, tmp_path / "store")
    ]
    assert [line.partition(": ")[2] for line in report.lines] == 2 * [
        "surface/pressure_coefficient is NaN at 7 of 448 points (and the like 1 more times)"
    ]
    whole = import_pyvista().read(cases / "run_0" / "boundary_1.vtp").cell_data["Cp"]
    known = np.concatenate([whole, whole[NUM_UNKNOWN:]]).astype(np.float64)
    for moments in found:
        pressure, _ = moments.fields["surface"]["pressure_coefficient"]
        assert (pressure.count, pressure.num_not_finite) == (len(known), NUM_UNKNOWN)
        np.testing.assert_allclose([pressure.mean[0], pressure.std[0]], [known.mean(), known.std()], rtol=1e-6)


def test_a_run_trains_and_is_evaluated_on_the_known_values(cases, tmp_path, capsys):
    settings = tiny_settings(cases, steps=2, learning_rate=0.05, **NO_GEOMETRY, mask_nan=True)
    run(settings, tmp_path / "run", pictures=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert all(np.isfinite(list(row.values())).all() for row in metrics.values())
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(cases)]) == 0
    assert "run_2: surface/pressure_coefficient is NaN at 7 points" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(cases), "--speed", "1", "--area", "1"]) == 2
    assert "run_2: forces need all of the pressure_coefficient of the surface" in capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "evaluation_test.json").read_text())
    assert found["masked"] == {"run_2": {"surface/pressure_coefficient": NUM_UNKNOWN}}
    assert np.isfinite(found["mean"]["surface/pressure_coefficient"]["relative_l2"])
    assert main(["calibrate", str(tmp_path / "run"), "--split", "test"]) == 0
    scores = read_calibration(tmp_path / "run", load_run(tmp_path / "run")).scores
    assert np.isfinite(scores["surface/pressure_coefficient"]).all()
    meshes = ["--surface", str(cases / "run_2/boundary_1.vtp"), "--volume", str(cases / "run_2/volume_1.vtu")]
    capsys.readouterr()
    words = ["predict", str(tmp_path / "run"), *meshes, "--compare", "--out", str(tmp_path / "out")]
    assert main([*words, "--speed", "1", "--area", "1"]) == 0
    assert "warning: surface/pressure_coefficient is NaN at 7 points" in capsys.readouterr().out
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert compared.pop("masked") == {"surface/pressure_coefficient": NUM_UNKNOWN}
    assert compared["surface/pressure_coefficient"]["mae"] == pytest.approx(
        found["mean"]["surface/pressure_coefficient"]["mae"], rel=0.2
    )
    assert list(json.loads((tmp_path / "out" / "forces.json").read_text())["predicted"]) == ["cd", "cl"]


def test_a_run_that_was_trained_elsewhere_is_evaluated_on_the_known_values(cases, tmp_path, capsys):
    settings = tiny_settings(cases, steps=1, **NO_GEOMETRY, mask_nan=True)
    run(settings, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"settings": None, "split": None}))
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(cases)]) == 0
    assert "run_2: surface/pressure_coefficient is NaN at 7 points" in capsys.readouterr().out
