"""The built-in data set: exact potential flow past random ellipsoids, sampled afresh at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import Sampling
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.draws import add_supernodes
from emmi_jax.data.potential_flow import SEMI_AXIS_RANGE, SHELL_SCALE, Ellipsoid, random_ellipsoids
from emmi_jax.data.report import SILENT, Report
from emmi_jax.data.samples import Dataset, Sample, case_of_sample
from emmi_jax.data.sampling import RandomStream
from emmi_jax.data.statistics import DataMoments, measure
from emmi_jax.points import Array, Fields, PointSet, split_points

NUM_TRAIN_CASES = 400
NUM_TEST_CASES = 40
TRAIN_GEOMETRY_SEED = 0
TEST_GEOMETRY_SEED = 1
NUM_TEST_QUERIES = 1024
_POINTS_FOR_STATISTICS = 128


FIELDS = {"surface": {"pressure_coefficient": 1}, "volume": {"velocity": 3, "pressure_coefficient": 1}}


class EllipsoidDataset(Dataset):
    """Flow past ellipsoids in the stream (1, 0, 0): 400 to train on and 40 others to test on.

    With `stream_angle` the stream has the direction of `stream_direction`, and its angles are the conditions `yaw` and
    `pitch`: drawn anew at every step, and the same for each test case.

    The branch `surface` has the field `pressure_coefficient`. The branch `volume`, a shell of up to four semi-axes, has
    `velocity` and `pressure_coefficient`. Points are drawn anew at every step and their fields are computed exactly.

    Args:
        sampling: How many points to draw, and how.
        num_train_cases: Ellipsoids to train on.
        num_test_cases: Ellipsoids to test on.
        stream_angle: Largest yaw and pitch of the stream, in degrees; 0 for no conditions.
    """

    fields = FIELDS

    def __init__(
        self,
        sampling: Sampling,
        *,
        num_train_cases: int = NUM_TRAIN_CASES,
        num_test_cases: int = NUM_TEST_CASES,
        stream_angle: float = 0.0,
    ) -> None:
        self.sampling, self.stream_angle = sampling, stream_angle
        self.train_bodies = random_ellipsoids(num_train_cases, seed=TRAIN_GEOMETRY_SEED)
        self.test_bodies = random_ellipsoids(num_test_cases, seed=TEST_GEOMETRY_SEED)
        if stream_angle:
            scale = ConditionScale.uniform(-stream_angle, stream_angle, unit="deg", kind="angle")
            self.conditions = {"pitch": scale, "yaw": scale}
            bodies = enumerate(self.test_bodies)
            self.test_bodies = [in_stream(body, self.draw_angles(RandomStream.TEST, number)) for number, body in bodies]

    @property
    def summary(self) -> str:
        """Describes the data in one line."""
        streams = f", yaw and pitch up to {self.stream_angle:g} degrees" if self.stream_angle else ""
        return (
            f"potential flow past ellipsoids: {len(self.train_bodies)} geometries to train on, "
            f"{len(self.test_bodies)} to test on{streams}"
        )

    @property
    def body(self) -> Ellipsoid:
        """The first ellipsoid to test on."""
        return self.test_bodies[0]

    def baselines(self, number: int, sample: Sample) -> dict[str, Fields]:
        """Returns `nearest_case`, the flow past the most similar ellipsoid to train on."""
        return {"nearest_case": nearest_case(self.test_bodies[number], self.train_bodies, sample.queries)}

    def measure(self, report: Report = SILENT) -> DataMoments:
        """Returns the statistics of 128 points of each training ellipsoid, and of the box that holds every shell."""
        return measure(self._statistics_chunks())

    def train_sample(self, seed: int, number: int) -> Sample:
        """Returns a training ellipsoid, in physical units."""
        rng, sampling = np.random.default_rng([RandomStream.TRAIN, seed, number]), self.sampling
        body = self.train_bodies[case_of_sample(seed, number, len(self.train_bodies))]
        angles = self.draw_angles(RandomStream.TRAIN, seed, number)
        sizes = sampling.num_anchors, sampling.num_queries, sampling.num_supernodes
        return self._draw(rng, in_stream(body, angles), *sizes)._replace(condition=angles)

    def train_case(self, seed: int, number: int) -> str:
        """Returns the number of the ellipsoid of a training sample."""
        return f"ellipsoid {case_of_sample(seed, number, len(self.train_bodies))}"

    def test_samples(self) -> Iterator[Sample]:
        """Yields the test ellipsoids."""
        sizes = self.sampling.num_test_anchors, NUM_TEST_QUERIES, self.sampling.num_test_supernodes
        for number, body in enumerate(self.test_bodies):
            sample = self._draw(np.random.default_rng([RandomStream.TEST, number]), body, *sizes)
            yield sample._replace(condition=self.draw_angles(RandomStream.TEST, number))

    def draw_angles(self, *key: int) -> dict[str, float] | None:
        """Draws the angles of a stream in degrees, uniform within the limits; None without conditions."""
        if not self.stream_angle:
            return None
        rng = np.random.default_rng([RandomStream.DIRECTION, *key])
        return {name: rng.uniform(-self.stream_angle, self.stream_angle) for name in self.conditions}

    def _statistics_chunks(self) -> Iterator[tuple[str, PointSet]]:
        rng = np.random.default_rng([RandomStream.SETUP])
        bodies = [
            in_stream(body, self.draw_angles(RandomStream.SETUP, number))
            for number, body in enumerate(self.train_bodies)
        ]
        parts = [sample_body(body, rng, _POINTS_FOR_STATISTICS) for body in bodies]
        for branch, names in self.fields.items():
            position = np.concatenate([part[branch].position for part in parts])
            fields = {name: np.concatenate([part[branch].fields[name] for part in parts]) for name in names}
            yield branch, PointSet(position, fields)
        reach = SHELL_SCALE * SEMI_AXIS_RANGE[1]
        yield "volume", PointSet(np.array([[-reach] * 3, [reach] * 3]), {})

    def _draw(
        self, rng: np.random.Generator, body: Ellipsoid, num_anchors: int, num_queries: int, num_supernodes: int
    ) -> Sample:
        """Draws anchors, queries and geometry of one ellipsoid, all of them different points."""
        sample = Sample({}, {})
        for branch, points in sample_body(body, rng, num_anchors + num_queries).items():
            sample.anchors[branch], queries = split_points(points, num_anchors)
            if num_queries:
                sample.queries[branch] = queries
        if not self.sampling.num_geometry_points:
            return sample
        position = body.sample_surface(rng, self.sampling.num_geometry_points)
        return sample._replace(geometry=add_supernodes(rng, position, self.sampling, num_supernodes=num_supernodes))


def stream_direction(yaw: float, pitch: float) -> NDArray[np.float64]:
    """Returns the unit vector [3] of a stream: x at 0, turned by yaw towards y and by pitch towards z, in degrees."""
    psi, theta = math.radians(yaw), math.radians(pitch)
    return np.array([math.cos(theta) * math.cos(psi), math.cos(theta) * math.sin(psi), math.sin(theta)])


def in_stream(body: Ellipsoid, angles: Mapping[str, float] | None) -> Ellipsoid:
    """Returns a body in the stream of these angles, in degrees; None leaves its own."""
    return body if angles is None else replace(body, free_stream=stream_direction(**angles))


def sample_body(body: Ellipsoid, rng: np.random.Generator, num_points: int) -> dict[str, PointSet]:
    """Draws `num_points` points with exact fields on the surface, and as many in the shell around it, by branch."""
    return exact_points(
        body, {"surface": body.sample_surface(rng, num_points), "volume": body.sample_volume(rng, num_points)}
    )


def exact_points(body: Ellipsoid, positions: Mapping[str, Array]) -> dict[str, PointSet]:
    """Computes the fields of the branches `surface` and `volume` at positions [N, 3]."""
    velocity = body.velocity(np.concatenate(list(positions.values())))
    pressure = 1.0 - np.square(velocity).sum(axis=1, keepdims=True) / np.square(body.free_stream).sum()
    points, start = {}, 0
    for branch, position in positions.items():
        here = slice(start, start + len(position))
        fields = {"velocity": velocity[here], "pressure_coefficient": pressure[here]}
        points[branch] = PointSet(position, {name: fields[name] for name in FIELDS[branch]})
        start = here.stop
    return points


def nearest_case(body: Ellipsoid, known: Sequence[Ellipsoid], queries: Mapping[str, PointSet]) -> Fields:
    """Predicts the exact flow past the most similar known ellipsoid, at the corresponding points.

    Ellipsoids are similar if the logarithms of their stretches `R diag(a) R^T` are close (Frobenius norm), so that the
    order of the axes does not matter. The linear map between the ellipsoids says which points correspond. Both are in
    the stream of the first.

    Args:
        body: The ellipsoid to predict.
        known: Ellipsoids with known flow.
        queries: Points of `body`.

    Returns:
        Values [T, F] by branch and field.
    """
    target = _stretch(body, np.log)
    distance = [np.linalg.norm(_stretch(other, np.log) - target) for other in known]
    nearest = replace(known[int(np.argmin(distance))], free_stream=body.free_stream)
    to_nearest = np.linalg.solve(_stretch(body), _stretch(nearest))
    mapped = exact_points(nearest, {branch: points.position @ to_nearest for branch, points in queries.items()})
    return {branch: points.fields for branch, points in mapped.items()}


def _stretch(body: Ellipsoid, function: np.ufunc = np.positive) -> NDArray[np.float64]:
    """A function of the symmetric matrix that maps the unit sphere to the ellipsoid."""
    return (body.rotation * function(body.semi_axes)) @ body.rotation.T
