"""Intervals around predictions, by the rank of the scores of the cases that a run was calibrated with.

See `emmi_jax.data.conformal` for what they promise, and its sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .spread import Spread


@dataclass(frozen=True)
class Intervals:
    """Intervals of fields and coefficients at one level.

    Args:
        level: The probability that a new case is within them.
        quantiles: Conformal quantiles of the scores, by ``<branch>/<field>`` and by coefficient.
        is_relative: Whether errors were divided by the deviation between members and draws.
    """

    level: float
    quantiles: Mapping[str, float]
    is_relative: bool

    def of_field(self, branch: str, name: str, spread: Spread, scales: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns the lowest and the highest values [N, F] of a field; see `field_deviation`.

        Raises:
            ValueError: There are no scores of the field, or they are of another kind of prediction.
        """
        self._check(f"{branch}/{name}", spread)
        width = field_deviation(scales, branch, name, spread)
        half = np.broadcast_to(half_width(self.quantiles[f"{branch}/{name}"], width), spread.mean.shape)
        return spread.mean - half, spread.mean + half

    def of_number(self, name: str, spread: Spread, *, unit: float = 1.0) -> tuple[float, float]:
        """Returns the lowest and the highest value of a number.

        Args:
            name: What it is, such as `cd`.
            spread: Its mean and deviation.
            unit: What it was divided by after its calibration, such as the reference area.

        Raises:
            ValueError: There are no scores of it, or they are of another kind of prediction; or the unit is not > 0.
        """
        self._check(name, spread)
        if not unit > 0:
            raise ValueError(f"unit must be above 0, got {unit!r}")
        deviation = 1 / unit if spread.deviation is None else float(spread.deviation)
        half = float(half_width(self.quantiles[name], deviation))
        return float(spread.mean) - half, float(spread.mean) + half

    def _check(self, name: str, spread: Spread) -> None:
        if name not in self.quantiles:
            raise ValueError(f"the calibration has no scores of {name!r}, but of {sorted(self.quantiles)!r}")
        if (spread.deviation is not None) != self.is_relative:
            kinds = "a single prediction", "several members or draws"
            calibrated, got = kinds[self.is_relative], kinds[not self.is_relative]
            raise ValueError(f"the calibration is of {calibrated} of each case, got {got} of {name!r}")


class CalibrationScores(NamedTuple):
    """Scores of the cases that a run was calibrated with.

    Attributes:
        repeats: Draws of points that each prediction was the mean of.
        share: The share of the points of a case that the score of a field covers.
        scores: Scores of the cases by ``<branch>/<field>``; and by `cd` and `cl`, times the reference area where there
            is no deviation. One may be infinite.
    """

    repeats: int
    share: float
    scores: Mapping[str, tuple[float, ...]]

    def intervals(self, level: float, num_members: int) -> Intervals:
        """Returns the intervals of the predictions of so many members at a level.

        Raises:
            ValueError: The level is out of range, or needs more cases.
        """
        quantiles = {name: conformal_quantile(scores, level) for name, scores in self.scores.items()}
        return Intervals(level, quantiles, num_members > 1 or self.repeats > 1)

    def to_dict(self) -> dict[str, Any]:
        """Returns them as JSON has them, infinite scores as null."""
        scores = {name: [one if math.isfinite(one) else None for one in each] for name, each in self.scores.items()}
        return {"repeats": self.repeats, "share": self.share, "scores": scores}


def field_deviation(scales: Any, branch: str, name: str, spread: Spread) -> NDArray[Any]:
    """Returns the deviation that the errors of a field are divided by: [N, F], or [F] where it is the same everywhere.

    Those of the training data, under the condition of the case, serve where there is a single prediction.
    """
    if spread.deviation is not None:
        return spread.deviation
    scale = scales.fields[branch][name]
    return np.asarray(scale.std) if scale.limit is None else np.asarray(scale.limit)


def quantile_rank(num_cases: int, level: float) -> int:
    """Returns which of the sorted scores of so many cases bounds a new one: ⌈(num_cases + 1) · level⌉, from 1 on.

    The level is taken as the decimal number that it is written as: 0.55 of 20 is 11.

    Raises:
        ValueError: The level is not between 0 and 1, or so many cases cannot give it.
    """
    exact = exact_share("level", level)
    if exact == 1:
        raise ValueError("level must be below 1, got 1: no number of cases guarantees it")
    rank = math.ceil((num_cases + 1) * exact)
    if rank > num_cases:
        needed = math.ceil(exact / (1 - exact))
        raise ValueError(f"level {level!r} needs at least {needed} calibration cases, there are {num_cases}")
    return rank


def conformal_quantile(scores: ArrayLike, level: float) -> float:
    """Returns the bound of the score of a new case at a level; it may be infinite.

    Args:
        scores: Scores [n] of the calibration cases, in any order; ties and infinite ones are scores as any other.
        level: The probability that the new score is at most the bound.

    Raises:
        ValueError: A score is NaN or negative, or the level is out of range or out of reach.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not (values >= 0).all():
        raise ValueError(f"scores must be an array [cases] of numbers >= 0, got {values.tolist()!r:.80}")
    return float(np.sort(values)[quantile_rank(len(values), level) - 1])


def half_width(quantile: float, deviation: ArrayLike) -> NDArray[np.float64]:
    """Returns quantile · deviation, infinite for an infinite quantile even where there is no deviation."""
    width = np.asarray(deviation, np.float64)
    return np.full_like(width, np.inf) if math.isinf(quantile) else quantile * width


def exact_share(name: str, value: float) -> Fraction:
    """Returns a share as the decimal number that it is written as; refuses what is not above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")
    return Fraction(repr(float(value)))
