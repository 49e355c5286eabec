"""Errors on unseen cases, in physical units, beside those of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from emmi_jax.cfd.cases import Array, Dataset, Fields, PointSet, Predict, Sample, normalize_sample, stack_samples
from emmi_jax.cfd.normalization import Normalizer
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params

CHUNK_SIZE = 4096
"""Queries of a branch in one call of the model."""

Errors = dict[str, dict[str, float]]


def make_predict(model: AnchoredBranchedUPT, params: Params, normalizer: Normalizer) -> Predict:
    """Returns the function from a case to the fields at its queries, all in physical units."""
    apply: Callable[[Params, Sample], Any] = jax.jit(
        lambda params, sample: model.apply({"params": params}, **sample.model_inputs())
    )

    def predict(sample: Sample) -> Fields:
        parts = []
        for chunk, num_points in _query_chunks(sample):
            outputs = apply(params, normalize_sample(normalizer, stack_samples([chunk])))
            parts.append(
                {
                    branch: {
                        name: normalizer.denormalize_field(branch, name, outputs[f"query_{branch}_{name}"][0, :num])
                        for name in normalizer.fields[branch]
                    }
                    for branch, num in num_points.items()
                }
            )
        return {
            branch: {
                name: np.concatenate([part[branch][name] for part in parts if branch in part])
                for name in normalizer.fields[branch]
            }
            for branch in sample.queries
        }

    return predict


def evaluate(dataset: Dataset, predict: Predict) -> Errors:
    """Measures the relative L2 error of every field and of the baselines, averaged over the test cases.

    Args:
        dataset: Where the test cases come from.
        predict: The model, as `make_predict` returns it.

    Returns:
        By "branch/field": `relative_l2` of the model, and one entry a baseline.
    """
    cases: list[Errors] = []
    for case in dataset.evaluation_cases():
        predictions = {"relative_l2": predict(case.sample), **case.baselines}
        cases.append(
            {
                f"{branch}/{name}": {
                    who: relative_l2(fields[branch][name], case.sample.queries[branch].fields[name])
                    for who, fields in predictions.items()
                }
                for branch, names in dataset.fields.items()
                for name in names
            }
        )
    return {
        field: {who: float(np.mean([errors[field][who] for errors in cases])) for who in cases[0][field]}
        for field in cases[0]
    }


def relative_l2(prediction: Array, truth: Array) -> float:
    """|prediction - truth| / |truth|, over all points and channels of one case; not divided where the truth is 0."""
    return float(np.linalg.norm(prediction - truth) / (np.linalg.norm(truth) or 1.0))


def _query_chunks(sample: Sample) -> Iterator[tuple[Sample, dict[str, int]]]:
    """Cuts the queries of a case into calls of one shape; says how many points of each branch are real."""
    longest = max(len(points.position) for points in sample.queries.values())
    size = min(longest, CHUNK_SIZE)
    for start in range(0, longest, size):
        chunk, num_points = {}, {}
        for branch, points in sample.queries.items():
            position = points.position[start : start + size]
            num_points[branch] = len(position)
            # Queries do not see one another, so any position pads.
            padding = np.broadcast_to(points.position[:1], (size - len(position), position.shape[1]))
            chunk[branch] = PointSet(np.concatenate([position, padding]), {})
        yield sample._replace(queries=chunk, anchors=_without_fields(sample.anchors)), num_points


def _without_fields(parts: dict[str, PointSet]) -> dict[str, PointSet]:
    return {branch: PointSet(points.position, {}) for branch, points in parts.items()}
