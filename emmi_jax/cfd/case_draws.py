"""Anchors, queries and geometry points of a case, drawn from all its points."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emmi_jax.cfd.cases import Array, PointSet, Sample, SampleSizes, split_points, take_points

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
        idx = rng.choice(len(part.position), sizes.num_anchors + sizes.num_queries, replace=False)
        sample.anchors[branch], queries = split_points(take_points(part, idx), sizes.num_anchors)
        if sizes.num_queries:
            sample.queries[branch] = queries
    return add_geometry(rng, sample, body, num_points=sizes.num_geometry_points, num_supernodes=sizes.num_supernodes)


def add_geometry(
    rng: np.random.Generator, sample: Sample, body: Array | None, *, num_points: int, num_supernodes: int
) -> Sample:
    """Draws the geometry points of a case; without any, the sample stays as it is."""
    if not num_points or body is None:
        return sample
    idx = rng.choice(len(body), num_points, replace=False)
    # Drawn points are in no order, so the first are as good as any.
    return sample._replace(geometry_position=body[idx], supernode_idx=np.arange(num_supernodes, dtype=np.int32))
