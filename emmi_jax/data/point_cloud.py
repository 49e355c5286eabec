"""A data set made of one measured or simulated case: some points to learn from, the rest to test on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from emmi_jax.data.baselines import NearestNeighbors, mean_predictor
from emmi_jax.data.draws import add_geometry, body_of, draw_points, draw_training_case
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import EvaluationCase, Predict, Sample, SampleSizes, stack_samples
from emmi_jax.data.statistics import DataMoments, measure, row_pieces
from emmi_jax.points import Array, PointSet, take_points

TEST_FRACTION = 0.2
MAX_EVALUATED_POINTS = 100_000
"""Test points of a branch that errors are measured at, where there are more."""

_SPLIT_STREAM, _TRAIN_STREAM, _ANCHOR_STREAM = range(3)


class PointCloudDataset:
    """One case, the points of each branch split at random into a training and a test part.

    Test points are only ever queries, and only after training.

    Args:
        points: Positions [N, n] and fields [N, F] by branch.
        sizes: Sizes of a batch; its cases are independent draws from the same points.
        position_range: The longest side of the points' box, in model units.
        geometry_position: Points [P, n] on the body that the geometry branch, if `sizes` has one, draws from; by
            default the training points of the branch `surface`.
        name: What to call the case.
        divergence_free: Fields whose scales keep the divergence zero; no logarithm is taken of them.
        statistics: Scales to use instead of measured ones; `position_range` then says nothing.

    Raises:
        ValueError: There are too few points for the sizes, or the scales do not fit.
    """

    def __init__(
        self,
        points: Mapping[str, PointSet],
        sizes: SampleSizes,
        *,
        position_range: float,
        geometry_position: Array | None = None,
        name: str = "case",
        divergence_free: Collection[str] = (),
        statistics: Normalizer | None = None,
    ) -> None:
        self.sizes, self.name, self.position_range = sizes, name, position_range
        self.divergence_free = divergence_free
        self.fields = {
            branch: {field: values.shape[-1] for field, values in part.fields.items()}
            for branch, part in points.items()
        }
        self._given = statistics and statistics.for_fields(self.fields, divergence_free=divergence_free)
        rng = np.random.default_rng([_SPLIT_STREAM])
        self.test_points: dict[str, PointSet] = {}
        self.train_points: dict[str, PointSet] = {}
        for branch, part in points.items():
            where = f"{name}: {branch}" if len(points) > 1 else name
            num_test = _num_test_points(where, len(part.position), sizes)
            order = rng.permutation(len(part.position))
            self.test_points[branch] = take_points(part, order[:num_test])
            self.train_points[branch] = take_points(part, order[num_test:])
        self._geometry_position = body_of(self.train_points, geometry_position, sizes, name=name)

    @property
    def summary(self) -> str:
        """A line that says what the data are."""
        parts = []
        for branch, train in self.train_points.items():
            label = f"{branch} " if len(self.train_points) > 1 else ""
            num_test = len(self.test_points[branch].position)
            parts.append(f"{label}{len(train.position)} points to train on, {num_test} to test on")
        return f"{self.name}: {'; '.join(parts)}"

    @cached_property
    def normalizer(self) -> Normalizer:
        """Scales of positions and fields, given or from the training points; `vorticity` is log-scaled by default."""
        return self._given or self._measured.normalizer(
            position_range=self.position_range, divergence_free=self.divergence_free
        )

    @cached_property
    def _measured(self) -> DataMoments:
        return measure(row_pieces(self.train_points))

    @cached_property
    def fixed_case(self) -> Sample:
        """The anchors and geometry of all predictions: training points, drawn once."""
        rng = np.random.default_rng([_ANCHOR_STREAM])
        anchors = {
            branch: take_points(
                points, draw_points(rng, points, min(self.sizes.num_test_anchors, len(points.position)), self.sizes)
            )
            for branch, points in self.train_points.items()
        }
        return add_geometry(
            rng,
            Sample(anchors, {}),
            self._geometry_position,
            self.sizes,
            num_supernodes=self.sizes.num_test_supernodes,
        )

    def train_batch(self, seed: int, step: int) -> Sample:
        """Returns independent draws of anchors and queries from the training points, in physical units."""
        rng = np.random.default_rng([_TRAIN_STREAM, seed, step])
        return stack_samples(
            [
                draw_training_case(rng, self.train_points, self._geometry_position, self.sizes)
                for _ in range(self.sizes.batch_size)
            ]
        )

    def evaluation_cases(self) -> Iterator[EvaluationCase]:
        """Yields the test points, with the mean predictor and interpolation from all training points."""
        queries = {
            branch: take_points(points, slice(MAX_EVALUATED_POINTS)) for branch, points in self.test_points.items()
        }
        baselines = {
            "mean_predictor": mean_predictor(self._measured.means, queries),
            "nearest_neighbors": {
                branch: NearestNeighbors(points).predict(queries[branch].position)
                for branch, points in self.train_points.items()
            },
        }
        yield EvaluationCase(self.fixed_case._replace(queries=queries), baselines)

    def draw(self, predict: Predict, directory: Path) -> list[Path]:
        """Draws every field at the test points near the middle plane."""
        from emmi_jax.plots.point_cloud import draw_fields

        return [
            path
            for branch, points in self.test_points.items()
            for path in draw_fields(points, branch, self.fixed_case, predict, directory)
        ]


def _num_test_points(name: str, num_points: int, sizes: SampleSizes) -> int:
    num_test = round(TEST_FRACTION * num_points)
    if num_test < 1 or num_points - num_test < sizes.num_anchors + sizes.num_queries:
        raise ValueError(
            f"{name}: {num_points} points are too few: {num_points - num_test} of them are to train on, and a step "
            f"draws {sizes.num_anchors} anchors and {sizes.num_queries} queries"
        )
    return num_test
