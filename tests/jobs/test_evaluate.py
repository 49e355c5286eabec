import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.runs.load import load_run
from tests.data.case_folders import FIELDS, read_case_folder, surface_dataset, write_case_folder
from tests.jobs import tiny_runs
from tests.jobs.tiny_runs import run, tiny_settings, write_case

GEOMETRY = tiny_runs.GEOMETRY | {"physics_blocks": ("perceiver", "cross")}
SPLIT = {"train": ["run_0"], "validation": ["run_1"], "test": ["run_2", "run_3"]}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "cases"
    first = write_case_folder(tmp_path_factory.mktemp("data") / "case")
    for number in range(4):
        shutil.copytree(first, folder / f"run_{number}")
    (folder / "split.json").write_text(json.dumps(SPLIT))
    return folder


@pytest.fixture(scope="module")
def trained(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run(tiny_settings(cases, steps=1, **GEOMETRY), path)
    return path


def read(path: Path, split: str) -> dict:
    return json.loads((path / f"evaluation_{split}.json").read_text())


def test_metrics_are_those_of_all_points_averaged_over_draws_then_cases(trained, cases, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--repeats", "2", "--out", str(tmp_path)]) == 0
    found = read(tmp_path, "test")
    assert (found["split"], found["repeats"], list(found["cases"])) == ("test", 2, ["run_2", "run_3"])
    surrogate = load_run(trained)
    points, geometry, *_ = read_case_folder(cases / "run_2")
    exact, errors = points["volume"].fields["velocity"], []
    for seed in range(2):
        encoded = surrogate.encode(points=points, geometry=geometry, seed=seed)
        predicted = encoded.predict({"volume": points["volume"].position})["volume_velocity"]
        errors.append(np.linalg.norm(predicted - exact) / np.linalg.norm(exact))
    assert errors[0] != errors[1]
    velocity = found["cases"]["run_2"]["volume/velocity"]
    assert velocity["relative_l2"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert set(velocity) == {"relative_l2", "relative_l1", "mae", "max", "r2"}
    assert found["mean"]["volume/velocity"] == pytest.approx(velocity)  # the cases are copies
    with open(tmp_path / "evaluation_test.csv") as file:
        rows = list(csv.DictReader(file))
    of_velocity = [float(row["r2"]) for row in rows if (row["case"], row["field"]) == ("run_2", "volume/velocity")]
    assert of_velocity == [velocity["r2"]]
    printed = capsys.readouterr().out
    assert "Mean over 2 cases" in printed
    lines = printed.splitlines()
    table = lines[lines.index(next(line for line in lines if "Mean over" in line)) :][:5]
    assert max(map(len, table)) <= 80
    pictures = {f"surface_{name}" for name in FIELDS["surface"]} | {f"volume_{name}" for name in FIELDS["volume"]}
    assert {path.name for path in tmp_path.glob("*.png")} == {f"evaluation_test_{name}.png" for name in pictures}


@pytest.mark.parametrize(("split", "expected"), [("validation", ["run_1"]), ("all", [f"run_{i}" for i in range(4)])])
def test_any_split_can_be_chosen_and_the_run_receives_the_files(split, expected, trained):
    assert main(["evaluate", str(trained), "--split", split]) == 0
    assert list(read(trained, split)["cases"]) == expected


def test_other_data_are_a_case_or_cases_with_a_split_of_their_own(trained, cases, tmp_path):
    assert main(["evaluate", str(trained), "--data", str(cases / "run_1"), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert (found["split"], list(found["cases"])) == (None, ["run_1"])
    others = shutil.copytree(cases, tmp_path / "others")
    (others / "split.json").write_text(json.dumps({"train": ["run_3"], "test": ["run_0"]}))
    assert main(["evaluate", str(trained), "--data", str(others), "--out", str(tmp_path)]) == 0
    assert list(read(tmp_path, "test")["cases"]) == ["run_0"]


def test_fields_are_read_from_the_arrays_that_the_run_was_trained_on(trained, cases, tmp_path):
    others = shutil.copytree(cases, tmp_path / "others", ignore=shutil.ignore_patterns("fields.json"))
    assert main(["evaluate", str(trained), "--data", str(others), "--out", str(tmp_path / "out")]) == 0
    assert main(["evaluate", str(trained), "--data", str(cases), "--out", str(tmp_path)]) == 0
    assert read(tmp_path / "out", "test")["mean"] == read(tmp_path, "test")["mean"]


def test_a_field_that_is_not_finite_is_named_and_nothing_is_written(trained, cases, tmp_path, capsys):
    others = shutil.copytree(cases, tmp_path / "others")
    surface = surface_dataset()
    surface.cell_data["Cp"][3] = np.nan
    surface.save(others / "run_3" / "boundary_1.vtp")
    assert main(["evaluate", str(trained), "--data", str(others), "--out", str(tmp_path / "out")]) == 2
    assert (
        "boundary_1.vtp: 1 of 448 values of 'Cp' are NaN or infinite, or beyond 1e+38; --skip"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def damage(cases: Path, kind: str) -> Path:
    if kind == "branch":
        (cases / "run_2" / "volume_1.vtu").unlink()
    elif kind == "field":
        (cases / "run_2" / "fields.json").write_text(json.dumps({"surface": {"cp": "Cp"}, "volume": {"velocity": "U"}}))
    elif kind == "channels":
        sources = {"surface": {"pressure_coefficient": "Cp"}, "volume": {"velocity": "Cp"}}
        (cases / "run_2" / "fields.json").write_text(json.dumps(sources))
    elif kind == "split":
        (cases / "split.json").unlink()
    elif kind == "cases":
        shutil.rmtree(cases)
        cases.mkdir()
    return cases


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("branch", "cases that lack one: run_2"),
        (
            "channels",
            "run_2: volume has the fields {'velocity': 1}, expected {'velocity': 3, 'pressure_coefficient': 1}",
        ),
        ("field", "run_2: surface has the fields {'cp': 1}, expected {'pressure_coefficient': 1}"),
        ("split", "has no split.json, so no split 'test': use --split all"),
        ("cases", "no cases in this folder"),
    ],
)
def test_unusable_cases_are_named_in_one_line_and_nothing_is_written(kind, message, trained, cases, tmp_path, capsys):
    others = damage(shutil.copytree(cases, tmp_path / "others"), kind)
    assert main(["evaluate", str(trained), "--data", str(others), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unusable_cases_are_left_out_of_the_metrics_when_told(trained, cases, tmp_path, capsys):
    others = shutil.copytree(cases, tmp_path / "others")
    split = json.loads((others / "split.json").read_text())
    name = split["test"][0]
    shutil.copytree(others / name, others / "run_9")
    surface = surface_dataset()
    surface.cell_data["Cp"][3] = np.nan
    surface.save(others / "run_9" / "boundary_1.vtp")
    (others / "split.json").write_text(json.dumps(split | {"test": [*split["test"], "run_9", "absent"]}))
    command = ["evaluate", str(trained), "--data", str(others), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "--skip-unusable leaves them out" in capsys.readouterr().err.replace("such cases", "them")
    assert main([*command, "--skip-unusable"]) == 0
    printed = capsys.readouterr()
    assert "run_9: " in printed.out + printed.err
    assert "are NaN or infinite" in printed.out + printed.err
    assert list(read(tmp_path / "out", "test")["cases"]) == split["test"]


def test_what_cannot_be_evaluated_says_so(trained, tmp_path, capsys):
    points = shutil.copytree(trained, tmp_path / "points")
    config = json.loads((points / "config.json").read_text())
    config["settings"]["data"] = str(write_case(tmp_path / "case.npz"))
    (points / "config.json").write_text(json.dumps(config))
    for arguments, message in (
        ([str(trained), "--split", "tests"], "--split must be one of train, validation, test, all, got 'tests'"),
        ([str(points)], "case.npz is no folder of cases"),
        ([str(trained), "--data", str(tmp_path / "absent")], "absent is no folder of cases"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_run_on_one_case_draws_the_anchors_of_another_from_that(cases, tmp_path):
    run(tiny_settings(cases / "run_0", steps=1, **GEOMETRY), tmp_path / "one")
    assert main(["evaluate", str(tmp_path / "one"), "--data", str(cases / "run_1"), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["mean"]["volume/velocity"]
    surrogate, case = load_run(tmp_path / "one"), read_case_folder(cases / "run_1")
    encoded = replace(surrogate, context=None).encode(points=case.points, geometry=case.geometry)
    exact = case.points["volume"].fields["velocity"]
    error = encoded.predict({"volume": case.points["volume"].position})["volume_velocity"] - exact
    assert found["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
