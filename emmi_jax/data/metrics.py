"""Errors of predicted fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from emmi_jax.points import Array, is_unknown, row_chunks

Metrics: TypeAlias = dict[str, float]


def known_rows(reference: Array, *arrays: Array) -> tuple[Array, ...]:
    """Returns those rows of arrays [N, …] where a reference [N, F] is known; the arrays themselves if it is everywhere.

    Raises:
        ValueError: It is known nowhere.
    """
    is_unknown_at = np.concatenate([is_unknown(chunk) for chunk in row_chunks(reference)])
    if not is_unknown_at.any():
        return arrays
    if is_unknown_at.all():
        raise ValueError(f"nothing to compare with: all {len(reference)} values are NaN")
    return tuple(array[~is_unknown_at] for array in arrays)


def field_metrics(predicted: Array, reference: Array) -> Metrics:
    """Compares a field with its reference, over all points and channels.

    Args:
        predicted: Values [N, F].
        reference: Values [N, F]; points where one is NaN are left out.

    Returns:
        `relative_l2` and `relative_l1`, the norm of the error over that of the reference; `mae` and `max`, the mean and
        the largest absolute error in the unit of the field; `r2`, one minus the squared error over the squared
        deviation of the reference from its mean in each channel. Nothing is divided by zero: by one instead.
    """
    predicted, reference = known_rows(reference, predicted, reference)
    squares, reference_squares, total, reference_total, largest = 0.0, 0.0, 0.0, 0.0, 0.0
    shift = np.asarray(reference[:1], dtype=np.float64).sum(axis=0)
    shifted, shifted_squares = np.zeros_like(shift), 0.0
    # In chunks: float64 copies of a large mesh would be the largest arrays in memory.
    for part, known in zip(row_chunks(predicted), row_chunks(reference), strict=True):
        exact = np.asarray(known, dtype=np.float64)
        error = np.abs(part - exact)
        squares += float(np.vdot(error, error))
        reference_squares += float(np.vdot(exact, exact))
        # Not Python's `max`, which drops a NaN.
        total, largest = total + float(error.sum()), float(np.maximum(largest, error.max(initial=0.0)))
        reference_total += float(np.abs(exact).sum())
        exact = exact - shift
        shifted, shifted_squares = shifted + exact.sum(axis=0), shifted_squares + float(np.vdot(exact, exact))
    deviation = shifted_squares - float(np.vdot(shifted, shifted)) / max(len(reference), 1)
    return {
        "relative_l2": float(np.sqrt(squares / (reference_squares or 1.0))),
        "relative_l1": total / (reference_total or 1.0),
        "mae": total / max(reference.size, 1),
        "max": largest,
        "r2": 1.0 - squares / (deviation if deviation > 0 else 1.0),
    }


def weighted_relative_l2(predicted: Array, reference: Array, weights: Array) -> float:
    """Returns the relative L2 error with the squares of each point weighted, such as by the size [N] of its cell."""
    predicted, reference, weights = known_rows(reference, predicted, reference, weights)
    squares, reference_squares = 0.0, 0.0
    for part, known, weight in zip(*map(row_chunks, (predicted, reference, weights)), strict=True):
        exact = np.asarray(known, dtype=np.float64)
        squares += float((np.square(part - exact).sum(axis=1) * weight).sum())
        reference_squares += float((np.square(exact).sum(axis=1) * weight).sum())
    return float(np.sqrt(squares / (reference_squares or 1.0)))


def mean_interval(values: Sequence[float], level: float) -> dict[str, float | None]:
    """Returns the mean of values, one per case, and its confidence interval by Student's t; None for a single case."""
    from scipy.stats import t

    array, num = np.asarray(values, np.float64), len(values)
    mean = float(array.mean())
    if num < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf((1 + level) / 2, num - 1) * array.std(ddof=1) / np.sqrt(num))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def coefficient_metrics(predicted: Array, reference: Array) -> dict[str, float | None]:
    """Compares a number per case, such as the drag coefficient, with its reference.

    Args:
        predicted: Values [N], one per case.
        reference: Values [N].

    Returns:
        `mae`, the mean absolute error in the unit of the number; `mae_percent`, the same in per cent of the mean
        absolute reference; `r2`, one minus the squared error over the squared deviation of the reference from its mean;
        `spearman`, the correlation of the ranks, where equal values share theirs. What is undefined is None: `r2` where
        all references are equal, as that of a single case is; `spearman` where all values of either are.
    """
    predicted, reference = (np.asarray(values, np.float64) for values in (predicted, reference))
    error, deviation = np.abs(predicted - reference), reference - reference.mean()
    mean, spread = float(np.abs(reference).mean()), float(np.vdot(deviation, deviation))
    return {
        "mae": float(error.mean()),
        "mae_percent": 100 * float(error.mean()) / mean if mean > 0 else None,
        "r2": 1 - float(np.vdot(error, error)) / spread if spread > 0 else None,
        "spearman": rank_correlation(predicted, reference),
    }


def rank_correlation(values: Array, others: Array) -> float | None:
    """Returns the correlation of the ranks, where equal values share theirs; None where all of either are equal."""
    from scipy.stats import rankdata

    ranks = [rankdata(given) for given in (values, others)]
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(rank) > 0 for rank in ranks) else None


def mean_metrics(metrics: Sequence[Mapping[str, Metrics]]) -> dict[str, Metrics]:
    """Returns the mean of every metric of every field over the cases or repeats that have it."""
    fields = {field: list(of_case[field]) for of_case in reversed(metrics) for field in of_case}
    return {
        field: {name: float(np.mean([case[field][name] for case in metrics if field in case])) for name in names}
        for field, names in fields.items()
    }
