"""The built-in data set: exact potential flow past random ellipsoids, sampled afresh at every step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.baselines import mean_predictor
from emmi_jax.data.draws import draw_supernodes
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.potential_flow import SEMI_AXIS_RANGE, SHELL_SCALE, Ellipsoid, random_ellipsoids
from emmi_jax.data.samples import EvaluationCase, Predict, Sample, SampleSizes, stack_samples
from emmi_jax.points import Array, Fields, PointSet, split_points

NUM_TRAIN_CASES = 400
NUM_TEST_CASES = 40
TRAIN_GEOMETRY_SEED = 0
TEST_GEOMETRY_SEED = 1
NUM_TEST_QUERIES = 1024
_POINTS_FOR_STATISTICS = 128
_STATISTICS_STREAM, _TRAIN_STREAM, _TEST_STREAM = range(3)


class EllipsoidDataset:
    """Flow past ellipsoids in the stream (1, 0, 0): 400 to train on, 40 others to test on.

    Branch `surface` has the field `pressure_coefficient`; branch `volume`, a shell up to four semi-axes, has
    `velocity` and `pressure_coefficient`. Points are drawn anew at every step and their fields computed exactly.

    Args:
        sizes: Sizes of a batch.
        position_range: The longest possible side of the shell, in model units.
        num_train_cases: Geometries to train on.
        num_test_cases: Geometries to test on.
        divergence_free: Fields whose scales keep the divergence zero.
    """

    fields: ClassVar[dict[str, dict[str, int]]] = {
        "surface": {"pressure_coefficient": 1},
        "volume": {"velocity": 3, "pressure_coefficient": 1},
    }
    fixed_case: Sample | None = None

    def __init__(
        self,
        sizes: SampleSizes,
        *,
        position_range: float,
        num_train_cases: int = NUM_TRAIN_CASES,
        num_test_cases: int = NUM_TEST_CASES,
        divergence_free: Collection[str] = (),
    ) -> None:
        self.sizes = sizes
        self.position_range = position_range
        self.divergence_free = divergence_free
        self.train_bodies = random_ellipsoids(num_train_cases, seed=TRAIN_GEOMETRY_SEED)
        self.test_bodies = random_ellipsoids(num_test_cases, seed=TEST_GEOMETRY_SEED)

    @property
    def summary(self) -> str:
        """A line that says what the data are."""
        return (
            f"potential flow past ellipsoids: {len(self.train_bodies)} geometries to train on, "
            f"{len(self.test_bodies)} to test on"
        )

    @cached_property
    def normalizer(self) -> Normalizer:
        """Scales of positions and fields, from points of the training geometries."""
        reach = SHELL_SCALE * SEMI_AXIS_RANGE[1]
        scales = {
            branch: {
                name: FieldScale.fit(values, common_std=name in self.divergence_free)
                for name, values in points.fields.items()
            }
            for branch, points in self._statistics_points.items()
        }
        return Normalizer.from_box([-reach] * 3, [reach] * 3, position_range=self.position_range, fields=scales)

    @cached_property
    def _statistics_points(self) -> dict[str, PointSet]:
        rng = np.random.default_rng([_STATISTICS_STREAM])
        parts = [sample_body(body, rng, _POINTS_FOR_STATISTICS) for body in self.train_bodies]
        return {
            branch: PointSet(
                np.concatenate([part[branch].position for part in parts]),
                {name: np.concatenate([part[branch].fields[name] for part in parts]) for name in names},
            )
            for branch, names in self.fields.items()
        }

    @property
    def _means(self) -> Fields:
        return {
            branch: {name: values.mean(axis=0) for name, values in points.fields.items()}
            for branch, points in self._statistics_points.items()
        }

    def train_batch(self, seed: int, step: int) -> Sample:
        """Returns a batch of training geometries, drawn with replacement, in physical units."""
        rng = np.random.default_rng([_TRAIN_STREAM, seed, step])
        bodies = [self.train_bodies[idx] for idx in rng.integers(len(self.train_bodies), size=self.sizes.batch_size)]
        sizes = self.sizes
        return stack_samples(
            [self._sample(body, rng, sizes.num_anchors, sizes.num_queries, sizes.num_supernodes) for body in bodies]
        )

    def evaluation_cases(self) -> Iterator[EvaluationCase]:
        """Yields the test geometries with the mean predictor and the flow past the most similar training geometry."""
        for idx, body in enumerate(self.test_bodies):
            rng = np.random.default_rng([_TEST_STREAM, idx])
            sample = self._test_sample(body, rng, num_queries=NUM_TEST_QUERIES)
            baselines = {
                "mean_predictor": mean_predictor(self._means, sample.queries),
                "nearest_case": nearest_case(body, self.train_bodies, sample.queries),
            }
            yield EvaluationCase(sample, baselines)

    def _test_sample(self, body: Ellipsoid, rng: np.random.Generator, *, num_queries: int) -> Sample:
        return self._sample(body, rng, self.sizes.num_test_anchors, num_queries, self.sizes.num_test_supernodes)

    def _sample(
        self, body: Ellipsoid, rng: np.random.Generator, num_anchors: int, num_queries: int, num_supernodes: int
    ) -> Sample:
        """Draws anchors, queries and geometry of one body, all of them different points."""
        anchors, queries = {}, {}
        for branch, points in sample_body(body, rng, num_anchors + num_queries).items():
            anchors[branch], queries[branch] = split_points(points, num_anchors)
        if not num_queries:
            queries = {}
        if not self.sizes.num_geometry_points:
            return Sample(anchors, queries)
        geometry = body.sample_surface(rng, self.sizes.num_geometry_points)
        return Sample(anchors, queries, geometry, draw_supernodes(rng, geometry, num_supernodes, self.sizes))

    def draw(self, predict: Predict, directory: Path) -> list[Path]:
        """Draws surface pressure and a slice of the velocity for the first test geometry."""
        from emmi_jax.plots.ellipsoid import draw_slice, draw_surface

        body = self.test_bodies[0]
        anchored = self._test_sample(body, np.random.default_rng([_TEST_STREAM, 0]), num_queries=0)
        return [draw_surface(body, anchored, predict, directory), draw_slice(body, anchored, predict, directory)]


def sample_body(body: Ellipsoid, rng: np.random.Generator, num_points: int) -> dict[str, PointSet]:
    """Draws points with exact fields on the surface and in the shell around it.

    Args:
        body: The ellipsoid.
        rng: Source of randomness.
        num_points: Points of each branch.

    Returns:
        Points by branch.
    """
    return exact_points(
        body, {"surface": body.sample_surface(rng, num_points), "volume": body.sample_volume(rng, num_points)}
    )


def exact_points(body: Ellipsoid, positions: dict[str, Array]) -> dict[str, PointSet]:
    """Computes the fields of the branches `surface` and `volume` at positions [N, 3]."""
    velocity = body.velocity(np.concatenate(list(positions.values())))
    pressure = 1.0 - np.square(velocity).sum(axis=1, keepdims=True) / np.square(body.free_stream).sum()
    points, start = {}, 0
    for branch, position in positions.items():
        here = slice(start, start + len(position))
        fields = {"velocity": velocity[here], "pressure_coefficient": pressure[here]}
        points[branch] = PointSet(position, {name: fields[name] for name in EllipsoidDataset.fields[branch]})
        start = here.stop
    return points


def nearest_case(body: Ellipsoid, known: Sequence[Ellipsoid], queries: dict[str, PointSet]) -> Fields:
    """Predicts the exact flow past the most similar known ellipsoid, at the corresponding points.

    Similar means close in the logarithm of the stretch `R diag(a) R^T` (Frobenius norm), so the order of the axes does
    not count. Points correspond under the linear map that takes one ellipsoid to the other.

    Args:
        body: The ellipsoid to predict.
        known: Ellipsoids with known flow.
        queries: Points of `body`.

    Returns:
        Values by branch and field, each [T, F].
    """
    target = _stretch(body, np.log)
    distance = [np.linalg.norm(_stretch(other, np.log) - target) for other in known]
    nearest = known[int(np.argmin(distance))]
    to_nearest = np.linalg.solve(_stretch(body), _stretch(nearest))
    mapped = exact_points(nearest, {branch: points.position @ to_nearest for branch, points in queries.items()})
    return {branch: points.fields for branch, points in mapped.items()}


def _stretch(body: Ellipsoid, function: np.ufunc = np.positive) -> NDArray[np.float64]:
    """A function of the symmetric matrix that takes the unit sphere to the ellipsoid."""
    return (body.rotation * function(body.semi_axes)) @ body.rotation.T
