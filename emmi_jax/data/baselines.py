"""Predictions that need no training, to compare a model with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.metrics import known_rows
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Dataset, Sample
from emmi_jax.points import Array, Fields, PointSet


def baselines(dataset: Dataset, normalizer: Normalizer, number: int, sample: Sample) -> dict[str, Fields]:
    """Returns what a data set offers to compare a model with.

    Args:
        dataset: The data set.
        normalizer: The normalizer of the run.
        number: Number of the test case.
        sample: The test case.

    Returns:
        Values [T, F] at the queries of the sample by baseline, branch and field: `mean_predictor` for all data,
        `nearest_neighbors` within a single case, `nearest_case` for ellipsoids.
    """
    normalizer = normalizer.under(sample.condition)
    return {"mean_predictor": mean_predictor(normalizer.means, sample.queries), **dataset.baselines(number, sample)}


def mean_predictor(means: Mapping[str, Mapping[str, Array]], queries: Mapping[str, PointSet]) -> Fields:
    """Predicts the mean [F] of each field everywhere."""
    return {
        branch: {name: np.broadcast_to(mean, (len(points.position), len(mean))) for name, mean in means[branch].items()}
        for branch, points in queries.items()
    }


def nearest_neighbors(known: PointSet, position: Array, *, num_neighbors: int = 8) -> dict[str, Array]:
    """Interpolates every field from the nearest known points by inverse distance (Shepard 1968, power 2).

    Args:
        known: Points with known fields; where one is NaN, that field is unknown.
        position: Positions [T, n]; at a known point, the value is that of the point.
        num_neighbors: Points that a prediction averages.

    Returns:
        Values [T, F] by field.
    """
    weight, idx = _nearest(known.position, position, num_neighbors)
    fields = {}
    for name, values in known.fields.items():
        there, given = known_rows(values, known.position, values)
        pair = (weight, idx) if there is known.position else _nearest(there, position, num_neighbors)
        fields[name] = np.einsum("tk,tkf->tf", pair[0], given[pair[1]])
    return fields


def _nearest(known: Array, position: Array, num_neighbors: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the weights and the rows, [T, K] each, of the nearest known positions."""
    from scipy.spatial import cKDTree

    distance, idx = cKDTree(known).query(position, k=range(1, min(num_neighbors, len(known)) + 1))
    return _inverse_square(distance), idx


def _inverse_square(distance: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Weights [T, K] that sum to 1; where known points coincide with the position, they share all of it."""
    hit = distance == 0
    ratio = distance.min(axis=1, keepdims=True) / np.where(hit, 1.0, distance)
    weight = np.where(hit.any(axis=1, keepdims=True), hit, ratio**2)
    normalized: NDArray[np.floating[Any]] = weight / weight.sum(axis=1, keepdims=True)
    return normalized
