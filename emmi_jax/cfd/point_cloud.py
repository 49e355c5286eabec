"""A data set made of one measured or simulated case: some points to learn from, the rest to test on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from emmi_jax.cfd.baselines import NearestNeighbors, mean_predictor
from emmi_jax.cfd.cases import (
    EvaluationCase,
    PointSet,
    Predict,
    Sample,
    SampleSizes,
    split_points,
    stack_samples,
    take_points,
)
from emmi_jax.cfd.normalization import LOG_SCALED_FIELDS, FieldScale, Normalizer

TEST_FRACTION = 0.2
_SPLIT_STREAM, _TRAIN_STREAM, _ANCHOR_STREAM = range(3)


class PointCloudDataset:
    """One case of one branch, its points split at random into a training and a test part.

    Test points are only ever queries, and only after training.

    Args:
        points: Positions [N, n] and fields [N, F].
        sizes: Sizes of a batch; its cases are independent draws from the same points.
        position_range: The longest side of the points' box, in model units.
        branch: Name of the branch.
        name: What to call the case.
        divergence_free: Fields whose scales keep the divergence zero; no logarithm is taken of them.

    Raises:
        ValueError: There are too few points for the sizes.
    """

    def __init__(
        self,
        points: PointSet,
        sizes: SampleSizes,
        *,
        position_range: float,
        branch: str = "volume",
        name: str = "case",
        divergence_free: Collection[str] = (),
    ) -> None:
        num_points = len(points.position)
        num_test = round(TEST_FRACTION * num_points)
        if num_test < 1 or num_points - num_test < sizes.num_anchors + sizes.num_queries:
            raise ValueError(
                f"{name}: {num_points} points are too few: {num_points - num_test} of them are to train on, and a step "
                f"draws {sizes.num_anchors} anchors and {sizes.num_queries} queries"
            )
        order = np.random.default_rng([_SPLIT_STREAM]).permutation(num_points)
        self.sizes, self.branch, self.name, self.position_range = sizes, branch, name, position_range
        self.divergence_free = divergence_free
        self.test_points, self.train_points = split_points(take_points(points, order), num_test)
        self.fields = {branch: {name: values.shape[-1] for name, values in points.fields.items()}}

    @property
    def summary(self) -> str:
        """A line that says what the data are."""
        num_train, num_test = len(self.train_points.position), len(self.test_points.position)
        return f"{self.name}: {num_train} points to train on, {num_test} to test on"

    @cached_property
    def normalizer(self) -> Normalizer:
        """Scales of positions and fields, from the training points; `vorticity` is log-scaled where it may be."""
        position, free = self.train_points.position, self.divergence_free
        scales = {
            name: FieldScale.fit(values, log_scale=name in LOG_SCALED_FIELDS - set(free), common_std=name in free)
            for name, values in self.train_points.fields.items()
        }
        return Normalizer.from_box(
            position.min(axis=0),
            position.max(axis=0),
            position_range=self.position_range,
            fields={self.branch: scales},
        )

    @cached_property
    def fixed_case(self) -> Sample:
        """The anchors of all predictions: training points, drawn once."""
        rng = np.random.default_rng([_ANCHOR_STREAM])
        idx = rng.permutation(len(self.train_points.position))[: self.sizes.num_test_anchors]
        return Sample({self.branch: take_points(self.train_points, idx)}, {})

    def train_batch(self, seed: int, step: int) -> Sample:
        """Returns independent draws of anchors and queries from the training points, in physical units."""
        rng = np.random.default_rng([_TRAIN_STREAM, seed, step])
        return stack_samples([self._draw(rng) for _ in range(self.sizes.batch_size)])

    def _draw(self, rng: np.random.Generator) -> Sample:
        num_anchors, num_queries = self.sizes.num_anchors, self.sizes.num_queries
        idx = rng.choice(len(self.train_points.position), num_anchors + num_queries, replace=False)
        anchors, queries = split_points(take_points(self.train_points, idx), num_anchors)
        return Sample({self.branch: anchors}, {self.branch: queries} if num_queries else {})

    def evaluation_cases(self) -> Iterator[EvaluationCase]:
        """Yields the test points, with the mean predictor and interpolation from all training points."""
        queries = {self.branch: self.test_points}
        means = {self.branch: {name: values.mean(axis=0) for name, values in self.train_points.fields.items()}}
        baselines = {
            "mean_predictor": mean_predictor(means, queries),
            "nearest_neighbors": {self.branch: NearestNeighbors(self.train_points).predict(self.test_points.position)},
        }
        yield EvaluationCase(self.fixed_case._replace(queries=queries), baselines)

    def draw(self, predict: Predict, directory: Path) -> list[Path]:
        """Draws every field at the test points near the middle plane."""
        from emmi_jax.cfd.point_cloud_plots import draw_fields

        return draw_fields(self.test_points, self.branch, self.fixed_case, predict, directory)
