"""Intervals around predictions, from the conformal quantiles of a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.conformal import half_width, normalized_scores
from emmi_jax.data.familiarity import Familiarity
from emmi_jax.data.metrics import known_rows
from emmi_jax.data.normalization import Normalizer
from emmi_jax.deploy.spread import Spread
from emmi_jax.points import Array


@dataclass(frozen=True)
class Intervals:
    """Intervals of fields and coefficients at one level.

    Args:
        level: The probability that a new case is within them.
        quantiles: Conformal quantiles of the scores, by ``<branch>/<field>`` and by coefficient.
    """

    level: float
    quantiles: Mapping[str, float]

    def of_field(
        self, branch: str, name: str, spread: Spread, normalizer: Normalizer
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns the lowest and the highest values [N, F] of a field; see `field_deviation`."""
        width = field_deviation(normalizer, branch, name, spread)
        half = np.broadcast_to(half_width(self.quantiles[f"{branch}/{name}"], width), spread.mean.shape)
        return spread.mean - half, spread.mean + half

    def of_number(self, name: str, spread: Spread, *, unit: float = 1.0) -> tuple[float, float]:
        """Returns the lowest and the highest value of a number.

        Args:
            name: What it is, such as `cd`.
            spread: Its mean and deviation.
            unit: What it was divided by after its calibration, such as the reference area.
        """
        deviation = 1 / unit if spread.deviation is None else float(spread.deviation)
        half = float(half_width(self.quantiles[name], deviation))
        return float(spread.mean) - half, float(spread.mean) + half


@dataclass(frozen=True)
class Certainty:
    """Draws, intervals and usual cases that tell how sure a prediction is.

    Args:
        repeats: Draws of points to average over.
        intervals: Intervals to add; None for none.
        familiarity: What cases are usual; None for nothing about it.
    """

    repeats: int = 1
    intervals: Intervals | None = None
    familiarity: Familiarity | None = None


SINGLE = Certainty()
"""One prediction, without anything about how sure it is."""


def field_deviation(normalizer: Normalizer, branch: str, name: str, spread: Spread) -> NDArray[Any]:
    """Returns the deviation that the errors of a field are divided by: [N, F], or [F] where it is the same everywhere.

    Those of the training data, under the condition of the case, serve where there is a single prediction.
    """
    if spread.deviation is not None:
        return spread.deviation
    scale = normalizer.fields[branch][name]
    return np.asarray(scale.std) if scale.limit is None else np.asarray(scale.limit)


def field_scores(spread: Spread, deviation: NDArray[Any], known: Array) -> NDArray[np.float64]:
    """Returns the scores of the predicted values of a field where known values [N, F] are not NaN."""
    deviation = np.broadcast_to(deviation, spread.mean.shape)
    return normalized_scores(*known_rows(known, spread.mean - known, deviation))


def number_score(spread: Spread, known: float) -> float:
    """Returns the score of a predicted number, such as a drag area."""
    deviation = 1.0 if spread.deviation is None else spread.deviation
    return float(normalized_scores(spread.mean - known, deviation))
