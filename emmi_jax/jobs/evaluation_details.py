"""Details of an evaluation beside means over points and cases: weighted errors, components, intervals, conditions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from emmi_jax.data.cases import Case
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.metrics import (
    Metrics,
    field_metrics,
    known_rows,
    mean_interval,
    mean_metrics,
    weighted_relative_l2,
)
from emmi_jax.deploy.conditions import within_turn
from emmi_jax.files.atomic import JsonDict
from emmi_jax.jobs.progress import new_table
from emmi_jax.points import Array, Fields, PointSet, is_unknown

NUM_BINS = 4
LEVEL = 0.95
_AXES = "xyz"


class CaseDetails:
    """Gathers the details of cases, one after another.

    Args:
        scales: The conditions of the run.

    Attributes:
        masked: How many points are left out, because a field is NaN there, by case and field.
    """

    def __init__(self, scales: Mapping[str, ConditionScale]) -> None:
        self._scales = scales
        self.masked: dict[str, dict[str, int]] = {}
        self._weighted: dict[str, dict[str, Metrics]] = {}
        self._components: dict[str, dict[str, Metrics]] = {}
        self._conditions: dict[str, Mapping[str, float]] = {}

    def add(self, name: str, predicted: Fields, case: Case) -> None:
        """Adds a draw of a case; only the first of a case counts."""
        if name in self._weighted:
            return
        self._conditions[name] = case.condition or {}
        self._weighted[name], self._components[name] = {}, {}
        for branch, fields in predicted.items():
            points = case.points[branch]
            sizes = _cell_sizes(points)
            for field, values in fields.items():
                known = points.fields[field]
                if num_unknown := int(np.count_nonzero(is_unknown(known))):
                    self.masked.setdefault(name, {})[f"{branch}/{field}"] = num_unknown
                if sizes is not None:
                    error = weighted_relative_l2(values, known, sizes)
                    self._weighted[name][f"{branch}/{field}"] = {"weighted_relative_l2": error}
                if values.shape[1] == len(_AXES):
                    at_known, exact = known_rows(known, values, known)
                    self._components[name] |= {
                        f"{branch}/{field} {axis}": field_metrics(at_known[:, i : i + 1], exact[:, i : i + 1])
                        for i, axis in enumerate(_AXES)
                    }

    def notes(self, name: str) -> list[str]:
        """Returns the fields of a case that are NaN somewhere, a line each."""
        return [f"{name}: {field} is NaN at {number:,} points" for field, number in self.masked.get(name, {}).items()]

    def to_dict(self, by_case: Mapping[str, Mapping[str, Metrics]]) -> JsonDict:
        """Returns all as JSON has it.

        Args:
            by_case: The metrics by case and field.
        """
        fields = next(iter(by_case.values()))
        content: JsonDict = {
            "intervals": {
                field: mean_interval([metrics[field]["relative_l2"] for metrics in by_case.values()], LEVEL)
                for field in fields
            }
        }
        if all(self._weighted.values()):
            content["weighted"] = {"mean": mean_metrics(list(self._weighted.values())), "cases": self._weighted}
        if any(self._components.values()):
            content["components"] = mean_metrics(list(self._components.values()))
        if self.masked:
            content["masked"] = self.masked
        if self._scales:
            content["conditions"] = {name: self._bins(name, by_case) for name in self._scales}
        return content

    def tables(self, content: Mapping[str, Any]) -> list[Table]:
        """Returns the tables of what `to_dict` returns: errors by bins of each condition."""
        tables = []
        for name, bins in content.get("conditions", {}).items():
            unit = self._scales[name].unit
            columns = [f"{b['low']:.4g} … {b['high']:.4g}" for b in bins]
            rows = [[field, *(f"{b['relative_l2'][field]:#.4g}" for b in bins)] for field in bins[0]["relative_l2"]]
            rows.append(["cases", *(str(b["cases"]) for b in bins)])
            title = f"Relative L2 by {name}" + ("" if unit is None else f" [{unit}]")
            tables.append(new_table(title, ["field", *columns], rows))
        return tables

    def _bins(self, name: str, by_case: Mapping[str, Mapping[str, Metrics]]) -> list[JsonDict]:
        """Returns the mean errors of cases by equal parts of the range of a condition; empty parts are left out."""
        scale = self._scales[name]
        values = {case: float(within_turn(scale, self._conditions[case][name])) for case in by_case}
        edges = np.linspace(min(values.values()), max(values.values()), NUM_BINS + 1)
        if edges[0] == edges[-1]:
            edges = edges[[0, -1]]
        bins = []
        for number, (low, high) in enumerate(itertools.pairwise(edges)):
            is_last = number + 2 == len(edges)
            chosen = [case for case, value in values.items() if low <= value < high or (is_last and value == high)]
            if chosen:
                errors = mean_metrics([by_case[case] for case in chosen])
                of_bin = {field: metrics["relative_l2"] for field, metrics in errors.items()}
                bins.append({"low": float(low), "high": float(high), "cases": len(chosen), "relative_l2": of_bin})
        return bins


def _cell_sizes(points: PointSet) -> NDArray[np.float64] | None:
    """Returns the sizes of the cells [N]: areas or volumes; None where they are unknown."""
    if points.area_vector is not None:
        return np.linalg.norm(np.asarray(points.area_vector, np.float64), axis=1)
    sizes: Array | None = points.cell_size
    return None if sizes is None else np.asarray(sizes, np.float64)
