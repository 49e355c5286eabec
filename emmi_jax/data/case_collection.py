"""A data set of many simulated cases, each in its folder: some to train on, others to test on."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from emmi_jax.data.baselines import mean_predictor
from emmi_jax.data.case_folder import Case, case_branches
from emmi_jax.data.case_split import CaseSplit
from emmi_jax.data.draws import add_geometry, body_of, draw_points, draw_training_case
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import EvaluationCase, Predict, Sample, SampleSizes, stack_samples
from emmi_jax.data.statistics import DataMoments, measure, row_pieces
from emmi_jax.points import Fields, PointSet, take_points

NUM_TEST_QUERIES = 4096
"""Points of a branch of a test case that errors are measured at, where there are as many."""

NUM_CASES_IN_MEMORY = 16
_TRAIN_STREAM, _TEST_STREAM = 1, 2  # 0 is that of `case_split`


def case_folders(path: Path) -> list[Path]:
    """Returns the folders in a folder that hold cases, in the order of their numbers."""
    if not path.is_dir():
        return []
    found = [folder for folder in path.iterdir() if folder.is_dir() and case_branches(folder)]
    return sorted(found, key=lambda folder: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", folder.name)])


class CaseCollection:
    """Many cases of the same fields, some of which are only tested on.

    Cases are read when they are drawn, and the last 16 stay in memory; tensors are mapped, so they cost little to read
    again, unlike meshes. All training cases are read once to measure the scales, unless these are given.

    Args:
        split: Folders of the cases.
        load_case: Reads one.
        sizes: Sizes of a batch.
        position_range: The longest side of the box of all training points, in model units.
        name: What to call the data.
        divergence_free: Fields whose scales keep the divergence zero; no logarithm is taken of them.
        statistics: Scales to use instead of measured ones; `position_range` then says nothing.

    Raises:
        ValueError: The scales do not fit, or, when it is read, a case has too few points or other fields.
    """

    def __init__(
        self,
        split: CaseSplit,
        load_case: Callable[[Path], Case],
        sizes: SampleSizes,
        *,
        position_range: float,
        name: str = "cases",
        divergence_free: Collection[str] = (),
        statistics: Normalizer | None = None,
    ) -> None:
        self.split, self.sizes, self.name, self.position_range = split, sizes, name, position_range
        self.divergence_free = divergence_free
        self.fixed_case: Sample | None = None
        self._read = lru_cache(NUM_CASES_IN_MEMORY)(load_case)
        self.fields = _channels(self._read(split.train[0]))
        self._given = statistics and statistics.for_fields(self.fields, divergence_free=divergence_free)

    @property
    def summary(self) -> str:
        """A line that says what the data are."""
        return f"{self.name}: {self.split.summary}"

    @property
    def normalizer(self) -> Normalizer:
        """Scales of positions and fields, given or from the training cases; `vorticity` is log-scaled by default."""
        return self._given or self._measured.normalizer(
            position_range=self.position_range, divergence_free=self.divergence_free
        )

    @cached_property
    def _measured(self) -> DataMoments:
        return measure(piece for folder in self.split.train for piece in row_pieces(self._case(folder).points))

    @property
    def _means(self) -> Fields:
        return self._given.means if self._given else self._measured.means

    def train_batch(self, seed: int, step: int) -> Sample:
        """Returns draws from training cases, which are drawn with replacement, in physical units."""
        rng = np.random.default_rng([_TRAIN_STREAM, seed, step])
        samples = []
        for idx in rng.integers(len(self.split.train), size=self.sizes.batch_size):
            case = self._case(self.split.train[idx])
            samples.append(draw_training_case(rng, case.points, case.geometry_position, self.sizes))
        return stack_samples(samples)

    def evaluation_cases(self) -> Iterator[EvaluationCase]:
        """Yields the test cases, each at points that are not its anchors, with the mean predictor."""
        for number in range(len(self.split.test)):
            sample = self._test_sample(number)
            yield EvaluationCase(sample, {"mean_predictor": mean_predictor(self._means, sample.queries)})

    def draw(self, predict: Predict, directory: Path) -> list[Path]:
        """Draws every field of the first test case at points near its middle plane."""
        from emmi_jax.plots.point_cloud import draw_fields

        points = self._case(self.split.test[0]).points
        anchored = self._test_sample(0)._replace(queries={})
        return [path for b, part in points.items() for path in draw_fields(part, b, anchored, predict, directory)]

    def _test_sample(self, number: int) -> Sample:
        rng = np.random.default_rng([_TEST_STREAM, number])
        case = self._case(self.split.test[number])
        sample = Sample({}, {})
        for branch, points in case.points.items():
            num_anchors, num_queries = self._test_sizes[branch]
            anchor_idx = draw_points(rng, points, num_anchors, self.sizes)
            others = np.delete(np.arange(len(points.position)), anchor_idx)
            sample.anchors[branch] = take_points(points, anchor_idx)
            sample.queries[branch] = take_points(points, rng.choice(others, num_queries, replace=False))
        return add_geometry(
            rng,
            sample,
            case.geometry_position,
            self.sizes,
            num_supernodes=self.sizes.num_test_supernodes,
        )

    @cached_property
    def _test_sizes(self) -> dict[str, tuple[int, int]]:
        """Anchors and queries by branch, the same for all test cases: the smallest decides."""
        sizes = {}
        for branch in self.fields:
            smallest = min(len(self._case(folder).points[branch].position) for folder in self.split.test)
            num_anchors = min(self.sizes.num_test_anchors, smallest // 2)
            sizes[branch] = num_anchors, min(NUM_TEST_QUERIES, smallest - num_anchors)
        return sizes

    def _case(self, folder: Path) -> Case:
        case = self._read(folder)
        found = _channels(case)
        if found != self.fields:
            raise ValueError(f"{folder}: has the fields {found}, the case {self.split.train[0]} has {self.fields}")
        needed = self.sizes.num_anchors + self.sizes.num_queries
        for branch, points in case.points.items():
            if len(points.position) < needed:
                raise ValueError(
                    f"{folder}: {branch}: {len(points.position)} points are too few: a step draws {needed} of them"
                )
        body = body_of(case.points, case.geometry_position, self.sizes, name=str(folder))
        return Case(case.points, body)


def _channels(case: Case) -> dict[str, dict[str, int]]:
    def of(points: PointSet) -> dict[str, int]:
        return {name: values.shape[-1] for name, values in points.fields.items()}

    return {branch: of(points) for branch, points in case.points.items()}
