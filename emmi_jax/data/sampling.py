"""Draws from arrays of points or triangles, with checks of their arguments; and the random streams of a data set."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import Method
from emmi_jax.config import Sampling as Sampling
from emmi_jax.deploy.draws import Points, draw


class RandomStream(IntEnum):
    """First word of the seed of what a data set draws, so that no two draws share their random numbers."""

    SETUP = 0
    """Drawn once: splits, points for statistics."""
    TRAIN = 1
    TEST = 2
    EPOCH = 3
    """Order of the cases in an epoch."""
    PERMUTATION = 4
    """Order of the points in a store."""
    DIRECTION = 5
    """Directions of the stream of the built-in data."""


def sample_points(
    rng: np.random.Generator | int,
    position: NDArray[np.floating[Any]],
    num_points: int,
    *,
    method: Method = "uniform",
    weights: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Draws points without replacement.

    Args:
        rng: Source of randomness, or a seed; the same state gives the same points.
        position: Positions [N, n].
        num_points: How many to draw, at most N.
        method: `uniform`: all subsets are equally likely. `weighted`: one after another, each with a probability
            proportional to its weight among those left; cell sizes as weights compensate for local mesh refinement.
            `farthest`: the first at random, each next as far as possible from those drawn, in N·num_points steps.
        weights: Weights [N], not negative, for `weighted` only.

    Returns:
        Indices [num_points] into the points, in the order of the draws.

    Raises:
        ValueError: There are too few points (with a weight), or the arguments do not match.

    Sources: P. S. Efraimidis, P. G. Spirakis, Inf. Process. Lett. 97 (2006), for weighted draws; T. F. Gonzalez,
    Theor. Comput. Sci. 38 (1985), for farthest points.
    """
    rng = np.random.default_rng(rng)
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if (weights is not None) != (method == "weighted"):
        raise ValueError(f"the method 'weighted', and no other, takes weights; got {method!r}")
    if not 0 <= num_points <= len(position):
        raise ValueError(f"cannot draw {num_points} of {len(position)} points")
    return draw(rng, method, Points(position, None if weights is None else np.asarray(weights)), num_points)


def sample_triangles(
    rng: np.random.Generator | int, corners: NDArray[np.floating[Any]], num_points: int
) -> NDArray[np.float64]:
    """Draws independent points on triangles, uniform in area; or on lines, whose last two corners are one, in length.

    Args:
        rng: Source of randomness, or a seed; the same state gives the same points.
        corners: Corners of the triangles, [F, 3, 3].
        num_points: How many points.

    Returns:
        Positions [num_points, 3].

    Raises:
        ValueError: The number is negative, or all triangles have no area.
    """
    face, weights = draw_on_triangles(rng, corners, num_points)
    corners = np.asarray(corners, dtype=np.float64)[face]
    origin, first, second = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    points: NDArray[np.float64] = origin + weights[:, 1:2] * first + weights[:, 2:] * second
    return points


def draw_on_triangles(
    rng: np.random.Generator | int, corners: NDArray[np.floating[Any]], num_points: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draws the points of `sample_triangles`; returns their triangles [num_points] and weights [num_points, 3].

    A point is the mean of its triangle's corners with these weights.

    Raises:
        ValueError: The number is negative, or all triangles have no area and are no lines.
    """
    rng = np.random.default_rng(rng)
    if num_points < 0:
        raise ValueError(f"num_points is {num_points}, expected 0 or more")
    corners = np.asarray(corners, dtype=np.float64)
    length = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)
    if length.sum() > 0 and np.array_equal(corners[:, 1], corners[:, 2]):
        line, share = rng.choice(len(corners), num_points, p=length / length.sum()), rng.random(num_points)
        return line, np.stack([1 - share, share, np.zeros(num_points)], axis=1)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    if not area.sum() > 0:
        raise ValueError(f"none of {len(corners)} triangles has an area")
    face = rng.choice(len(corners), num_points, p=area / area.sum())
    u, v = rng.random((2, num_points))
    # The other half of the parallelogram is folded back onto the triangle.
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    return face, np.stack([1 - u - v, u, v], axis=1)
