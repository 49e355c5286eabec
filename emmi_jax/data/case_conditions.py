"""The conditions that lie beside cases: in JSON, tables, arrays, or on the inlet of OpenFOAM cases."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.config.checks import check_name
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.conditions import CaseCondition
from emmi_jax.data.mesh_dataset import DATASET_FILE, read_dataset
from emmi_jax.deploy.conditions import KINDS
from emmi_jax.files.atomic import read_json, read_json_object
from emmi_jax.files.npy import map_array
from emmi_jax.files.npz import read_arrays
from emmi_jax.files.pt import load_torch_tensor
from emmi_jax.meshes.openfoam_inlet import patch_velocity

CONDITIONS_FILE = "conditions.json"
BESIDE_CASES = ConditionSource()
"""Content of `conditions.json`, in the folder of each case or in that of all of them."""

_ANGLES = ("deg", "degree", "degrees", "°", "rad", "radian", "radians")
_INLET = {"speed": "m/s", "yaw": "deg", "pitch": "deg"}


class CaseConditions(NamedTuple):
    """The conditions of cases, the same for each, and what is wrong with those that are left out; both by case."""

    by_case: Mapping[str, Mapping[str, CaseCondition]]
    problems: Mapping[str, str]


def condition_source(root: Path, given: ConditionSource, default: ConditionSource | None = None) -> ConditionSource:
    """Returns where the conditions of the cases of a folder are.

    That is what is given, or what `dataset.toml` or `conditions.json` in the folder say, or else the default.

    Raises:
        ValueError: The file is not a `ConditionSource`.
    """
    file = root / CONDITIONS_FILE
    if (given.file, given.inlet, given.pattern) != (None, None, None):
        return given
    dataset = read_dataset(root) if (root / DATASET_FILE).is_file() else None
    if dataset is not None and dataset.conditions != BESIDE_CASES:
        return dataset.conditions.with_names(given.names)
    if not file.is_file():
        is_there = default is not None and not (default.is_table and not (root / str(default.file)).is_file())
        return default.with_names(given.names) if default is not None and is_there else given
    values = read_json_object(file)
    try:
        source = ConditionSource.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    return source.with_names(given.names)


def read_conditions(
    root: Path,
    names: Sequence[str],
    source: ConditionSource = BESIDE_CASES,
    foam: FoamSelection = DEFAULT_SELECTION,
    default: ConditionSource | None = None,
) -> CaseConditions:
    """Reads the conditions of cases.

    Args:
        root: The folder of the cases.
        names: Their names.
        source: Where they are, see `condition_source`.
        foam: The time of OpenFOAM cases.
        default: Where a published data set has them.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: The table or the source is unusable; what is wrong with single cases is among the problems.
    """
    if source.names == ():
        return CaseConditions({name: {} for name in names}, {})
    source = condition_source(root, source, default)
    read = _table(root, names, source) if source.is_table else _file_reader(root, source)
    values: dict[str, dict[str, CaseCondition]] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            given = read(name) | _of_name(name, source)
            of_case = {condition: _condition(condition, value, source) for condition, value in given.items()}
            if source.inlet is not None:
                of_case |= _of_inlet(root / name, source.inlet, foam)
            values[name] = of_case
        except (OSError, ValueError) as error:
            problems[name] = str(error).splitlines()[0]
    return agreed(values, source.names, problems)


def agreed(
    values: Mapping[str, Mapping[str, CaseCondition]],
    names: Sequence[str] | None,
    problems: Mapping[str, str] = MappingProxyType({}),
) -> CaseConditions:
    """Returns the conditions of cases that have the same.

    Args:
        values: The conditions by case.
        names: Those that are taken; None for all of them.
        problems: What is wrong with other cases.
    """
    problems, expected = dict(problems), _usual(list(values.values())) if names is None else names
    for name, of_case in values.items():
        missing = [condition for condition in expected if condition not in of_case]
        extra = [condition for condition in of_case if condition not in expected] if names is None else []
        for what, which in (("no", missing), ("an extra", extra)):
            if which:
                problems[name] = f"{what} condition {', '.join(map(repr, which))}"
    by_case = {n: {c: of_case[c] for c in expected} for n, of_case in values.items() if n not in problems}
    return CaseConditions(by_case, problems)


def _usual(by_case: Sequence[Mapping[str, CaseCondition]]) -> list[str]:
    """Returns the conditions that at least half of the cases have."""
    counts = Counter(name for of_case in by_case for name in of_case)
    return sorted(name for name, count in counts.items() if 2 * count >= len(by_case))


def _file_reader(root: Path, source: ConditionSource) -> Callable[[str], dict[str, Any]]:
    """Returns what reads the values of a case from a file in its folder."""

    def read(name: str) -> dict[str, Any]:
        file = root / name / (source.file or CONDITIONS_FILE)
        if source.file is None and not file.is_file():
            return {}
        if not file.is_file():
            raise ValueError(f"no {source.file}")
        match file.suffix.lower():
            case ".json":
                return _of_json(file, source)
            case ".npz":
                arrays: Mapping[str, Any] = read_arrays(file)
            case ".npy":
                arrays = {"": map_array(file)}
            case _:
                arrays = {"": load_torch_tensor(file)}
        columns = source.columns or {condition: condition for condition in arrays}
        return {condition: _of_array(file, arrays, column) for condition, column in columns.items()}

    return read


def _of_name(name: str, source: ConditionSource) -> dict[str, Any]:
    """Returns the values in the name of a case."""
    if source.pattern is None:
        return {}
    if (match := re.search(source.pattern, name)) is None:
        raise ValueError(f"the name {name!r} does not match {source.pattern!r}")
    return {condition: _number(text or "") for condition, text in match.groupdict().items()}


def _of_json(file: Path, source: ConditionSource) -> dict[str, Any]:
    values = read_json(file)
    if not isinstance(values, Mapping):
        raise ValueError(f"{file.name}: expected numbers by condition, got {values!r:.80}")
    if not source.columns:
        return dict(values)
    if missing := [key for key in source.columns.values() if key not in values]:
        raise ValueError(f"{file.name}: no {', '.join(map(repr, missing))}")
    return {condition: values[key] for condition, key in source.columns.items()}


def _of_array(file: Path, arrays: Mapping[str, Any], column: str) -> float:
    """Returns the array of a name, of one number; or a number of the only array."""
    number = int(column) if column.isdigit() else 0
    array = arrays.get(column, next(iter(arrays.values())) if len(arrays) == 1 else None)
    flat = np.ravel(np.asarray(array)) if array is not None else np.zeros(0)
    if number >= len(flat) or (not column.isdigit() and len(flat) != 1):
        raise ValueError(f"{file.name}: expected one number {column!r}, it holds {len(flat)} numbers")
    return float(flat[number])


def _table(root: Path, names: Sequence[str], source: ConditionSource) -> Callable[[str], dict[str, Any]]:
    """Returns what finds the values of a case in a table."""
    file = root / str(source.file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            head, *lines = (row for row in csv.reader(text, skipinitialspace=True) if any(map(str.strip, row)))
    except (csv.Error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{file}: not comma-separated values: {error}") from None
    head = [cell.strip() for cell in head]
    key = head[0] if source.key is None else source.key
    columns = (key, *source.columns.values())
    if absent := [column for column in columns if column not in head]:
        raise ValueError(f"{file}: no column {', '.join(map(repr, absent))}, it has {', '.join(head)}")
    if twice := [column for column in columns if head.count(column) > 1]:
        raise ValueError(f"{file}: several columns {twice[0]!r}, it has {', '.join(head)}")
    rows: dict[str, list[list[str]]] = {}
    for line in lines:
        cells = [cell.strip() for cell in line] + [""] * len(head)
        if any(cells[len(head) :]):
            raise ValueError(f"{file}: a row has more cells than the {len(head)} of its head: {','.join(line):.80}")
        rows.setdefault(cells[head.index(key)], []).append(cells)
    by_number = all(case.isdigit() for case in rows)
    labels = {name: _number_in(name) if by_number else name for name in names}

    def read(name: str) -> dict[str, Any]:
        label = labels[name]
        if twins := [other for other in names if labels[other] == label and other != name]:
            raise ValueError(f"{twins[0]} has the number {label} too: {key!r} must be the names of the cases")
        cases = [case for case in rows if (str(int(case)) if by_number else case) == label]
        chosen = [row for case in cases for row in rows[case]]
        if len(chosen) != 1:
            raise ValueError(f"{len(chosen) or 'no'} rows in {file.name}")
        return {condition: _number(chosen[0][head.index(column)]) for condition, column in source.columns.items()}

    return read


def _number_in(name: str) -> str:
    """Returns the last number in the name of a case, without zeros before it; the name itself if there is none."""
    digits = re.findall(r"\d+", name)
    return str(int(digits[-1])) if digits else name


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _condition(name: str, value: Any, source: ConditionSource) -> CaseCondition:
    """Returns a condition of a number, or of its value, unit and kind."""
    check_name("a condition's name", name, "/,=")
    given = value if isinstance(value, Mapping) else {"value": value}
    number, unit, kind = given.get("value"), source.units.get(name, given.get("unit")), given.get("kind")
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"the condition {name!r} must be a finite number, got {number!r:.40}")
    kind = source.kinds.get(name, kind) or ("angle" if unit in _ANGLES else "plain")
    if kind not in KINDS or not isinstance(unit, str | None) or not set(given) <= {"value", "unit", "kind"}:
        raise ValueError(f"the condition {name!r} must be a number, or its value, unit and kind, got {value!r:.80}")
    if kind == "logarithmic" and number <= 0:
        raise ValueError(f"the condition {name!r} is logarithmic and must be positive, got {number:g}")
    return CaseCondition(float(number), unit, kind)


def _of_inlet(path: Path, patch: str, foam: FoamSelection) -> dict[str, CaseCondition]:
    """Returns speed and angles of the velocity on a patch; the angles are 0 along x, yaw is towards y, pitch to z."""
    u, v, w = patch_velocity(path, patch, foam)
    values = {
        "speed": float(np.sqrt(u * u + v * v + w * w)),
        "yaw": math.degrees(math.atan2(v, u)),
        "pitch": math.degrees(math.atan2(w, math.hypot(u, v))),
    }
    kinds = {name: "plain" if name == "speed" else "angle" for name in values}
    return {name: CaseCondition(value, _INLET[name], kinds[name]) for name, value in values.items()}
