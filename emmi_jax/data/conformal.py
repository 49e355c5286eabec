"""Promises of split conformal prediction: what its intervals cover. How scores become intervals: `deploy.intervals`.

Calibration cases that the model has not seen give scores, such as absolute errors. Where a new case is exchangeable
with them, its score is at most the k-th smallest of n, k = ⌈(n + 1) · level⌉, with at least the probability `level`.
That is an average over calibrations: for given calibration cases and continuous scores the probability is a draw from
Beta(k, n + 1 - k). This is a sort and a rank; the libraries that do it wrap models of scikit-learn.

Sources: Papadopoulos et al. 2002, "Inductive confidence machines for regression" (ECML); Lei et al. 2018,
"Distribution-free predictive inference for regression" (JASA 113), also for scores divided by a deviation; Vovk 2012,
"Conditional validity of inductive conformal predictors" (ACML), for the beta distribution.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.deploy.intervals import conformal_quantile as conformal_quantile
from emmi_jax.deploy.intervals import exact_share, quantile_rank
from emmi_jax.deploy.intervals import half_width as half_width


class CoverageLaw(NamedTuple):
    """Beta(a, b), the distribution of the coverage over calibrations; with ties coverages are larger."""

    a: int
    b: int

    @property
    def mean(self) -> float:
        """The coverage on average over calibrations."""
        return self.a / (self.a + self.b)

    def range(self, probability: float = 0.9) -> tuple[float, float]:
        """Returns the central range that the coverage is in with this probability."""
        from scipy.stats import beta

        tail = (1 - probability) / 2
        return float(beta.ppf(tail, self.a, self.b)), float(beta.ppf(1 - tail, self.a, self.b))

    def counts(self, num_cases: int, probability: float) -> tuple[int, int]:
        """Returns how many of so many new cases are covered at least and at most with this probability.

        The number covered is beta-binomial: cases that share a calibration are not independent.
        """
        from scipy.stats import betabinom

        tail, law = (1 - probability) / 2, betabinom(num_cases, self.a, self.b)
        return int(law.ppf(tail)), int(law.ppf(1 - tail))


def coverage_law(num_cases: int, level: float) -> CoverageLaw:
    """Returns the distribution of the coverage of intervals that so many cases calibrate.

    Raises:
        ValueError: The level is out of range or out of reach.
    """
    rank = quantile_rank(num_cases, level)
    return CoverageLaw(rank, num_cases + 1 - rank)


def normalized_scores(error: ArrayLike, deviation: ArrayLike) -> NDArray[np.float64]:
    """Returns |error| / deviation; without any deviation 0 for no error, and else infinity.

    Raises:
        ValueError: A deviation is negative, or a value is NaN.
    """
    size, width = np.broadcast_arrays(np.abs(np.asarray(error, np.float64)), np.asarray(deviation, np.float64))
    if not (width >= 0).all() or np.isnan(size).any():
        raise ValueError("errors must be numbers, and deviations numbers >= 0")
    missing: Any = np.where(size > 0, np.inf, 0.0)
    return np.divide(size, width, out=missing.copy(), where=width > 0)


def covering_score(scores: ArrayLike, share: float) -> float:
    """Returns the smallest bound that at least a share of the points of a case are within.

    Args:
        scores: Scores [N] or [N, F] of the points; a point counts as covered if all its channels are.
        share: The share, above 0 and up to 1.

    Raises:
        ValueError: There is no point, or the share is out of range.
    """
    values = np.asarray(scores)
    values = values.max(axis=1) if values.ndim == 2 else values
    if not values.size:
        raise ValueError("a case without points has no score")
    place = math.ceil(len(values) * exact_share("share", share)) - 1
    return float(np.partition(values, place)[place])


def p_value(scores: ArrayLike, score: float) -> float:
    """Returns the share of cases, the new one among them, whose score is at least that of the new one.

    For a new case that is exchangeable with the others it is at most any p with at most the probability p.
    """
    values = np.asarray(scores, np.float64)
    return float((1 + np.count_nonzero(values >= score)) / (1 + len(values)))
