"""The draw of a training sample: anchors, queries and geometry points of a case, as its settings say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import Sampling
from emmi_jax.data.samples import Sample
from emmi_jax.data.sampling import sample_points
from emmi_jax.deploy.draws import GEOMETRY_BRANCH as GEOMETRY_BRANCH
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.points import Array, PointSet, split_points, take_points


def geometry_points(
    points: Mapping[str, PointSet],
    geometry: Array | None,
    sampling: Sampling,
    *,
    name: str,
    features: Array | None = None,
) -> PointSet | None:
    """Returns the given geometry points, or else those of the branch `surface`; None if the model needs none.

    Args:
        points: Points by branch.
        geometry: Points [P, 3] of the geometry, if there are any.
        sampling: How many are drawn.
        name: The case, for messages.
        features: Features [P, C] of the given geometry points.

    Raises:
        ValueError: There are fewer than the geometry branch draws.
    """
    if not sampling.num_geometry_points:
        return None
    if geometry is None and GEOMETRY_BRANCH in points:
        geometry = points[GEOMETRY_BRANCH].position
    available = 0 if geometry is None else len(geometry)
    if available < sampling.num_geometry_points:
        raise ValueError(
            f"{name}: the geometry branch draws {sampling.num_geometry_points} points, found {available}: "
            "--set sampling.num_geometry_points draws fewer, --no-geometry leaves it out"
        )
    return None if geometry is None else PointSet(geometry, {}, features=features)


def draw_training_case(
    rng: np.random.Generator, points: Mapping[str, PointSet], geometry: PointSet | None, sampling: Sampling
) -> Sample:
    """Draws anchors and queries of every branch, and the geometry, without replacement.

    Args:
        rng: Source of randomness.
        points: All points by branch.
        geometry: Points of the geometry, or None.
        sampling: How many to draw, and how.
    """
    sample = Sample({}, {})
    for branch, part in points.items():
        idx = draw_points(rng, part, sampling.num_anchors + sampling.num_queries, sampling)
        sample.anchors[branch], queries = split_points(take_points(part, idx), sampling.num_anchors)
        if sampling.num_queries:
            sample.queries[branch] = queries
    if geometry is None:
        return sample
    return sample._replace(geometry=draw_geometry(rng, geometry, sampling, num_supernodes=sampling.num_supernodes))


def draw_points(rng: np.random.Generator, points: PointSet, num_points: int, sampling: Sampling) -> NDArray[np.int64]:
    """Draws points of a branch without replacement, by `sampling.method`; returns their indices.

    Raises:
        ValueError: There are too few points, or they have no cell sizes to weight them.
    """
    if sampling.method == "weighted" and points.cell_size is None:
        raise ValueError("anchors are drawn by cell size, but the points have no cell sizes: pass the anchors instead")
    weights = points.cell_size if sampling.method == "weighted" else None
    return sample_points(rng, points.position, num_points, method=sampling.method, weights=weights)


def draw_geometry(rng: np.random.Generator, points: PointSet, sampling: Sampling, *, num_supernodes: int) -> Geometry:
    """Draws points of the geometry and supernodes among them, or as many as there are."""
    num_all = len(points.position)
    drawn = take_points(points, sample_points(rng, points.position, min(sampling.num_geometry_points, num_all)))
    num_supernodes = min(num_supernodes, len(drawn.position))
    geometry = add_supernodes(rng, drawn.position, sampling, num_supernodes=num_supernodes)
    return geometry._replace(features=drawn.features)


def add_supernodes(rng: np.random.Generator, position: Array, sampling: Sampling, *, num_supernodes: int) -> Geometry:
    """Draws supernodes among drawn geometry points [P, n], by `sampling.supernode_method`."""
    if sampling.supernode_method == "uniform":
        # Drawn points are in no order, so the first are as good as any.
        return Geometry(position, np.arange(num_supernodes, dtype=np.int32))
    idx = sample_points(rng, position, num_supernodes, method=sampling.supernode_method)
    return Geometry(position, idx.astype(np.int32))
