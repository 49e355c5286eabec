"""Predictions that need no training, to stand beside a model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.points import Array, Fields, PointSet


def mean_predictor(means: Mapping[str, Mapping[str, Array]], queries: Mapping[str, PointSet]) -> Fields:
    """Predicts the training mean of each field everywhere.

    Args:
        means: Mean [F] by branch and field.
        queries: Where to predict.

    Returns:
        Values by branch and field, each [T, F].
    """
    return {
        branch: {
            name: np.broadcast_to(mean, (len(queries[branch].position), len(mean))) for name, mean in fields.items()
        }
        for branch, fields in means.items()
    }


class NearestNeighbors:
    """Inverse-distance interpolation from the nearest known points (Shepard 1968, power 2).

    Args:
        known: Points with known fields.
        num_neighbors: Points that a prediction averages.
    """

    def __init__(self, known: PointSet, *, num_neighbors: int = 8) -> None:
        from scipy.spatial import cKDTree

        self._known = known
        self._num_neighbors = min(num_neighbors, len(known.position))
        self._tree = cKDTree(known.position)

    def predict(self, position: Array) -> dict[str, Array]:
        """Interpolates every field at positions [T, n]; at a known point it has that point's value."""
        distance, idx = self._tree.query(position, k=range(1, self._num_neighbors + 1))
        weight = _inverse_square(distance)
        return {name: np.einsum("tk,tkf->tf", weight, values[idx]) for name, values in self._known.fields.items()}


def _inverse_square(distance: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Weights [T, K] that sum to 1; duplicates of the point itself share all of it."""
    hit = distance == 0
    ratio = distance.min(axis=1, keepdims=True) / np.where(hit, 1.0, distance)
    weight = np.where(hit.any(axis=1, keepdims=True), hit, ratio**2)
    normalized: NDArray[np.floating[Any]] = weight / weight.sum(axis=1, keepdims=True)
    return normalized
