"""Anchors, queries and geometry points of a case, drawn from all its points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.samples import Sample, SampleSizes
from emmi_jax.data.sampling import sample_points
from emmi_jax.points import Array, PointSet, split_points, take_points

BODY_BRANCH = "surface"
"""Branch whose points describe the body where nothing else does."""


def body_of(
    points: Mapping[str, PointSet], geometry_position: Array | None, sizes: SampleSizes, *, name: str
) -> Array | None:
    """Returns the points that describe the body: those given, or else those of the branch `surface`, if there is one.

    Raises:
        ValueError: They are fewer than the geometry branch draws.
    """
    if geometry_position is None and BODY_BRANCH in points:
        geometry_position = points[BODY_BRANCH].position
    found = 0 if geometry_position is None else len(geometry_position)
    if found < sizes.num_geometry_points:
        raise ValueError(
            f"{name}: the geometry branch draws {sizes.num_geometry_points} points of the body, found {found}"
        )
    return geometry_position


def draw_training_case(
    rng: np.random.Generator, points: Mapping[str, PointSet], body: Array | None, sizes: SampleSizes
) -> Sample:
    """Draws anchors and queries of every branch, and the geometry, without replacement.

    Args:
        rng: Source of randomness.
        points: All points by branch.
        body: Points that describe the body, or None.
        sizes: How many to draw.
    """
    sample = Sample({}, {})
    for branch, part in points.items():
        idx = draw_points(rng, part, sizes.num_anchors + sizes.num_queries, sizes)
        sample.anchors[branch], queries = split_points(take_points(part, idx), sizes.num_anchors)
        if sizes.num_queries:
            sample.queries[branch] = queries
    return add_geometry(rng, sample, body, sizes, num_supernodes=sizes.num_supernodes)


def draw_points(rng: np.random.Generator, points: PointSet, num_points: int, sizes: SampleSizes) -> NDArray[np.int64]:
    """Draws points of a branch without replacement, as `sizes.sampling` says; returns their indices."""
    weights = points.cell_size if sizes.sampling == "weighted" else None
    return sample_points(rng, points.position, num_points, method=sizes.sampling, weights=weights)


def add_geometry(
    rng: np.random.Generator, sample: Sample, body: Array | None, sizes: SampleSizes, *, num_supernodes: int
) -> Sample:
    """Draws the geometry points of a case; without any, the sample stays as it is."""
    if not sizes.num_geometry_points or body is None:
        return sample
    position = body[sample_points(rng, body, sizes.num_geometry_points)]
    supernode_idx = draw_supernodes(rng, position, num_supernodes, sizes)
    return sample._replace(geometry_position=position, supernode_idx=supernode_idx)


def draw_supernodes(
    rng: np.random.Generator, position: Array, num_supernodes: int, sizes: SampleSizes
) -> NDArray[np.int32]:
    """Draws supernodes among drawn geometry points [P, n], as `sizes.supernode_sampling` says."""
    if sizes.supernode_sampling == "uniform":
        # Drawn points are in no order, so the first are as good as any.
        return np.arange(num_supernodes, dtype=np.int32)
    return sample_points(rng, position, num_supernodes, method=sizes.supernode_sampling).astype(np.int32)
