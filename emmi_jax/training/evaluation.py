"""Metrics on unseen cases, in physical units, beside those of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils

from emmi_jax.data.metrics import Metrics, field_metrics, mean_metrics
from emmi_jax.data.samples import Sample
from emmi_jax.deploy.surrogate import Encoded
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.points import Fields, is_unknown

Baselines: TypeAlias = Callable[[int, Sample], dict[str, Fields]]
"""From the number of a test case and its sample to predictions by baseline."""

_CHUNK_SIZE = 4096


def query_chunk_size(sample: Sample) -> int:
    """Returns one chunk size for all predictions on samples of this shape, so that the model is compiled once."""
    return min(_CHUNK_SIZE, max(len(points.position) for points in sample.queries.values()))


def encode_sample(surrogate: Surrogate, sample: Sample) -> Encoded:
    """Encodes the anchors, the geometry and the condition of a sample."""
    anchors, geometry, features = sample.context
    return surrogate.encode(anchors=anchors, geometry=geometry, condition=sample.condition, anchor_features=features)


def predict_queries(surrogate: Surrogate, sample: Sample) -> Fields:
    """Predicts the fields at the queries of a sample."""
    positions = {branch: points.position for branch, points in sample.queries.items()}
    predicted = encode_sample(surrogate, sample).predict(
        positions, query_features=sample.query_features, chunk_size=query_chunk_size(sample)
    )
    fields = surrogate.model.config.fields
    return {branch: {name: predicted[f"{branch}_{name}"] for name in fields[branch]} for branch in positions}


def evaluate(surrogate: Surrogate, samples: Iterable[Sample], baselines: Baselines) -> dict[str, Metrics]:
    """Measures the relative L2 error of every field and of the baselines, averaged over the test cases.

    Args:
        surrogate: The trained model.
        samples: The test cases, with exact fields at their queries.
        baselines: Predictions to compare with.

    Returns:
        By "branch/field": `relative_l2` of the model, and that of each baseline by its name.
    """
    cases: list[dict[str, Metrics]] = []
    for number, sample in enumerate(samples):
        predictions = {"relative_l2": predict_queries(surrogate, sample), **baselines(number, sample)}
        cases.append(
            {
                f"{branch}/{name}": {
                    who: field_metrics(fields[branch][name], exact)["relative_l2"]
                    for who, fields in predictions.items()
                }
                for branch, points in sample.queries.items()
                for name, exact in points.fields.items()
                if not is_unknown(exact).all()
            }
        )
    return mean_metrics(cases)


def validate(surrogate: Surrogate, samples: Sequence[Sample]) -> Metrics:
    """Measures the relative L2 error of every field, averaged over cases that the processes of a run share.

    Args:
        surrogate: The model as it is.
        samples: The validation cases, the same in every process.

    Returns:
        The errors by "branch/field", and their mean as `mean`; the same in every process.
    """
    names = [f"{branch}/{name}" for branch, fields in surrogate.model.config.fields.items() for name in fields]
    total, count = np.zeros(len(names)), np.zeros(len(names))
    for sample in samples[jax.process_index() :: jax.process_count()]:
        errors = evaluate(surrogate, [sample], lambda number, sample: {})
        is_known = [name in errors for name in names]
        total += [errors[name]["relative_l2"] if name in errors else 0.0 for name in names]
        count += is_known
    if jax.process_count() > 1:
        total, count = (multihost_utils.process_allgather(own).sum(axis=0) for own in (total, count))
    means = dict(zip(names, np.where(count > 0, total / np.maximum(count, 1), np.nan).tolist(), strict=True))
    return {**means, "mean": float(np.mean(list(means.values())))}
