"""How far predicted fields are from known ones."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from emmi_jax.points import Array, row_chunks

Metrics: TypeAlias = dict[str, float]


def field_metrics(predicted: Array, reference: Array) -> Metrics:
    """Compares a field with its reference, over all points and channels.

    Args:
        predicted: Values [N, F].
        reference: Values [N, F].

    Returns:
        `relative_l2`, the norm of the error over that of the reference (not divided where that is zero); `mae` and
        `max`, the mean and the largest absolute error in the unit of the field.
    """
    squares, reference_squares, total, largest = 0.0, 0.0, 0.0, 0.0
    # In chunks: float64 copies of a large mesh would be the largest arrays in memory.
    for part, known in zip(row_chunks(predicted), row_chunks(reference), strict=True):
        exact = np.asarray(known, dtype=np.float64)
        error = np.abs(part - exact)
        squares += float(np.vdot(error, error))
        reference_squares += float(np.vdot(exact, exact))
        total, largest = total + float(error.sum()), max(largest, float(error.max(initial=0.0)))
    return {
        "relative_l2": float(np.sqrt(squares / (reference_squares or 1.0))),
        "mae": total / max(reference.size, 1),
        "max": largest,
    }
