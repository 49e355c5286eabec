"""Data sets and their samples of points with fields, in physical units."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import Sampling
from emmi_jax.data.cases import Case
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.open_cases import OpenCases
from emmi_jax.data.report import SILENT, Report
from emmi_jax.data.sampling import RandomStream
from emmi_jax.data.statistics import DataMoments
from emmi_jax.deploy.conditions import condition_channels
from emmi_jax.deploy.features import GEOMETRY
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.points import Array, Fields, PointSet


class Context(NamedTuple):
    """The anchors and the geometry that every prediction on one case shares, in physical units.

    Attributes:
        anchors: Positions [T, n] by branch.
        geometry: Points of the geometry [P, n] and supernodes [M], for models with a geometry branch.
        anchor_features: Features [T, C] of the anchors of those branches that have some.
    """

    anchors: Mapping[str, Array]
    geometry: Geometry | None = None
    anchor_features: Mapping[str, Array] = {}

    @property
    def stored_geometry(self) -> dict[str, NDArray[Any]]:
        """The points, the real supernodes and the features of the geometry, as files hold them; nothing without one.

        Raises:
            ValueError: The geometry has neighbours, which no file holds.
        """
        if self.geometry is None:
            return {}
        position, idx, neighbors, features, mask = self.geometry
        if neighbors is not None:
            raise ValueError("a context is stored without neighbors of its geometry: leave them out")
        real = np.asarray(idx) if mask is None else np.asarray(idx)[np.asarray(mask)]
        stored = {"geometry": np.asarray(position, np.float64), "supernode_idx": real.astype(np.int32)}
        return stored | ({} if features is None else {"geometry_features": np.asarray(features, np.float32)})


class Sample(NamedTuple):
    """Points of one case, or of a batch of cases with a leading axis B; a pytree.

    Attributes:
        anchors: Points by branch that every other point attends to.
        queries: Points by branch that only attend; a branch may have none.
        geometry: Points of the geometry [..., P, n] and supernodes [..., M], for models with a geometry branch.
        condition: Values by name in their units; in model units an array [..., condition_dim]. None without conditions.
    """

    anchors: dict[str, PointSet]
    queries: dict[str, PointSet]
    geometry: Geometry | None = None
    condition: Any = None

    @property
    def context(self) -> Context:
        """The part that predictions on this case share."""
        return Context(_positions(self.anchors), self.geometry, _features(self.anchors))

    @property
    def query_features(self) -> dict[str, Array]:
        """Features [..., T, C] of the queries of those branches that have some."""
        return _features(self.queries)

    def model_inputs(self) -> dict[str, Any]:
        """Returns the keyword arguments of `AnchoredBranchedUPT.__call__`."""
        return {
            "anchors": _positions(self.anchors),
            "queries": _positions(self.queries) or None,
            "geometry": self.geometry,
            "condition": self.condition,
            "anchor_features": _features(self.anchors),
            "query_features": self.query_features,
        }


class Dataset(ABC):
    """Cases to train on and cases to test on, in physical units; a pure function of its seeds.

    Attributes:
        sampling: How many points to draw, and how.
        fields: Number of channels by branch and field.
        conditions: The conditions of its cases by name, scaled by the training cases.
        features: Number of channels by branch, or ``geometry``, and feature.
        opened: The folders or the store of its cases, if it is made of such.
    """

    sampling: Sampling
    fields: Mapping[str, Mapping[str, int]]
    conditions: Mapping[str, ConditionScale] = MappingProxyType({})
    features: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    opened: OpenCases | None = None

    @property
    @abstractmethod
    def summary(self) -> str:
        """Describes the data in one line."""

    @property
    def context(self) -> Context | None:
        """Anchors and geometry of all predictions, if the data are a single case."""
        return None

    @property
    def split_of(self) -> dict[str, str] | None:
        """The split of each case, by its name; None for a single case and for computed ones."""
        return None

    @property
    def fingerprint(self) -> str | None:
        """Changes if the content of the training data does, wherever they are; None for computed ones."""
        return None

    @property
    def statistics(self) -> str | None:
        """Statistics that the description of the data names: a file, or published ones."""
        return None

    @property
    def body(self) -> Any:
        """The `Ellipsoid` of the first test case, if the flow around it is known everywhere; else None."""
        return None

    @property
    def shown(self) -> Mapping[str, PointSet]:
        """The points of the first test case, to draw; none if its flow is known everywhere."""
        return {}

    def first_case(self) -> Case | None:
        """Returns a case to look at before training, or a part of it; None for data that are computed."""
        return None

    def notes(self) -> tuple[dict[str, str], list[str]]:
        """Returns the cases that were left out, each with a reason, and lines on what else was not read."""
        return {}, []

    def baselines(self, number: int, sample: Sample) -> dict[str, Fields]:
        """Returns what to compare a model with on a test case: values [T, F] at its queries by name, branch, field."""
        return {}

    def check_cases(self, report: Report = SILENT) -> None:
        """Reads cases before training; raises a ValueError if one is unusable."""
        return

    @abstractmethod
    def measure(self, report: Report = SILENT) -> DataMoments:
        """Returns the statistics of the training data."""

    @abstractmethod
    def train_sample(self, seed: int, number: int) -> Sample:
        """Returns the training sample of a number; it does not depend on other samples, all have the same shapes."""

    @abstractmethod
    def train_case(self, seed: int, number: int) -> str:
        """Returns the name of the case that a training sample is drawn from."""

    def resampled(self, sampling: Sampling) -> Self:
        """Returns the same cases with other draws.

        Raises:
            ValueError: There are too few points to draw from; raised here or when they are drawn.
        """
        other = copy.copy(self)
        other.sampling = sampling
        return other

    def validation_samples(self) -> Iterator[Sample]:
        """Yields the cases to validate on while training, as `test_samples` does; none if the data have none."""
        return iter(())

    @abstractmethod
    def test_samples(self) -> Iterator[Sample]:
        """Yields the test cases, all with the same shapes; their queries carry the exact fields."""


def stack_samples(samples: Sequence[Sample]) -> Sample:
    """Stacks cases of equal shapes along a new leading axis; cell sizes are dropped."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(_without_cell_sizes, samples))


def case_of_sample(seed: int, number: int, num_cases: int) -> int:
    """Returns the case of a training sample: every epoch has each case once, in an order of its own."""
    epoch, place = divmod(number, num_cases)
    return int(np.random.default_rng([RandomStream.EPOCH, seed, epoch]).permutation(num_cases)[place])


def normalize_sample(normalizer: Normalizer, sample: Sample) -> Sample:
    """Converts positions, fields and condition of a case or a batch from physical to model units, in float32."""
    normalizer = normalizer.under(sample.condition)

    def normalize(parts: dict[str, PointSet]) -> dict[str, PointSet]:
        return {
            branch: PointSet(
                normalizer.normalize_position(points.position),
                {name: normalizer.normalize_field(branch, name, values) for name, values in points.fields.items()},
                features=None if points.features is None else normalizer.normalize_features(branch, points.features),
            )
            for branch, points in parts.items()
        }

    geometry = sample.geometry
    if geometry is not None:
        geometry = geometry._replace(position=normalizer.normalize_position(geometry.position))
        if geometry.features is not None:
            geometry = geometry._replace(features=normalizer.normalize_features(GEOMETRY, geometry.features))
    scaled = normalize_condition(normalizer.conditions, sample)
    return scaled._replace(anchors=normalize(sample.anchors), queries=normalize(sample.queries), geometry=geometry)


def normalize_condition(scales: Mapping[str, ConditionScale], sample: Sample) -> Sample:
    """Converts the condition of a case or a batch alone to model units."""
    return sample._replace(condition=condition_channels(scales, sample.condition or {}) if scales else None)


def _without_cell_sizes(sample: Sample) -> Sample:
    def drop(parts: dict[str, PointSet]) -> dict[str, PointSet]:
        return {branch: points._replace(cell_size=None) for branch, points in parts.items()}

    return sample._replace(anchors=drop(sample.anchors), queries=drop(sample.queries))


def _features(parts: Mapping[str, PointSet]) -> dict[str, Array]:
    return {branch: points.features for branch, points in parts.items() if points.features is not None}


def _positions(parts: Mapping[str, PointSet]) -> dict[str, Array]:
    return {branch: points.position for branch, points in parts.items()}
