"""A data set of many simulated cases, each in its own folder: some to train on, others to test on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np

from emmi_jax.config import Sampling
from emmi_jax.config.conditions import ScalingLaw
from emmi_jax.data.case_split import CaseSplit
from emmi_jax.data.cases import BranchShape, Case, Cases
from emmi_jax.data.conditions import Conditions, condition_values, measure_conditions
from emmi_jax.data.draws import draw_geometry, draw_points, draw_training_case, geometry_points
from emmi_jax.data.features import split_channels, with_features
from emmi_jax.data.notes import gathered, masked
from emmi_jax.data.report import SILENT, Report
from emmi_jax.data.samples import Dataset, Sample, case_of_sample
from emmi_jax.data.sampling import RandomStream
from emmi_jax.data.statistics import DataMoments, merge
from emmi_jax.deploy.conditions import describe
from emmi_jax.deploy.features import GEOMETRY
from emmi_jax.deploy.scaling_laws import field_factor
from emmi_jax.points import PointSet, take_points

NUM_TEST_QUERIES = 4096
"""Most points per branch of a test case that metrics are computed at."""


class CaseCollection(Dataset):
    """Many cases with the same fields, some of which are only tested on.

    Args:
        split: Names of the cases.
        cases: Reads them.
        sampling: How many points to draw, and how.
        name: What to call the data.
        features: Arrays that the model takes instead of predicting them, by branch, or `geometry`.
        conditions: The conditions of the cases, the same for all.
        law: Which conditions the statistics of fields are relative to.

    Raises:
        ValueError: A condition is the same in all training cases. Or a case has too few points or other fields; raised
            when it is drawn from.
    """

    def __init__(
        self,
        split: CaseSplit,
        cases: Cases,
        sampling: Sampling,
        *,
        name: str = "cases",
        features: Mapping[str, Sequence[str]] = MappingProxyType({}),
        conditions: Mapping[str, Conditions] = MappingProxyType({}),
        law: ScalingLaw | None = None,
    ) -> None:
        self.law, self.conditions_of = law, dict(conditions)
        self.conditions = measure_conditions({case: conditions.get(case, {}) for case in split.train})
        for case in split.split_of:
            try:
                condition_values(conditions.get(case, {}), self.conditions)
            except ValueError as error:
                raise ValueError(f"{case}: {error}") from None
        if law is not None:
            law.check(self.conditions)
        self.split, self.cases, self.sampling, self.name = split, cases, sampling, name
        self._arrays = {branch: dict(shape.fields) for branch, shape in cases.shapes(split.train[0]).items()}
        self.fields, self.features = split_channels(self._arrays, features)

    @property
    def summary(self) -> str:
        """Describes the data in one line."""
        under = "; ".join(describe(*item) for item in self.conditions.items())
        return f"{self.name}: {self.split.summary}" + (f"; conditions: {under}" if under else "")

    @property
    def fingerprint(self) -> str:
        """Changes with the names or the content of the training cases."""
        prints = {name: self.cases.fingerprint(name) for name in self.split.train}
        if self.conditions:
            prints |= {f"conditions of {name}": repr(self.conditions_of[name]) for name in self.split.train}
        return hashlib.sha256(json.dumps(prints).encode()).hexdigest()[:32]

    def first_case(self) -> Case:
        """Returns the first training case, or a part of it, with all the geometry that the model may see."""
        return self._part(self.split.train[0], np.random.default_rng(0), self._points_per_step)

    def read(self, name: str) -> Case:
        """Reads a whole case."""
        return with_features(name, self.cases.read(name), self.features)

    def measure(self, report: Report = SILENT) -> DataMoments:
        """Returns the statistics of all training cases.

        Cases to validate and to test on are measured as well, so that one that is unusable is found before training.
        """
        by_case = self._measure([*self.split.train, *self._held_out], report)
        return merge(self._nondimensional(name, by_case[name]) for name in self.split.train)

    def _nondimensional(self, name: str, moments: DataMoments) -> DataMoments:
        """Returns the statistics of a case as its fields are learned: relative to its conditions."""
        if self.law is None:
            return moments
        law, condition = self.law, self.condition(name)
        fields = {
            branch: {
                field: (plain.divided(field_factor(field, law, condition)), compressed)
                for field, (plain, compressed) in of_branch.items()
            }
            for branch, of_branch in moments.fields.items()
        }
        return moments._replace(fields=fields)

    def check_cases(self, report: Report = SILENT) -> None:
        """Reads cases, except those that were measured before and have not changed.

        These are all to validate and to test on, and as many to train on as take seconds; of the others, the headers
        were looked at when they were opened.
        """
        quick = self.cases.quick(self.split.train)
        self._measure([*quick, *self._held_out], report)
        if num_unread := len(self.split.train) - len(quick):
            report.warn(
                [f"{num_unread:,} training cases are large, so read when they are first drawn; stats reads all of them"]
            )

    def _measure(self, names: Sequence[str], report: Report) -> dict[str, DataMoments]:
        by_case = self.cases.measure_all(names, report)
        for name, moments in by_case.items():
            self.check_shapes(name, _shapes(moments))
        report.warn(gathered({name: [f"{name}: {line}" for line in masked(by_case[name])] for name in by_case}))
        return by_case

    @property
    def _held_out(self) -> list[str]:
        return [*self.split.validation, *self.split.test]

    @property
    def split_of(self) -> dict[str, str]:
        """The split of each case, by its name."""
        return self.split.split_of

    @property
    def statistics(self) -> str | None:
        """Statistics that the description of the data names."""
        return self.cases.statistics

    def notes(self) -> tuple[dict[str, str], list[str]]:
        """Returns the unusable cases, and what of the others is not read."""
        if self.opened is None:
            return {}, []
        names, first = [name for name in self.opened.names if name in self.split_of], self.split.train[0]
        lines = self.opened.left_out(names) + [f"{first}: {line}" for line in self.first_case().left_out]
        return dict(self.split.unusable), lines

    @property
    def shown(self) -> Mapping[str, PointSet]:
        """The points of the first test case."""
        return self.read(self.split.test[0]).points

    def train_sample(self, seed: int, number: int) -> Sample:
        """Returns draws from a training case, in physical units."""
        rng = np.random.default_rng([RandomStream.TRAIN, seed, number])
        name = self.train_case(seed, number)
        case = self._draw(name, rng, self._points_per_step)
        drawn = draw_training_case(rng, case.points, self._geometry(name, case), self.sampling)
        return drawn._replace(condition=self.condition(name))

    def condition(self, name: str) -> dict[str, float] | None:
        """Returns the values of the conditions of a case; None without conditions."""
        return condition_values(self.conditions_of.get(name, {}), self.conditions)

    def train_case(self, seed: int, number: int) -> str:
        """Returns the name of the case of a training sample."""
        return self.split.train[case_of_sample(seed, number, len(self.split.train))]

    def validation_samples(self) -> Iterator[Sample]:
        """Yields the validation cases; no query is an anchor."""
        return self._draw_whole(self.split.validation)

    def test_samples(self) -> Iterator[Sample]:
        """Yields the test cases; no query is an anchor."""
        return self._draw_whole(self.split.test)

    def _draw_whole(self, names: Sequence[str]) -> Iterator[Sample]:
        for number, name in enumerate(names):
            rng, sample = np.random.default_rng([RandomStream.TEST, number]), Sample({}, {})
            case = self._draw(name, rng, max(map(sum, self._test_sizes.values())))
            for branch, points in case.points.items():
                num_anchors, num_queries = self._test_sizes[branch]
                anchor_idx = draw_points(rng, points, num_anchors, self.sampling)
                others = np.delete(np.arange(len(points.position)), anchor_idx)
                sample.anchors[branch] = take_points(points, anchor_idx)
                sample.queries[branch] = take_points(points, rng.choice(others, num_queries, replace=False))
            if (shown := self._geometry(name, case)) is not None:
                num_supernodes = self.sampling.num_test_supernodes
                geometry = draw_geometry(rng, shown, self.sampling, num_supernodes=num_supernodes)
                sample = sample._replace(geometry=geometry)
            yield sample._replace(condition=self.condition(name))

    def _draw(self, name: str, rng: np.random.Generator, num_points: int) -> Case:
        """Reads a part of a case to draw from, after checking that the case fits the others."""
        self._check(name)
        return self._part(name, rng, num_points)

    def _part(self, name: str, rng: np.random.Generator, num_points: int) -> Case:
        """Reads a part of a case, with its features."""
        if GEOMETRY in self.features:  # the surface's points describe it
            num_points = max(num_points, self.sampling.num_geometry_points)
        return with_features(name, self.cases.draw(name, rng, self.sampling, num_points), self.features)

    def _geometry(self, name: str, case: Case) -> PointSet | None:
        """Returns the points that the geometry is drawn from."""
        return geometry_points(case.points, case.geometry, self.sampling, name=name, features=case.geometry_features)

    def check_shapes(self, name: str, shapes: Mapping[str, BranchShape]) -> None:
        """Refuses a case with other fields than the first, or with fewer points than a step draws."""
        channels = {branch: dict(shape.fields) for branch, shape in shapes.items()}
        if channels != self._arrays:
            raise ValueError(f"{name}: has the fields {channels}, the case {self.split.train[0]} has {self._arrays}")
        for branch, shape in shapes.items():
            if shape.num_points < self._points_per_step:
                raise ValueError(
                    f"{name}: {branch}: {shape.num_points} points are too few: "
                    f"a step draws {self._points_per_step} of them"
                )

    def _check(self, name: str) -> None:
        self.check_shapes(name, self.cases.shapes(name))

    @property
    def _points_per_step(self) -> int:
        return self.sampling.num_anchors + self.sampling.num_queries

    @cached_property
    def _test_sizes(self) -> dict[str, tuple[int, int]]:
        """Anchors and queries by branch, as many as the smallest of these cases allows."""
        names, sizes = [*self.split.test, *self.split.validation], {}
        for name in names:
            self._check(name)
        for branch in self.fields:
            smallest = min(self.cases.shapes(name)[branch].num_points for name in names)
            num_anchors = min(self.sampling.num_test_anchors, smallest // 2)
            sizes[branch] = num_anchors, min(NUM_TEST_QUERIES, smallest - num_anchors)
        return sizes


def _shapes(moments: DataMoments) -> dict[str, BranchShape]:
    return {
        branch: BranchShape(
            next(plain.count + plain.num_not_finite for plain, _ in of_branch.values()), moments.channels[branch]
        )
        for branch, of_branch in moments.fields.items()
    }
