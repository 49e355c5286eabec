"""Certainty of a prediction: its draws and intervals, and the scores of known cases that intervals come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.conformal import normalized_scores
from emmi_jax.data.familiarity import Familiarity
from emmi_jax.data.metrics import known_rows
from emmi_jax.deploy.intervals import Intervals
from emmi_jax.deploy.spread import Spread
from emmi_jax.points import Array


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


def field_scores(spread: Spread, deviation: NDArray[Any], known: Array) -> NDArray[np.float64]:
    """Returns the scores of the predicted values of a field where known values [N, F] are not NaN."""
    deviation = np.broadcast_to(deviation, spread.mean.shape)
    return normalized_scores(*known_rows(known, spread.mean - known, deviation))


def number_score(spread: Spread, known: float) -> float:
    """Returns the score of a predicted number, such as a drag area."""
    deviation = 1.0 if spread.deviation is None else spread.deviation
    return float(normalized_scores(spread.mean - known, deviation))
