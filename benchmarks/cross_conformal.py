"""Cross-conformal prediction: p-values and intervals where every known case was left out by one of several models.

An alternative to the split conformal prediction of `emmi_jax.data.conformal`, which spends cases on calibration.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from emmi_jax.deploy.intervals import quantile_rank


def cross_p_value(scores: ArrayLike, new_scores: ArrayLike) -> float:
    """Returns the p-value of a new case where every known case was left out by one of several models.

    A level p covers the case if the value is above 1 - p. All cases calibrate, none is spent. The promise is weaker:
    the case is covered with at least the probability 2 p - 1, and usually p (Vovk 2015, "Cross-conformal predictors",
    Ann. Math. Artif. Intell. 74; Barber et al. 2021, "Predictive inference with the jackknife+", Ann. Stat. 49).

    Args:
        scores: Score [n] of each case by the model that left it out.
        new_scores: Score [n] of the new case by the same models.
    """
    known, new = np.asarray(scores, np.float64), np.asarray(new_scores, np.float64)
    return float((1 + np.count_nonzero(known >= new)) / (1 + len(known)))


def cross_interval(scores: ArrayLike, centers: ArrayLike, deviations: ArrayLike, level: float) -> tuple[float, float]:
    """Returns the interval of a number of a new case where every known case was left out by one of several models.

    Its promise is that of `cross_p_value` (CV+, Barber et al. 2021).

    Args:
        scores: Score [n] of each case by the model that left it out.
        centers: The number of the new case [n], predicted by the same models.
        deviations: Its deviations [n].
        level: The level.

    Raises:
        ValueError: The level is out of range or out of reach.
    """
    known, center, width = (np.asarray(values, np.float64) for values in (scores, centers, deviations))
    rank, half = quantile_rank(len(known), level), np.full_like(known, np.inf)
    is_finite = np.isfinite(known)
    half[is_finite] = known[is_finite] * width[is_finite]
    ends = [np.sort(sign * center + half)[rank - 1] for sign in (-1, 1)]
    return -float(ends[0]), float(ends[1])
