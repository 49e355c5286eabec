"""Conditions that lie beside cases, in every form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.case_conditions import CaseConditions, read_conditions
from emmi_jax.data.conditions import CaseCondition
from tests.meshes.foam_cases import write_foam_case

NAMES = [f"run_{number}" for number in range(4)]
SPEED = [10.0, 20.0, 30.0, 40.0]
TABLE = ConditionSource(
    file="cases.csv", key="run", columns={"speed": "U_inf", "yaw": "beta"}, units={"speed": "m/s", "yaw": "deg"}
)


def read(root: Path, source: ConditionSource | None = None) -> CaseConditions:
    return read_conditions(root, NAMES, *([] if source is None else [source]))


def write_json(root: Path, **of_case: object) -> Path:
    for name, speed in zip(NAMES, SPEED, strict=True):
        (root / name).mkdir(parents=True, exist_ok=True)
        values = {"speed": {"value": speed, "unit": "m/s"}, "yaw": {"value": speed / 10, "unit": "deg"}}
        (root / name / "conditions.json").write_text(json.dumps(of_case.get(name, values)))
    return root


def values(found: CaseConditions, condition: str) -> list[float]:
    assert found.problems == {}
    return [found.by_case[name][condition].value for name in NAMES]


def test_a_file_in_each_case_gives_values_units_and_kinds(tmp_path):
    found = read(write_json(tmp_path))
    assert values(found, "speed") == SPEED
    assert found.by_case["run_1"] == {
        "speed": CaseCondition(20.0, "m/s"),
        "yaw": CaseCondition(2.0, "deg", "angle"),
    }


def test_names_choose_among_what_is_there(tmp_path):
    found = read(write_json(tmp_path), ConditionSource(names=("yaw",)))
    assert all(list(conditions) == ["yaw"] for conditions in found.by_case.values())
    assert read(tmp_path, ConditionSource(names=())).by_case == {name: {} for name in NAMES}


@pytest.mark.parametrize("cases", [NAMES, ["0", "1", "2", "3"], ["000", "001", "002", "003"]])
def test_a_table_gives_columns_by_names_or_numbers_of_cases(tmp_path, cases):
    rows = [f"{case}, {speed}, {speed / 10}, x" for case, speed in zip(cases, SPEED, strict=True)]
    (tmp_path / "cases.csv").write_text("\n".join(["run, U_inf, beta, note", *rows]))
    found = read(tmp_path, TABLE)
    assert values(found, "speed") == SPEED
    assert found.by_case["run_3"]["yaw"] == CaseCondition(4.0, "deg", "angle")
    (tmp_path / "conditions.json").write_text(json.dumps(TABLE.to_dict()))
    assert read(tmp_path) == found
    (tmp_path / "conditions.json").unlink()
    (tmp_path / "dataset.toml").write_text(
        "branches = {volume = {files = 'volume*.vtu', fields = {velocity = 'U'}}}\n"
        "conditions = {file = 'cases.csv', key = 'run', columns = {speed = 'U_inf', yaw = 'beta'}, "
        "units = {speed = 'm/s', yaw = 'deg'}}\n"
    )
    assert read(tmp_path) == found


def test_numbers_of_arrays_are_conditions(tmp_path):
    torch = pytest.importorskip("torch")
    for name, speed in zip(NAMES, SPEED, strict=True):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "inflow.npy", np.array([0.5, speed]))
        torch.save(torch.tensor([0.5, speed]), tmp_path / name / "inflow.pt")
        np.savez(tmp_path / name / "inflow.npz", mach=0.5, speed=speed)
        (tmp_path / name / "parameters.json").write_text(json.dumps({"v": speed, "name": "a"}))
    for file, column in (("inflow.npy", "1"), ("inflow.pt", "1"), ("inflow.npz", "speed"), ("parameters.json", "v")):
        source = ConditionSource(file=file, columns={"speed": column}, kinds={"speed": "logarithmic"})
        assert values(read(tmp_path, source), "speed") == SPEED


def test_the_velocity_on_the_inlet_of_a_case_gives_speed_and_angles(tmp_path):
    for name, speed in zip(NAMES, SPEED, strict=True):
        case = write_foam_case(tmp_path / name, times=("0", "100"))
        velocity = case / "100" / "U"
        text = velocity.read_text(encoding="latin-1")
        begin = text.index("inlet {")
        end = text.index("}", begin)
        inlet = f"inlet {{ type fixedValue; value uniform ({speed} {speed} 0); "
        velocity.write_text(text[:begin] + inlet + text[end:], encoding="latin-1")
    found = read(tmp_path, ConditionSource(inlet="inlet"))
    np.testing.assert_allclose(values(found, "speed"), np.sqrt(2) * np.array(SPEED))
    np.testing.assert_allclose(values(found, "yaw"), 45)
    assert found.by_case["run_0"]["yaw"][1:] == ("deg", "angle")
    problems = read(tmp_path, ConditionSource(inlet="in")).problems
    assert all("no patch 'in', it has inlet, outlet" in problem for problem in problems.values())
    at_start = read_conditions(tmp_path, NAMES, ConditionSource(inlet="inlet"), FoamSelection(time="0"))
    assert "patch 'inlet' has no uniform velocity" in at_start.problems["run_0"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"speed": 5.0}, "no condition 'yaw'"),
        ({"speed": 5.0, "yaw": 1.0, "mach": 0.1}, "an extra condition 'mach'"),
        ({"speed": 5.0, "yaw": float("nan")}, "conditions.json"),
        ({"speed": "fast", "yaw": 1.0}, "the condition 'speed' must be a finite number, got 'fast'"),
        ({"speed": {"value": 1.0, "units": "m"}, "yaw": 1.0}, "must be a number, or its value, unit and kind"),
        ({"speed": {"value": 0.0, "kind": "logarithmic"}, "yaw": 1.0}, "'speed' is logarithmic and must be positive"),
        ([5.0, 1.0], "expected numbers by condition, got [5.0, 1.0]"),
        ({"speed=": 5.0}, "a condition's name must be a non-empty string"),
    ],
)
def test_a_broken_case_is_told_apart_from_the_others(tmp_path, content, problem):
    found = read(write_json(tmp_path, run_2=content))
    assert list(found.problems) == ["run_2"]
    assert problem in found.problems["run_2"]
    assert sorted(found.by_case) == ["run_0", "run_1", "run_3"]


def test_rows_that_a_table_lacks_or_has_twice_and_its_nan_are_problems_of_their_cases(tmp_path):
    (tmp_path / "cases.csv").write_text("run,U_inf,beta\nrun_0,1,2\nrun_1,1,2\nrun_1,1,3\nrun_2,nan,2\n")
    problems = read(tmp_path, TABLE).problems
    assert problems["run_1"] == "2 rows in cases.csv"
    assert problems["run_3"] == "no rows in cases.csv"
    assert problems["run_2"] == "the condition 'speed' must be a finite number, got nan"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "cases.csv: no such file"),
        ("", "not comma-separated values"),
        ("run,U\nrun_0,1\n", "no column 'U_inf', 'beta', it has run, U"),
        ("run,U_inf,beta,beta\nrun_0,1,2,3\n", "several columns 'beta'"),
        ("run,U_inf,beta\nrun_0,1,5,2,5\n", "a row has more cells than the 3 of its head: run_0,1,5,2,5"),
    ],
)
def test_an_unusable_table_costs_one_line(tmp_path, table, message):
    if table is not None:
        (tmp_path / "cases.csv").write_text(table)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path, TABLE)


def test_cases_of_the_same_number_never_share_a_row(tmp_path):
    (tmp_path / "cases.csv").write_text("run,U_inf,beta\n1,10,0\n2,20,0\n")
    found = read_conditions(tmp_path, ["run_1_v2", "run_2_v2", "run_1"], TABLE)
    assert found.problems == {
        "run_1_v2": "run_2_v2 has the number 2 too: 'run' must be the names of the cases",
        "run_2_v2": "run_1_v2 has the number 2 too: 'run' must be the names of the cases",
    }
    assert found.by_case["run_1"]["speed"].value == 10


def test_a_table_needs_columns_and_kinds_are_known():
    with pytest.raises(ValueError, match=r"cases\.csv: columns must say which column is which condition"):
        ConditionSource(file="cases.csv")
    with pytest.raises(ValueError, match="the kind of 'speed' must be one of plain, logarithmic, angle"):
        ConditionSource(kinds={"speed": "log"})


def test_conditions_stand_in_the_names_of_cases(tmp_path):
    source = ConditionSource(
        pattern=r"_U(?P<speed>[0-9.]+)_a(?P<angle>-?[0-9.]+)", units={"speed": "m/s", "angle": "deg"}
    )
    names = ["foil_U30.5_a-2_3412", "foil_U40_a5.25", "foil"]
    found = read_conditions(tmp_path, names, source)
    assert found.by_case[names[0]] == {
        "speed": CaseCondition(30.5, "m/s"),
        "angle": CaseCondition(-2.0, "deg", "angle"),
    }
    assert found.by_case[names[1]]["angle"].value == 5.25
    assert found.problems == {"foil": f"the name 'foil' does not match {source.pattern!r}"}
    for pattern, message in (
        ("_U(", "must be a regular expression, got '_U\\('"),
        ("_U[0-9]", "must have a named group"),
    ):
        with pytest.raises(ValueError, match=message):
            ConditionSource(pattern=pattern)
