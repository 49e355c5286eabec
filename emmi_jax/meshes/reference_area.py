"""Single numbers in tables that come with a case, such as the reference area in DrivAerML's `geo_ref_1.csv`."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

AREA_NAMES = ("aRef", "area", "referenceArea", "frontalArea")


def read_reference_area(path: Path, names: Sequence[str] = AREA_NAMES) -> float:
    """Reads a reference area.

    Args:
        path: A table of comma-separated values. The area has one of the names, whatever the case, blanks,
            underscores and unit in brackets; its number is below the name, or else to the right of it.
        names: The names.

    Returns:
        The area in the squared unit of the mesh.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not text, or does not hold a positive area; the message says what it holds.
    """
    area = read_number(path, names, "no reference area")
    if not 0 < area < math.inf:
        raise ValueError(f"{path}: the reference area must be positive, got {area}")
    return area


def read_number(path: Path, names: Sequence[str], problem: str) -> float:
    """Reads the number below a name in a table, or else to the right of it.

    Args:
        path: A table of comma-separated values.
        names: The names to look for, whatever the case, blanks, underscores and unit in brackets.
        problem: What the message says where none of them is found.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not text, or does not hold such a number; the message says what it holds.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, skipinitialspace=True) if any(map(str.strip, row))]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not comma-separated values: {error}") from None
    known = set(map(_plain, names))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if _plain(cell) not in known:
                continue
            candidates = [r[k] for r, k in ((rows[i + 1] if i + 1 < len(rows) else [], j), (row, j + 1)) if k < len(r)]
            numbers = [number for number in map(_number, candidates) if number is not None]
            if not numbers:
                raise ValueError(f"{path}: {cell.strip()!r} must be a number, got {candidates or 'nothing'}")
            return numbers[0]
    head = ", ".join(cell.strip() for cell in rows[0])[:80] if rows else "nothing"
    raise ValueError(f"{path}: {problem}: expected a column {' or '.join(names)}, got {head}")


def _plain(name: str) -> str:
    """Drops case, blanks, underscores and a unit in brackets."""
    return re.sub(r"[\[(].*|[^a-z]", "", name.lower())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
