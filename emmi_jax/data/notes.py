"""Notes on cases before training on them: boxes that do not fit, and what was left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from emmi_jax.data.cases import Case
from emmi_jax.data.statistics import DataMoments
from emmi_jax.points import Array, row_chunks

VOLUME = "volume"

_MOST_RATIO = 10.0
_MOST_VOLUME_RATIO = 100.0
"""A volume around a body is larger than the body; 24 times as large in DrivAerML."""

_MOST_ROUNDING = 0.01


MASK_ADVICE = "mask_nan = true leaves such points out"


def unknown_input(where: str, branch: str, name: str, number: int) -> str:
    """Says that an input of the model is unknown."""
    return f"{where}: the feature {name!r} of {branch!r} is NaN at {number:,} points: only fields may be unknown"


def masked(moments: DataMoments) -> list[str]:
    """Returns how many values of each field are unknown, one line per field that has such."""
    plain = {f"{branch}/{name}": pair[0] for branch, of in moments.fields.items() for name, pair in of.items()}
    return [
        f"{name} is NaN at {m.num_not_finite:,} of {m.count + m.num_not_finite:,} points"
        for name, m in plain.items()
        if m.num_not_finite
    ]


class Box(NamedTuple):
    """The box of points: low and high corner, [n] each."""

    low: Array
    high: Array

    @classmethod
    def of(cls, position: Array) -> Box:
        """Returns the box of points [N, n]."""
        columns = (np.array(chunk.T, order="C") for chunk in row_chunks(position))  # many times as fast as across rows
        chunks = [(chunk.min(axis=1), chunk.max(axis=1)) for chunk in columns]
        low, high = (np.asarray(ends, np.float64) for ends in zip(*chunks, strict=True))
        return cls(low.min(axis=0), high.max(axis=0))

    @property
    def size(self) -> float:
        """The longest side."""
        return float(np.max(self.high - self.low))


def case_boxes(case: Case) -> dict[str, Box]:
    """Returns the boxes of the geometry and the branches of a case that have points."""
    parts = {} if case.geometry is None else {"geometry": case.geometry}
    parts |= {branch: points.position for branch, points in case.points.items()}
    return {name: Box.of(position) for name, position in parts.items() if len(position)}


def box_warnings(boxes: Mapping[str, Box]) -> list[str]:
    """Returns a line for every two boxes that do not overlap, or whose sizes differ as units do.

    That is by more than 10 times, or more than 100 times for a volume around the other.

    Args:
        boxes: Boxes by name; those named `volume` may be larger.
    """
    lines = []
    for (one, first), (other, second) in combinations(boxes.items(), 2):
        (small, less), (large, more) = sorted(((one, first), (other, second)), key=lambda item: item[1].size)
        ratio = more.size / less.size if less.size else np.inf
        gap = np.maximum(first.low - second.high, second.low - first.high).max()
        is_around = large.endswith(VOLUME) and not small.endswith(VOLUME)
        if ratio > (_MOST_VOLUME_RATIO if is_around else _MOST_RATIO):
            lines.append(
                f"the box of the {large} is {ratio:,.4g} times as large as that of the {small} ({more.size:.4g} and "
                f"{less.size:.4g}): check their units"
            )
        elif gap > 0:
            lines.append(f"the boxes of the {one} and the {other} do not overlap: check their units and origins")
    return lines


def unlike_cases(boxes: Mapping[str, Box]) -> list[str]:
    """Returns a line for each case whose box does not overlap with that of the first, or is of another size."""
    names = list(boxes)
    lines = []
    for name in names[1:]:
        pair = {f"case {names[0]}": boxes[names[0]], f"case {name}": boxes[name]}
        lines += box_warnings(pair)
    return gathered({str(number): [line] for number, line in enumerate(lines)})


def moments_box(moments: DataMoments) -> Box:
    """Returns the box of all positions of a case."""
    return Box(moments.position.minimum, moments.position.maximum)


def rounding_warnings(moments: DataMoments, dtype: str) -> Iterator[str]:
    """Yields a line for each field that varies hardly more than its type resolves."""
    for branch, fields in moments.fields.items():
        for name, (plain, _) in fields.items():
            largest = np.maximum(np.abs(plain.minimum), np.abs(plain.maximum))
            spacing = np.spacing(largest.astype(dtype)).astype(np.float64)
            share = np.where(plain.std > 0, spacing / np.maximum(plain.std, 1e-300), 0.0)  # one of U is 0 in a plane
            if np.any(share > _MOST_ROUNDING):
                worst = int(np.argmax(share))
                yield (
                    f"{branch}/{name} is stored as {dtype}, which rounds it by {spacing[worst]:.2g}, "
                    f"{share[worst]:.2g} of its standard deviation"
                )


def gathered(lines: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the lines of many cases, those that differ in numbers alone as one."""
    kinds: dict[str, list[str]] = {}
    for of_case in lines.values():
        for kind, line in {re.sub(r"\d[\d.,e+-]*", "0", line): line for line in of_case}.items():
            kinds.setdefault(kind, []).append(line)
    return [
        alike[0] + (f" (and the like {len(alike) - 1:,} more times)" if len(alike) > 1 else "")
        for alike in kinds.values()
    ]
