"""A model on whole cases in physical units, whatever computes it: cases are encoded once, then streamed."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import ArrayLike

from .case import Case, choose_case
from .draws import Array, Geometry, Points, Sampling
from .features import FeatureNames, FeaturesLike
from .streaming import StreamedChunk, fill

ConditionLike: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
"""A condition, or one by name each."""


class Inputs(NamedTuple):
    """Parts of a case that a model sees: numbers of drawn points, whether there is a geometry, and stored points."""

    sampling: Sampling
    has_geometry: bool
    stored: Case


class Surrogate(abc.ABC):
    """A model, its parameters, and how a case reaches it; positions and fields are in physical units.

    A live model and that of an exported file are two backends of it.
    """

    @property
    @abc.abstractmethod
    def fields(self) -> Mapping[str, Mapping[str, int]]:
        """Numbers of channels by branch and field."""

    @property
    @abc.abstractmethod
    def features(self) -> FeatureNames:
        """Inputs of the model beside positions: numbers of channels by branch, or ``geometry``, and name, in order."""

    @property
    @abc.abstractmethod
    def _inputs(self) -> Inputs:
        """Draws and stored points."""

    @abc.abstractmethod
    def _encoded(self, case: Case, condition: ConditionLike | None) -> Encoded:
        """Encodes chosen anchors and geometry."""

    def encode(
        self,
        *,
        anchors: Mapping[str, Array] | None = None,
        geometry: Geometry | Points | Array | Any = None,
        condition: ConditionLike | None = None,
        anchor_features: Mapping[str, FeaturesLike] | None = None,
        points: Mapping[str, Points | Array | Any] | None = None,
        seed: int = 0,
    ) -> Encoded:
        """Encodes one case; its queries can then be predicted any number of times.

        What is not given comes from the run's context, or else is drawn: anchors from `points`; geometry points from
        `points` of the branch ``surface``, or else from its anchors; supernodes from the geometry points. An
        exported file draws what its run draws with the same seed. An ensemble predicts the mean of its members.

        Args:
            anchors: Positions [T, n] of any of the branches.
            geometry: Points [P, n] that describe the body, to draw from, as points with features where the model
                takes some; or a `Geometry`, used as it is. An exported model takes none with neighbours.
            condition: A number for each of `conditions`, in its unit: ``{"speed": 40.0, "yaw": 5.0}``. Or in model
                units an array [condition_dim], if the model has one, or an array for each of its named conditions.
            anchor_features: Features of given anchors of every branch in `features`: an array [T, C], or an array for
                each name.
            points: Points [N, n] of any of the branches to draw from; as `Points`, or a `PointSet`, they may bring cell
                sizes and features.
            seed: Seed of the draws.

        Raises:
            ValueError: There is nothing to draw from, or too little; or an array does not fit the model.
        """
        sampling, has_geometry, stored = self._inputs
        case = choose_case(
            tuple(self.fields),
            sampling,
            has_geometry=has_geometry,
            stored=stored,
            anchors=anchors,
            geometry=geometry,
            anchor_features=anchor_features,
            points=points,
            seed=seed,
            channels=self.features,
        )
        return self._encoded(case, condition)


class Encoded(abc.ABC):
    """One case as a model has encoded it; its queries can be predicted any number of times."""

    @property
    @abc.abstractmethod
    def fields(self) -> Mapping[str, Mapping[str, int]]:
        """Numbers of channels of what is predicted, by branch and name."""

    @abc.abstractmethod
    def stream(
        self,
        queries: Mapping[str, Any],
        *,
        query_features: Mapping[str, FeaturesLike] | None = None,
        chunk_size: Any = "auto",
        devices: Sequence[jax.Device] | None = None,
    ) -> Iterator[StreamedChunk]:
        """Yields the fields at the queries chunk by chunk, branch after branch, in physical units.

        Every call of the model has the same shape, and copies overlap with computation.

        Args:
            queries: Positions [N, n] of any of the branches: arrays, memory-maps, or iterables of arrays of any length.
            query_features: Features of the queries of every branch in `Surrogate.features`: an array [N, C], or an
                array for each name.
            chunk_size: Queries per call of the model; "auto" goes by the memory of the devices, or is the size that a
                file has its own program for.
            devices: The devices to compute on; by default all local ones, or those that a file was loaded for.

        Raises:
            ValueError: A branch is unknown, or positions or features do not fit or are not finite.
        """

    def predict(
        self,
        queries: Mapping[str, Any],
        *,
        out: Mapping[str, Any] | None = None,
        advance: Callable[[int], object] = lambda num_points: None,
        **options: Any,
    ) -> dict[str, Any]:
        """Returns the fields [N, F] at the queries by ``<branch>_<field>``, in physical units.

        Args:
            queries: Positions [N, n] of any of the branches; see `stream`.
            out: Arrays or memory-maps to fill instead of new ones, one for each field of the queried branches; needed
                for iterables, whose length is unknown.
            advance: Called with the number of points of each chunk that is done.
            **options: The other arguments of `stream`: query_features, chunk_size and devices.

        Raises:
            ValueError: See `stream`; or `out` does not fit.
        """
        return fill(self.stream(queries, **options), queries, out, self.fields, advance)


def check_chunk_size(chunk_size: Any) -> int:
    """Returns a number of queries per call; a ValueError says what is none."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer) or chunk_size < 1:
        raise ValueError(f"chunk_size must be 'auto' or a positive integer, got {chunk_size!r}")
    return int(chunk_size)
