"""A data set of many simulated cases, each in its own folder: some to train on, others to test on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from emmi_jax.data.case_folder import Case, case_branches
from emmi_jax.data.case_split import CaseSplit
from emmi_jax.data.draws import draw_geometry, draw_points, draw_training_case, geometry_points
from emmi_jax.data.samples import Context, Sample, case_of_sample
from emmi_jax.data.sampling import Sampling
from emmi_jax.data.statistics import point_chunks
from emmi_jax.points import PointSet, take_points

NUM_TEST_QUERIES = 4096
"""Most points per branch of a test case that metrics are computed at."""

NUM_CASES_IN_MEMORY = 16
_TRAIN_STREAM, _TEST_STREAM = 1, 2  # `case_split` uses 0


def case_folders(path: Path) -> list[Path]:
    """Returns the folders in a folder that hold cases, in the order of their numbers."""
    if not path.is_dir():
        return []
    found = [folder for folder in path.iterdir() if folder.is_dir() and case_branches(folder)]
    return sorted(found, key=lambda folder: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", folder.name)])


class CaseCollection:
    """Many cases with the same fields, some of which are only tested on.

    A case is read when it is drawn, and the last 16 stay in memory. Tensors are memory-mapped, so reading them again
    costs little, unlike meshes.

    Args:
        split: Folders of the cases.
        load_case: Reads one.
        sampling: How many points to draw, and how.
        name: What to call the data.

    Raises:
        ValueError: A case has too few points or other fields; raised when it is read.
    """

    context: Context | None = None

    def __init__(
        self,
        split: CaseSplit,
        load_case: Callable[[Path], Case],
        sampling: Sampling,
        *,
        name: str = "cases",
    ) -> None:
        self.split, self.sampling, self.name = split, sampling, name
        self._read = lru_cache(NUM_CASES_IN_MEMORY)(load_case)
        self.fields = _channels(self._read(split.train[0]))

    @property
    def summary(self) -> str:
        """Describes the data in one line."""
        return f"{self.name}: {self.split.summary}"

    def train_chunks(self) -> Iterator[tuple[str, PointSet]]:
        """Yields the points of all training cases."""
        for folder in self.split.train:
            yield from point_chunks(self.read_case(folder).points)

    def train_sample(self, seed: int, number: int) -> Sample:
        """Returns draws from a training case, in physical units."""
        rng = np.random.default_rng([_TRAIN_STREAM, seed, number])
        points, geometry = self.read_case(self.split.train[case_of_sample(seed, number, len(self.split.train))])
        return draw_training_case(rng, points, geometry, self.sampling)

    def validation_samples(self) -> Iterator[Sample]:
        """Yields the validation cases; no query is an anchor."""
        return self._draw_whole(self.split.validation)

    def test_samples(self) -> Iterator[Sample]:
        """Yields the test cases; no query is an anchor."""
        return self._draw_whole(self.split.test)

    def _draw_whole(self, folders: Sequence[Path]) -> Iterator[Sample]:
        for number, folder in enumerate(folders):
            rng, sample = np.random.default_rng([_TEST_STREAM, number]), Sample({}, {})
            case = self.read_case(folder)
            for branch, points in case.points.items():
                num_anchors, num_queries = self._test_sizes[branch]
                anchor_idx = draw_points(rng, points, num_anchors, self.sampling)
                others = np.delete(np.arange(len(points.position)), anchor_idx)
                sample.anchors[branch] = take_points(points, anchor_idx)
                sample.queries[branch] = take_points(points, rng.choice(others, num_queries, replace=False))
            if case.geometry is not None:
                num_supernodes = self.sampling.num_test_supernodes
                geometry = draw_geometry(rng, case.geometry, self.sampling, num_supernodes=num_supernodes)
                sample = sample._replace(geometry=geometry)
            yield sample

    def read_case(self, folder: Path) -> Case:
        """Reads a case and checks that it fits the others."""
        points, geometry = self._read(folder)
        if (found := _channels(Case(points, geometry))) != self.fields:
            raise ValueError(f"{folder}: has the fields {found}, the case {self.split.train[0]} has {self.fields}")
        needed = self.sampling.num_anchors + self.sampling.num_queries
        for branch, part in points.items():
            if len(part.position) < needed:
                raise ValueError(
                    f"{folder}: {branch}: {len(part.position)} points are too few: a step draws {needed} of them"
                )
        return Case(points, geometry_points(points, geometry, self.sampling, name=str(folder)))

    @cached_property
    def _test_sizes(self) -> dict[str, tuple[int, int]]:
        """Anchors and queries by branch, as many as the smallest of these cases allows."""
        sizes = {}
        for branch in self.fields:
            folders = [*self.split.test, *self.split.validation]
            smallest = min(len(self.read_case(folder).points[branch].position) for folder in folders)
            num_anchors = min(self.sampling.num_test_anchors, smallest // 2)
            sizes[branch] = num_anchors, min(NUM_TEST_QUERIES, smallest - num_anchors)
        return sizes


def _channels(case: Case) -> dict[str, dict[str, int]]:
    return {
        branch: {name: values.shape[-1] for name, values in points.fields.items()}
        for branch, points in case.points.items()
    }
