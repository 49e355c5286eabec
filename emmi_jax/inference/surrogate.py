"""A trained model with everything that its use takes, in physical units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from emmi_jax.config import Sampling
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.deploy import surrogate as deploy
from emmi_jax.deploy.case import Case
from emmi_jax.deploy.conditions import in_model_units
from emmi_jax.deploy.draws import Sampling as DeploySampling
from emmi_jax.deploy.encoded_set import EncodedSet, encode_draws
from emmi_jax.deploy.features import FeaturesLike
from emmi_jax.deploy.intervals import Intervals
from emmi_jax.deploy.streaming import Queries, StreamedChunk, model_positions
from emmi_jax.deploy.surrogate import ConditionLike, Encoded, Inputs
from emmi_jax.inference import streaming
from emmi_jax.inference.cache import AnchorCache
from emmi_jax.inference.case_encoding import shape_points
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params
from emmi_jax.points import Array


@dataclass(frozen=True, eq=False)
class Surrogate(deploy.Surrogate):
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
    def fields(self) -> Mapping[str, Mapping[str, int]]:
        """Numbers of channels by branch and field."""
        return self.model.config.fields

    @property
    def features(self) -> dict[str, dict[str, int]]:
        """Inputs of the model beside positions: numbers of channels by branch, or ``geometry``, and name, in order."""
        return self.normalizer.feature_channels

    @property
    def _inputs(self) -> Inputs:
        context = self.context
        stored = Case({}, None) if context is None else Case(dict(context.anchors), *context[1:])
        return Inputs(after_training(self.sampling), self.model.config.has_geometry, stored)

    def _encoded(self, case: Case, condition: ConditionLike | None) -> Encoded:
        if self.others:
            return EncodedSet(tuple((member._encoded_case(case, condition),) for member in self.members))
        return self._encoded_case(case, condition)

    def _encoded_case(self, case: Case, condition: ConditionLike | None) -> EncodedCase:
        under, condition = self.under(condition), self.in_model_units(condition)
        cache = streaming.encode(
            self.model,
            self.variables,
            anchors=case.anchors,
            geometry=case.geometry,
            condition=condition,
            anchor_features=case.features,
            normalizer=self.normalizer,
        )
        shape = shape_points(case.anchors, case.geometry)
        if shape is not None:
            shape = model_positions("the shape", shape, np.shape(shape)[1], self.normalizer.normalize_position)
        return EncodedCase(under, cache, condition, shape)

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
        return encode_draws(self, repeats, seed=seed, intervals=intervals, **case)

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
        return in_model_units(self.normalizer.conditions, condition, self.model.config.condition_dim)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the model."""
        return {"params": self.params}


def after_training(sampling: Sampling) -> DeploySampling:
    """Returns how a trained model's points are drawn."""
    return DeploySampling(
        num_anchors=sampling.num_test_anchors,
        num_geometry_points=sampling.num_geometry_points,
        num_supernodes=sampling.num_test_supernodes,
        method=sampling.method,
        supernode_method=sampling.supernode_method,
    )


@dataclass(frozen=True, eq=False)
class EncodedCase(Encoded):
    """One case as a live model has encoded it; see `Encoded`.

    Args:
        surrogate: What encoded it.
        cache: Keys and values of its anchors and geometry.
        condition: The condition that it was encoded with, in model units.
        shape: Points [N, n] that show its shape to the model, in model units.
    """

    surrogate: Surrogate
    cache: AnchorCache
    condition: ConditionLike | None = None
    shape: Array | None = None

    @property
    def fields(self) -> Mapping[str, Mapping[str, int]]:
        """Numbers of channels by branch and field."""
        return self.surrogate.fields

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
        surrogate = self.surrogate
        yield from streaming.stream(
            surrogate.model,
            surrogate.variables,
            self.cache,
            queries,
            query_features=query_features,
            chunk_size=chunk_size,
            devices=devices,
            normalizer=surrogate.normalizer,
            condition=self.condition,
        )
