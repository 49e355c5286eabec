"""A trained model with everything that its use takes, in physical units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from emmi_jax.config import Sampling
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.deploy.case import Case, choose_case
from emmi_jax.deploy.conditions import condition_channels
from emmi_jax.deploy.draws import Sampling as DeploySampling
from emmi_jax.deploy.features import FeaturesLike, check_taken
from emmi_jax.deploy.streaming import Queries, StreamedChunk
from emmi_jax.inference import streaming
from emmi_jax.inference.cache import AnchorCache
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.encoded_set import EncodedSet
from emmi_jax.inference.inputs import ConditionLike
from emmi_jax.inference.intervals import Intervals
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params
from emmi_jax.points import Array, PointSet


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A model, its parameters, and how a case reaches it; positions and fields are in physical units.

    Args:
        model: The model.
        params: Its parameters.
        normalizer: How positions and fields are scaled.
        sampling: How many anchors, geometry points and supernodes are drawn, and how.
        context: Anchors and geometry to use where `encode` is given none, for a run on a single case.
        condition: Condition to use where `encode` is given none.
        others: Parameters of the other members of an ensemble.

    Raises:
        ValueError: The normalizer lacks a field or features of the model, or has another number of channels.

    Example:
        >>> surrogate = emmi_jax.load_run("runs/car")  # doctest: +SKIP
        >>> encoded = surrogate.encode(anchors=anchors, geometry=body_points)  # doctest: +SKIP
        >>> fields = encoded.predict({"volume": positions})  # {"volume_velocity": [N, 3], ...}  # doctest: +SKIP
    """

    model: AnchoredBranchedUPT
    params: Params
    normalizer: Normalizer
    sampling: Sampling
    context: Context | None = None
    condition: ConditionLike | None = None
    others: tuple[Params, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalizer", self.normalizer.for_fields(self.model.config.fields))
        self.normalizer.check_features(self.model.config.input_features)

    @property
    def features(self) -> dict[str, dict[str, int]]:
        """Inputs of the model beside positions: numbers of channels by branch, or ``geometry``, and name, in order."""
        return self.normalizer.feature_channels

    def encode(
        self,
        *,
        anchors: Mapping[str, Array] | None = None,
        geometry: Geometry | PointSet | Array | None = None,
        condition: ConditionLike | None = None,
        anchor_features: Mapping[str, FeaturesLike] | None = None,
        points: Mapping[str, PointSet | Array] | None = None,
        seed: int = 0,
    ) -> Encoded | EncodedSet:
        """Encodes one case; its queries can then be predicted any number of times. An ensemble predicts their mean.

        What is not given comes from the run's context, or else is drawn: anchors from `points`; geometry points from
        `points` of the branch ``surface``, or else from its anchors; supernodes from the geometry points.

        Args:
            anchors: Positions [T, n] of any of the branches.
            geometry: Points [P, n] that describe the body, to draw from, as a `PointSet` with features where the model
                takes some; or a `Geometry`, used as it is.
            condition: A number for each condition of the run, in its unit: ``{"speed": 40.0, "yaw": 5.0}``. Or in model
                units an array [condition_dim], if the model has one, or an array for each of its named conditions.
            anchor_features: Features of given anchors of every branch in `features`: an array [T, C], or an array for
                each name.
            points: Points [N, n] of any of the branches to draw from; as a `PointSet` they may bring cell sizes and
                features.
            seed: Seed of the draws.

        Raises:
            ValueError: There is nothing to draw from, or too little; or see `emmi_jax.encode`.
        """
        case: dict[str, Any] = {
            "anchors": anchors,
            "geometry": geometry,
            "condition": condition,
            "anchor_features": anchor_features,
            "points": points,
        }
        return self.encode_draws(1, seed=seed, **case) if self.others else self._encode(seed=seed, **case)

    def _encode(
        self,
        *,
        seed: int,
        anchors: Any = None,
        geometry: Any = None,
        condition: ConditionLike | None = None,
        anchor_features: Any = None,
        points: Any = None,
    ) -> Encoded:
        """Encodes one case by the first member."""
        config, sampling, context = self.model.config, self.sampling, self.context
        case = choose_case(
            config.branches,
            DeploySampling(
                sampling.num_test_anchors,
                sampling.num_geometry_points,
                sampling.num_test_supernodes,
                sampling.method,
                sampling.supernode_method,
            ),
            has_geometry=config.has_geometry,
            stored=Case({}, None)
            if context is None
            else Case(dict(context.anchors), context.geometry, context.anchor_features),
            anchors=anchors,
            geometry=geometry,
            anchor_features=anchor_features,
            points=points,
            seed=seed,
            channels=self.features,
        )
        under, condition = self.under(condition), self.in_model_units(condition)
        cache = streaming.encode(
            self.model,
            self._variables,
            anchors=case.anchors,
            geometry=None if case.geometry is None else Geometry(**case.geometry._asdict()),
            condition=condition,
            anchor_features=case.features,
            normalizer=self.normalizer,
        )
        return Encoded(under, cache, condition)

    def encode_draws(
        self, repeats: int, *, seed: int = 0, intervals: Intervals | None = None, **case: Any
    ) -> EncodedSet:
        """Encodes one case as `encode` does, by every member and for several draws of what `encode` draws.

        Args:
            repeats: Number of draws, with the seeds `seed`, `seed` + 1, ….
            seed: Seed of the first.
            intervals: Intervals to add to each field, see `emmi_jax.runs.calibration`.
            **case: The other arguments of `encode`.

        Raises:
            ValueError: See `encode`; or repeats is less than 1.
        """
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}")
        variants = (
            tuple(member._encode(**case, seed=seed + number) for number in range(repeats)) for member in self.members
        )
        return EncodedSet(tuple(variants), intervals)

    @property
    def members(self) -> tuple[Surrogate, ...]:
        """The members of an ensemble as surrogates of their own; the surrogate alone where it is none."""
        return tuple(replace(self, params=params, others=()) for params in (self.params, *self.others))

    def refuse_ensemble(self, what: str) -> None:
        """Refuses an ensemble.

        Raises:
            ValueError: It is one; the message names what takes a single model.
        """
        if self.others:
            number = 1 + len(self.others)
            raise ValueError(f"{what} takes one model, got an ensemble of {number}: `ensemble --member` takes one out")

    def under(self, condition: ConditionLike | None) -> Surrogate:
        """Returns the surrogate with the scales that its fields have under a condition; by default its own.

        Raises:
            ValueError: Fields are relative to a condition that is missing or not positive.
        """
        if self.normalizer.nondimensionalize is None:
            return self
        given = self.condition if condition is None else condition
        return replace(self, normalizer=self.normalizer.under(given if isinstance(given, Mapping) else None))

    def in_model_units(self, condition: ConditionLike | None) -> ConditionLike | None:
        """Returns a condition as the model takes it; that of the surrogate for None.

        Raises:
            ValueError: A condition of the run has no value, or a value has no condition.
        """
        condition = self.condition if condition is None else condition
        scales = self.normalizer.conditions
        if condition is None and scales:
            condition = {}
        if isinstance(condition, Mapping) and (scales or self.model.config.condition_dim is None):
            return condition_channels(scales, condition)
        return condition

    @property
    def _variables(self) -> dict[str, Any]:
        return {"params": self.params}


@dataclass(frozen=True, eq=False)
class Encoded:
    """One case as the model has encoded it.

    Args:
        surrogate: What encoded it.
        cache: Keys and values of its anchors and geometry.
        condition: The condition that it was encoded with, in model units.
    """

    surrogate: Surrogate
    cache: AnchorCache
    condition: ConditionLike | None = None

    @property
    def fields(self) -> Mapping[str, Mapping[str, int]]:
        """Number of channels by branch and field."""
        return self.surrogate.model.config.fields

    @property
    def normalizer(self) -> Normalizer:
        """Scales of positions and fields."""
        return self.surrogate.normalizer

    def stream(
        self,
        queries: Mapping[str, Queries],
        *,
        query_features: Mapping[str, FeaturesLike] | None = None,
        chunk_size: ChunkSize = "auto",
        devices: Sequence[jax.Device] | None = None,
    ) -> Iterator[StreamedChunk]:
        """Yields the fields at the queries chunk by chunk, in physical units; see `emmi_jax.stream`."""
        check_taken(self.surrogate.features, query_features or {}, queries)
        return streaming.stream(
            **self._arguments, queries=queries, query_features=query_features, chunk_size=chunk_size, devices=devices
        )

    def predict(
        self,
        queries: Mapping[str, Queries],
        *,
        query_features: Mapping[str, FeaturesLike] | None = None,
        out: Mapping[str, Any] | None = None,
        chunk_size: ChunkSize = "auto",
        devices: Sequence[jax.Device] | None = None,
        advance: Callable[[int], object] = lambda num_points: None,
    ) -> dict[str, Any]:
        """Returns the fields [N, F] at the queries by ``<branch>_<field>``, in physical units.

        Args:
            queries: Positions [N, n] of any of the branches; see `emmi_jax.stream`.
            query_features: Features of the queries of every branch in `Surrogate.features`: an array [N, C], or an
                array for each name.
            out: Arrays or memory-maps to fill instead of new ones.
            chunk_size: Queries per call of the model; by default as many as the memory of the devices allows.
            devices: The devices that share each chunk; by default all local ones.
            advance: Called with the number of points of each chunk that is done.

        Raises:
            ValueError: A branch is unknown, positions are unusable, or `out` does not fit.
        """
        check_taken(self.surrogate.features, query_features or {}, queries)
        return streaming.predict(
            **self._arguments,
            queries=queries,
            query_features=query_features,
            out=out,
            chunk_size=chunk_size,
            devices=devices,
            advance=advance,
        )

    @property
    def _arguments(self) -> dict[str, Any]:
        surrogate = self.surrogate
        return {
            "model": surrogate.model,
            "variables": surrogate._variables,
            "cache": self.cache,
            "normalizer": surrogate.normalizer,
            "condition": self.condition,
        }
