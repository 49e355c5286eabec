"""A data set of one measured or simulated case: some points to learn from, the rest to test on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Self

import numpy as np

from emmi_jax.config import Sampling
from emmi_jax.data.baselines import nearest_neighbors
from emmi_jax.data.cases import Case, branch_shapes
from emmi_jax.data.draws import draw_geometry, draw_points, draw_training_case, geometry_points
from emmi_jax.data.features import split_channels, with_features
from emmi_jax.data.notes import masked
from emmi_jax.data.report import SILENT, Report
from emmi_jax.data.samples import Context, Dataset, Sample
from emmi_jax.data.sampling import RandomStream
from emmi_jax.data.statistics import DataMoments, measure, point_chunks
from emmi_jax.points import Array, Fields, PointSet, take_points

TEST_FRACTION = 0.2
MAX_EVALUATED_POINTS = 100_000
"""Most test points per branch that metrics are computed at."""


class PointCloudDataset(Dataset):
    """One case, with the points of each branch split at random into a training part and a test part.

    Test points are only ever queries, and only after training.

    Args:
        points: Positions [N, n] and fields [N, F] by branch.
        sampling: How many points to draw, and how.
        geometry: Points [P, n] that the geometry branch, if there is one, draws from; by default the training points
            of the branch `surface`.
        features: Arrays that the model takes instead of predicting them, by branch, or `geometry`.
        name: What to call the case.
        left_out: What was not read of it.
        fingerprint: What changes if its files do.

    Raises:
        ValueError: There are too few points to draw from.
    """

    def __init__(
        self,
        points: Mapping[str, PointSet],
        sampling: Sampling,
        *,
        geometry: Array | None = None,
        features: Mapping[str, Sequence[str]] = MappingProxyType({}),
        name: str = "case",
        left_out: tuple[str, ...] = (),
        fingerprint: str | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        self.sampling, self.name, self._case = sampling, name, Case(dict(points), geometry, left_out)
        arrays = {branch: dict(shape.fields) for branch, shape in branch_shapes(points).items()}
        self.fields, self.features = split_channels(arrays, features)
        rng = np.random.default_rng([RandomStream.SETUP])
        self.test_points: dict[str, PointSet] = {}
        self.train_points: dict[str, PointSet] = {}
        for branch, part in points.items():
            where = f"{name}: {branch}" if len(points) > 1 else name
            num_test = _num_test_points(where, len(part.position), sampling)
            order = rng.permutation(len(part.position))
            self.test_points[branch] = take_points(part, order[:num_test])
            self.train_points[branch] = take_points(part, order[num_test:])
        self._measured = self.train_points
        train = with_features(name, Case(self.train_points, geometry), self.features)
        self.train_points = train.points
        self.test_points = with_features(name, Case(self.test_points, None), self.features).points
        self._geometry = geometry_points(
            train.points, train.geometry, sampling, name=name, features=train.geometry_features
        )

    @property
    def fingerprint(self) -> str | None:
        """Changes if the content of the files does."""
        return self._fingerprint

    @property
    def shown(self) -> Mapping[str, PointSet]:
        """The points to test on."""
        return self.test_points

    def notes(self) -> tuple[dict[str, str], list[str]]:
        """Returns what is not read."""
        return {}, [] if self.opened is None else [*self.opened.left_out(self.opened.names), *self._case.left_out]

    def baselines(self, number: int, sample: Sample) -> dict[str, Fields]:
        """Returns `nearest_neighbors`, interpolated among the points to train on."""
        known = self.train_points
        return {
            "nearest_neighbors": {
                branch: nearest_neighbors(known[branch], points.position) for branch, points in sample.queries.items()
            }
        }

    @property
    def summary(self) -> str:
        """Describes the data in one line."""
        parts = []
        for branch, train in self.train_points.items():
            label = f"{branch} " if len(self.train_points) > 1 else ""
            num_test = len(self.test_points[branch].position)
            parts.append(f"{label}{len(train.position)} points to train on, {num_test} to test on")
        return f"{self.name}: {'; '.join(parts)}"

    @property
    def context(self) -> Context:
        """Anchors and geometry of all predictions: training points, drawn once."""
        return self._anchored.context

    def first_case(self) -> Case:
        """Returns the case."""
        return self._case

    def measure(self, report: Report = SILENT) -> DataMoments:
        """Returns the statistics of the training points."""
        moments = measure(point_chunks(self._measured))
        report.warn(masked(moments))
        return moments

    def resampled(self, sampling: Sampling) -> Self:
        """Returns the same points, split in the same way, with other draws.

        Raises:
            ValueError: There are too few points to draw from.
        """
        for branch, part in self.train_points.items():
            if len(part.position) < sampling.num_anchors + sampling.num_queries:
                raise ValueError(
                    f"{self.name}: {branch}: {len(part.position)} points to train on are too few for "
                    f"{sampling.num_anchors} anchors and {sampling.num_queries} queries"
                )
        return super().resampled(sampling)

    def train_sample(self, seed: int, number: int) -> Sample:
        """Returns a draw of anchors and queries from the training points, in physical units."""
        rng = np.random.default_rng([RandomStream.TRAIN, seed, number])
        return draw_training_case(rng, self.train_points, self._geometry, self.sampling)

    def train_case(self, seed: int, number: int) -> str:
        """Returns the name of the case."""
        return self.name

    def test_samples(self) -> Iterator[Sample]:
        """Yields one sample, with the test points as queries."""
        first = slice(MAX_EVALUATED_POINTS)
        yield self._anchored._replace(
            queries={branch: take_points(points, first) for branch, points in self.test_points.items()}
        )

    @cached_property
    def _anchored(self) -> Sample:
        rng, sample = np.random.default_rng([RandomStream.TEST]), Sample({}, {})
        for branch, points in self.train_points.items():
            num_anchors = min(self.sampling.num_test_anchors, len(points.position))
            sample.anchors[branch] = take_points(points, draw_points(rng, points, num_anchors, self.sampling))
        if self._geometry is None:
            return sample
        num_supernodes = self.sampling.num_test_supernodes
        return sample._replace(
            geometry=draw_geometry(rng, self._geometry, self.sampling, num_supernodes=num_supernodes)
        )


def _num_test_points(name: str, num_points: int, sampling: Sampling) -> int:
    num_test = round(TEST_FRACTION * num_points)
    if num_test < 1 or num_points - num_test < sampling.num_anchors + sampling.num_queries:
        raise ValueError(
            f"{name}: {num_points} points are too few: {num_points - num_test} of them are to train on, and a step "
            f"draws {sampling.num_anchors} anchors and {sampling.num_queries} queries"
        )
    return num_test
