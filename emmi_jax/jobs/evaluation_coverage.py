"""Coverage of the intervals of a calibrated run on known cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from emmi_jax.data.cases import Case
from emmi_jax.data.conformal import conformal_quantile, coverage_law, covering_score
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.metrics import known_rows, rank_correlation
from emmi_jax.deploy.encoded_set import EncodedSet, collect
from emmi_jax.deploy.intervals import field_deviation
from emmi_jax.deploy.spread import Spread
from emmi_jax.files.atomic import JsonDict
from emmi_jax.inference.intervals import field_scores, number_score
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.evaluation_cases import case_arguments, query_features
from emmi_jax.jobs.evaluation_forces import NAMES, CaseForces
from emmi_jax.jobs.progress import new_table, say, warn
from emmi_jax.plots.uncertainty import draw_coverage, draw_errors_over_deviations
from emmi_jax.runs.calibration import Calibration, is_calibrated, read_calibration

LEVELS = (0.5, 0.8, 0.9, 0.95)
PROBABILITY = 0.95
"""The probability of the bounds for the number of cases that are covered."""


class CaseScore(NamedTuple):
    """A score, and what it is made of: an error and a deviation; of a field their root mean squares."""

    score: float
    error: float
    deviation: float


def field_coverage(
    encoded: EncodedSet, surrogate: Surrogate, case: Case, forces: CaseForces | None, *, share: float
) -> tuple[dict[str, CaseScore], dict[str, Spread]]:
    """Returns the scores of a case by field, and its predicted coefficients.

    Args:
        encoded: The case as it was encoded.
        surrogate: What predicts.
        case: The case, with known fields.
        forces: What integrates forces; None for no coefficients.
        share: The share of the points that a score covers.
    """
    fields = surrogate.model.config.fields
    points = {branch: case.points[branch] for branch in fields}
    features = query_features(surrogate, case)
    by_quantity, spreads = {}, {}
    for branch, names in fields.items():
        values, watch = collect(branch, len(points[branch].position), list(names))
        given = {branch: features[branch]} if branch in features else {}
        for chunk in encoded.stream_each({branch: points[branch].position}, query_features=given):
            watch(chunk)
        for name in names:
            spread, known = Spread.of(values[name]), points[branch].fields[name]
            deviation = field_deviation(encoded.normalizer, branch, name, spread)
            pointwise = field_scores(spread, deviation, known)
            (error,) = known_rows(known, spread.mean - known)
            by_quantity[f"{branch}/{name}"] = CaseScore(covering_score(pointwise, share), _rms(error), _rms(deviation))
        if branch == GEOMETRY_BRANCH and forces is not None:
            spreads = forces.spreads(values)
    return by_quantity, spreads


def number_coverage(spread: Spread, known: float, *, area: float) -> CaseScore:
    """Returns the score of a coefficient: that of the coefficient times the area."""
    deviation = 1 / area if spread.deviation is None else float(spread.deviation)
    unit = area if spread.deviation is None else 1.0
    return CaseScore(unit * number_score(spread, known), float(spread.mean) - known, deviation)


class Coverage:
    """Counts the cases that intervals cover, if the run is calibrated.

    Args:
        run: The run's folder.
        surrogate: What it was loaded as.
        data: Where the cases are; those of the calibration do not count.
    """

    def __init__(self, run: Path, surrogate: Surrogate, data: str) -> None:
        self._surrogate, self._calibration, self._problem = surrogate, None, ""
        self.scores: dict[str, list[CaseScore]] = {}
        if is_calibrated(run):
            try:
                self._calibration = read_calibration(run, surrogate)
                is_own = Path(self._calibration.data).resolve() == Path(data).resolve()
                self._left_out = self._calibration.cases if is_own else ()
            except ValueError as error:
                self._problem = str(error)

    def add(self, name: str, case: Case, forces: CaseForces | None) -> None:
        """Predicts a case as the calibration did."""
        calibration, surrogate = self._calibration, self._surrogate
        if calibration is None or name in self._left_out:
            return
        encoded = surrogate.encode_draws(calibration.repeats, **case_arguments(surrogate, case))
        by_quantity, spreads = field_coverage(encoded, surrogate, case, forces, share=calibration.share)
        kind = calibration.known_forces
        if forces is not None and kind in forces.known and forces.has_usual_directions:
            area = forces.reference.area
            for coefficient in NAMES:
                known = forces.known[kind][coefficient]
                by_quantity[coefficient] = number_coverage(spreads[coefficient], known, area=area)
        for quantity, of_case in by_quantity.items():
            self.scores.setdefault(quantity, []).append(of_case)

    def report(self, stem: Path, console: Console) -> tuple[JsonDict, list[Path]]:
        """Prints and draws the coverage; returns it as JSON has it, nothing where there is none, and the pictures."""
        if self._problem:
            warn(f"no coverage of intervals: {self._problem}", console)
        if self._calibration is None:
            return {}, []
        if not self.scores:
            say(console, "no coverage of intervals: the run was calibrated on these cases")
            return {}, []
        # A later case may have had no coefficients, or all have another direction.
        most = max(map(len, self.scores.values()))
        whole = {name: of_cases for name, of_cases in self.scores.items() if len(of_cases) == most}
        has_deviations = self._calibration.repeats > 1 or len(self._surrogate.members) > 1
        coverage = coverage_of(self._calibration, whole, has_deviations=has_deviations)
        _print(coverage, console)
        return {"coverage": coverage}, self._draw(stem, coverage)

    def _draw(self, stem: Path, coverage: JsonDict) -> list[Path]:
        levels = [float(level) for level in coverage["levels"]]
        of_levels = list(coverage["levels"].values())
        covered = {name: np.array([of["covered"][name] for of in of_levels]) for name in of_levels[0]["covered"]}
        path = stem.with_name(f"{stem.name}_coverage.png")
        paths = [draw_coverage(path, levels, covered, [of["bounds"] for of in of_levels])]
        for name in coverage["rank_correlation"]:
            path = stem.with_name(f"{stem.name}_deviation_{name.replace('/', '_')}.png")
            _, error, deviation = np.array(self.scores[name]).T
            paths.append(draw_errors_over_deviations(path, name, error, deviation))
        return paths


def coverage_of(
    calibration: Calibration, by_quantity: Mapping[str, list[CaseScore]], *, has_deviations: bool
) -> JsonDict:
    """Returns the shares of cases that intervals cover, by level, with their bounds, as JSON has it.

    Deviations are compared with errors where members or draws have some.
    """
    num_known, num_new = len(calibration.cases), len(next(iter(by_quantity.values())))
    levels: JsonDict = {}
    for level in (level for level in LEVELS if level <= num_known / (num_known + 1)):
        law = coverage_law(num_known, level)
        quantiles = {
            name: conformal_quantile(scores, level)
            for name, scores in calibration.scores.items()
            if name in by_quantity
        }
        levels[f"{level:g}"] = {
            "promised": law.mean,
            "bounds": [count / num_new for count in law.counts(num_new, PROBABILITY)],
            "covered": {
                name: float(np.mean([of.score <= quantile for of in by_quantity[name]]))
                for name, quantile in quantiles.items()
            },
            "half_width": {
                name: _finite(quantile * np.mean([of.deviation for of in by_quantity[name]]))
                for name, quantile in quantiles.items()
            },
        }
    correlations = {
        name: rank_correlation(*np.array([(of.deviation, abs(of.error)) for of in all_of]).T)
        for name, all_of in by_quantity.items()
        if has_deviations and len({of.deviation for of in all_of}) > 1
    }
    return {"calibration_cases": num_known, "cases": num_new, "levels": levels, "rank_correlation": correlations}


def _print(coverage: Mapping[str, Any], console: Console) -> None:
    levels = coverage["levels"]
    rows = [
        [name, *(f"{100 * of['covered'][name]:.0f} %" for of in levels.values())]
        for name in next(iter(levels.values()), {"covered": {}})["covered"]
    ]
    rows.append(["promised", *(f"{100 * of['promised']:.0f} %" for of in levels.values())])
    bounds = [[f"{100 * share:.0f}" for share in of["bounds"]] for of in levels.values()]
    rows.append([f"range of {100 * PROBABILITY:g} %", *(f"{low} … {high}" for low, high in bounds)])
    title = f"Share of {coverage['cases']} cases inside intervals, calibrated on {coverage['calibration_cases']}"
    console.print(new_table(title, ["quantity", *(f"{100 * float(level):g} %" for level in levels)], rows))


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
