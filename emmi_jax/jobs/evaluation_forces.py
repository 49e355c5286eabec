"""The force coefficients of whole cases: predicted, integrated from the known fields, and written by a solver."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from rich.table import Table

from emmi_jax.config.jobs import ForceOptions
from emmi_jax.data.cases import Case
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.metrics import coefficient_metrics
from emmi_jax.data.notes import gathered
from emmi_jax.deploy.spread import Spread
from emmi_jax.files.atomic import JsonDict
from emmi_jax.inference.meshes import coefficient_spreads
from emmi_jax.jobs.progress import new_table
from emmi_jax.meshes.forces import (
    DRAG_DIRECTION,
    LIFT_DIRECTION,
    ForceReference,
    ForceSurface,
    check_direction,
    force_fields,
)
from emmi_jax.points import Array, Fields, is_unknown

NAMES = ("cd", "cl")
_PAIRS = (("predicted", "reference"), ("predicted", "solver"), ("reference", "solver"))


def force_references(
    options: ForceOptions, known: Mapping[str, KnownForces | None]
) -> dict[str, ForceReference] | None:
    """Returns what the forces of each case are divided by; None if no option and no solver says the speed.

    Args:
        options: What is asked for.
        known: The solver's forces by case.

    Raises:
        ValueError: An option is impossible, or cannot be used without another; or a solver's coefficients have an
            unknown reference area.
    """
    for name in ("drag_direction", "lift_direction"):
        check_direction(name, getattr(options, name))
    speeds = {name: options.speed or (None if of_case is None else of_case.speed) for name, of_case in known.items()}
    if (options.area, options.density) != (None, None) and None in speeds.values():
        raise ValueError("forces need --speed, the speed of the stream")
    return None if None in speeds.values() else {name: _reference(options, name, known[name]) for name in known}


def _reference(options: ForceOptions, name: str, known: KnownForces | None) -> ForceReference:
    area, density = options.area, options.density
    if known is not None:
        if known.area is None and area is None:
            raise ValueError(f"{name}: the solver's coefficients have an unknown reference area: give it by --area")
        area, density = area or known.area, density or known.density
    speed = options.speed or (0.0 if known is None else known.speed or 0.0)
    return ForceReference(area=1.0 if area is None else area, speed=speed, density=1.0 if density is None else density)


class CaseForces:
    """The coefficients of one case, for several draws of anchors.

    Args:
        options: The directions.
        reference: What forces are divided by.
        case: The case, with area vectors of its surface.
        known: What a solver wrote.
        fields: Names of the fields that are predicted on the surface.

    Raises:
        ValueError: Nothing can be integrated.
    """

    def __init__(
        self,
        options: ForceOptions,
        reference: ForceReference,
        case: Case,
        known: KnownForces | None,
        fields: Collection[str],
    ) -> None:
        self.names = names = force_fields(fields)
        vector = case.points[GEOMETRY_BRANCH].area_vector if GEOMETRY_BRANCH in case.points else None
        if vector is None:
            raise ValueError(
                "forces need a surface of polygons with fields in its cells, or a store that was prepared from one"
            )
        self.reference, exact = reference, {name: case.points[GEOMETRY_BRANCH].fields[name] for name in names}
        if unknown := [name for name, values in exact.items() if is_unknown(values).any()]:
            raise ValueError(f"forces need all of the {unknown[0]} of the surface, some values are NaN")
        area = np.linalg.norm(np.asarray(vector, np.float64), axis=1)
        self._surface = ForceSurface(
            normal=vector / np.where(area > 0, area, 1.0)[:, None],
            area=area,
            reference=reference,
            drag_direction=options.drag_direction,
            lift_direction=options.lift_direction,
            patches=case.patches,
        )
        self.known = {"reference": self._surface.coefficients(exact)}
        self.known_patches = self._surface.by_patch(exact)
        if known is not None:
            ratio = 1.0 if known.area is None else known.area / reference.area
            self.known["solver"] = {"cd": ratio * known.cd, "cl": ratio * known.cl}
        self.notes = self._surface.notes(exact)
        directions = (options.drag_direction, DRAG_DIRECTION), (options.lift_direction, LIFT_DIRECTION)
        self.has_usual_directions = all(np.array_equal(given, usual) for given, usual in directions)
        self.predicted: list[dict[str, float]] = []
        self.predicted_patches: list[dict[str, dict[str, float]]] = []

    def add(self, predicted: Mapping[str, Array]) -> None:
        """Integrates the predicted fields [N, F] of the surface."""
        self.predicted.append(self._surface.coefficients(predicted))
        self.predicted_patches.append(self._surface.by_patch(predicted))

    def spreads(self, values: Mapping[str, Array]) -> dict[str, Spread]:
        """Returns the coefficients of fields [members, draws, N, F] of the surface."""
        return coefficient_spreads(values, self._surface.coefficients)

    def patches(self) -> JsonDict:
        """Returns the coefficients by patch and name, predicted ones as means over the draws, and known ones."""
        return {
            patch: {
                name: {"predicted": _mean([draw[patch][name] for draw in self.predicted_patches]), "reference": value}
                for name, value in of_patch.items()
            }
            for patch, of_patch in self.known_patches.items()
        }


class ForceEvaluation:
    """Collects the coefficients of several cases, if there is anything to collect.

    Args:
        options: What forces are divided by. If they are the default, cases without forces are no error.
        known: The solver's forces by case.
        fields: Number of channels by branch and field of the model.

    Raises:
        ValueError: See `force_references`.
    """

    def __init__(
        self,
        options: ForceOptions,
        known: Mapping[str, KnownForces | None],
        fields: Mapping[str, Mapping[str, int]],
    ) -> None:
        self._options, self._known, self._fields = options, known, fields.get(GEOMETRY_BRANCH, {})
        self._references = force_references(options, known)
        self.cases: dict[str, CaseForces] = {}
        self.problem: str | None = None

    def begin(self, name: str, case: Case) -> bool:
        """Integrates the known fields of a case; returns whether there are forces.

        Raises:
            ValueError: That is impossible, although the options ask for it.
        """
        if self._references is None:
            return False
        try:
            forces = CaseForces(self._options, self._references[name], case, self._known[name], self._fields)
        except ValueError as error:
            if self._options.speed is not None:
                raise ValueError(f"{name}: {error}") from None
            self.problem, self._references, self.cases = f"{name}: {error}", None, {}
            return False
        self.cases[name] = forces
        return True

    def add(self, name: str, predicted: Fields) -> None:
        """Integrates the fields that one draw of anchors predicts for a case."""
        if name in self.cases:
            self.cases[name].add(predicted[GEOMETRY_BRANCH])

    def metrics(self) -> ForceMetrics | None:
        """Returns how far the coefficients are from the known ones; None if there are none."""
        return ForceMetrics(self.cases, self._options) if self.cases else None


class ForceMetrics:
    """Errors of the coefficients of several cases.

    Args:
        cases: The coefficients by case, each for the same number of draws.
        options: The directions.

    Attributes:
        notes: Along which directions pressure gives no force, a line each.
    """

    def __init__(self, cases: Mapping[str, CaseForces], options: ForceOptions) -> None:
        self._only = " (pressure only)" if any(len(case.names) == 1 for case in cases.values()) else ""
        self.notes = gathered({name: case.notes for name, case in cases.items()})
        self._options, self._references = options, {name: case.reference for name, case in cases.items()}
        self._patches = {name: case.patches() for name, case in cases.items()}
        is_over_area = any(case.reference.area != 1 for case in cases.values())
        self.labels = dict(zip(NAMES, ("Cd", "Cl") if is_over_area else ("CdA, m²", "ClA, m²"), strict=True))
        self.kinds = [kind for kind in ("reference", "solver") if all(kind in case.known for case in cases.values())]
        of_draws = [case.predicted for case in cases.values()]
        self.predicted = {name: np.array([[draw[name] for draw in draws] for draws in of_draws]) for name in NAMES}
        self.known = {
            name: {kind: np.array([case.known[kind][name] for case in cases.values()]) for kind in self.kinds}
            for name in NAMES
        }
        self.metrics = {
            name: {f"{a}_against_{b}": self._compare(name, a, b) for a, b in self._pairs()} for name in NAMES
        }

    def _pairs(self) -> list[tuple[str, str]]:
        return [pair for pair in _PAIRS if set(pair) <= {"predicted", *self.kinds}]

    def _compare(self, name: str, kind: str, other: str) -> dict[str, float | None]:
        """Compares draw by draw, and returns the mean of every metric over the draws."""
        values = self.predicted[name].T if kind == "predicted" else self.known[name][kind][None]
        of_draws = [coefficient_metrics(draw, self.known[name][other]) for draw in values]
        return {metric: _mean([draw[metric] for draw in of_draws]) for metric in of_draws[0]}

    def to_dict(self) -> JsonDict:
        """Returns everything as JSON has it; the predicted coefficients are means over the draws."""
        cases: dict[str, JsonDict] = {}
        for row, (name, reference) in enumerate(self._references.items()):
            cases[name] = {"area": reference.area, "speed": reference.speed, "density": reference.density}
            cases[name] |= {coefficient: self._values(coefficient, row) for coefficient in NAMES}
            cases[name] |= {"patches": self._patches[name]} if self._patches[name] else {}
        directions = {"drag_direction": self._options.drag_direction, "lift_direction": self._options.lift_direction}
        return {"metrics": self.metrics, **directions, "cases": cases}

    def rows(self) -> list[list[object]]:
        """Returns a table of the coefficients by case, its head first."""
        head: list[object] = ["case", "coefficient", "predicted", *self.kinds]
        return [head] + [
            [name, coefficient, *self._values(coefficient, row).values()]
            for row, name in enumerate(self._references)
            for coefficient in NAMES
        ]

    def table(self) -> Table:
        """Returns a table of the metrics."""
        columns = ("coefficient", "of", "against", "MAE", "MAE %", "R²", "Spearman")
        rows = [
            [self.labels[name], *pair, *map(_text, self.metrics[name]["_against_".join(pair)].values())]
            for name in NAMES
            for pair in self._pairs()
        ]
        return new_table(f"Force coefficients{self._only}", columns, rows)

    def _values(self, name: str, row: int) -> dict[str, float]:
        known = {kind: float(values[row]) for kind, values in self.known[name].items()}
        return {"predicted": float(self.predicted[name][row].mean()), **known}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:#.4g}"
