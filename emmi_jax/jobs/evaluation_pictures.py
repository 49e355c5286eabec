"""The pictures of an evaluation: predicted against known, point by point and case by case."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emmi_jax.data.cases import Case
from emmi_jax.data.metrics import known_rows
from emmi_jax.jobs.evaluation_forces import NAMES, ForceMetrics
from emmi_jax.plots.parity import Coefficient, draw_coefficients, draw_parity
from emmi_jax.points import Array, Fields

_NUM_POINTS = 200_000


class ParityPoints:
    """Evenly spaced points of all cases, few enough to keep.

    Args:
        num_cases: How many cases will be added.
    """

    def __init__(self, num_cases: int) -> None:
        self._num_points = max(_NUM_POINTS // num_cases, 1)
        self._pairs: dict[tuple[str, str], list[tuple[Array, Array]]] = {}

    def add(self, predicted: Fields, case: Case) -> None:
        """Keeps points of a case."""
        for branch, fields in predicted.items():
            for name, values in fields.items():
                known = case.points[branch].fields[name]
                predicted_at, known_at = known_rows(known, values, known)
                rows = slice(None, None, -(-len(known_at) // self._num_points))
                pair = predicted_at[rows].copy(), np.array(known_at[rows])
                self._pairs.setdefault((branch, name), []).append(pair)

    def draw(self, stem: Path, title: str) -> list[Path]:
        """Draws a picture of every field, `<stem>_<branch>_<field>.png`, and returns their paths."""
        paths = []
        for (branch, name), pairs in self._pairs.items():
            predicted, known = (np.concatenate(values) for values in zip(*pairs, strict=True))
            path = stem.with_name(f"{stem.name}_{branch}_{name}.png")
            label = name.replace("_", " ")
            paths.append(draw_parity(path, f"{branch} {label}, {title}", label, predicted, known, truth="reference"))
        return paths


def draw_forces(path: Path, forces: ForceMetrics) -> Path:
    """Draws the predicted coefficients of each case over the known ones, and returns the path."""
    return draw_coefficients(
        path, [Coefficient(forces.labels[name], forces.predicted[name], forces.known[name]) for name in NAMES]
    )
