"""A model of an exported file: cases are encoded once, then streamed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
from numpy.typing import ArrayLike

from .archive import Program
from .case import Case, check_not_empty, choose_case, chunk_features, padded_geometry
from .conditions import Condition, Scales, condition_channels
from .draws import Array, Geometry, Points
from .features import FeaturesLike, check_taken
from .manifest import Manifest, Scale
from .streaming import Chunk, StreamedChunk, cut_queries, fill, pipelined

CHUNK_SIZE = 4096
"""Queries per call where the file has a program for no number of its own."""

ConditionLike: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
"""A condition, or one by name each."""


class ExportedSurrogate:
    """A model, its parameters, and how a case reaches it; positions and fields are in physical units.

    Args:
        manifest: What the file says about itself.
        arrays: Parameters and context by name.
        programs: The programs for the platform of the devices, those for fixed sizes first.
        devices: The devices to compute on.
    """

    def __init__(
        self, manifest: Manifest, arrays: Mapping[str, Array], programs: Sequence[Program], devices: Sequence[Any]
    ) -> None:
        self._manifest, self._programs, self._devices = manifest, programs, devices
        self._context = {name: array for name, array in arrays.items() if name.startswith("context/")}
        parameters = tuple(array for name, array in arrays.items() if name.startswith("parameters/"))
        self._parameters = [jax.device_put(parameters, device) for device in devices]

    @property
    def fields(self) -> dict[str, dict[str, int]]:
        """Numbers of channels by branch and field."""
        return {
            branch: {name: len(scale.mean) for name, scale in scales.items()}
            for branch, scales in self._manifest.scales.items()
        }

    @property
    def features(self) -> dict[str, dict[str, int]]:
        """Inputs of the model beside positions: numbers of channels by branch, or `geometry`, and name, in order."""
        return self._manifest.feature_channels

    @property
    def units(self) -> dict[str, str]:
        """The units that the file names: by `position` and `<branch>/<field>`."""
        return dict(self._manifest.units)

    @property
    def conditions(self) -> dict[str, Condition]:
        """Unit, kind, trained range and scale of each condition by name."""
        return dict(self._manifest.conditions)

    @property
    def kernels(self) -> dict[str, str]:
        """The attention kernel of each program, by function and sizes."""
        return {program.title: program.kernel for program in self._programs}

    def encode(
        self,
        *,
        anchors: Mapping[str, Array] | None = None,
        geometry: Geometry | Points | Array | None = None,
        condition: ConditionLike | None = None,
        anchor_features: Mapping[str, FeaturesLike] | None = None,
        points: Mapping[str, Points | Array] | None = None,
        seed: int = 0,
    ) -> Encoded:
        """Encodes one case; its queries can then be predicted any number of times.

        What is not given comes from the run's context, or else is drawn: anchors from `points`; geometry points from
        `points` of the branch ``surface``, or else from its anchors; supernodes from the geometry points. The same seed
        draws what `emmi_jax.Surrogate.encode` draws.

        Args:
            anchors: Positions [T, n] of any of the branches.
            geometry: Points [P, n] that describe the body, to draw from, as `Points` with features where the model
                takes some; or a `Geometry`, used as it is. The package's own serves too, but without neighbours.
            condition: A number for each of `conditions`, in its unit: ``{"speed": 40.0, "yaw": 5.0}``. Or in model
                units an array [condition_dim], if the model has one, or an array for each of its named conditions.
            anchor_features: Features of given anchors of every branch in `features`: an array [T, C], or an array for
                each name.
            points: Points [N, n] of any of the branches to draw from; as `Points` they may bring cell sizes and
                features.
            seed: Seed of the draws.

        Raises:
            ValueError: There is nothing to draw from, or too little; or an array does not fit the model.
        """
        manifest = self._manifest
        case = choose_case(
            tuple(manifest.scales),
            manifest.sampling,
            has_geometry=manifest.geometry_sizes is not None,
            stored=self._stored,
            anchors=anchors,
            geometry=geometry,
            anchor_features=anchor_features,
            points=points,
            seed=seed,
            channels=self.features,
        )
        check_not_empty(case.anchors, case.geometry)
        model_units = {b: manifest.to_model_units(f"the anchor {b}", position) for b, position in case.anchors.items()}
        sizes = {b: len(position) for b, position in model_units.items()}
        inputs = (
            tuple(position[None] for position in model_units.values()),
            () if case.geometry is None else padded_geometry(manifest, case.geometry),
            condition_input(_in_model_units(manifest.conditions, condition), manifest.condition_dim),
        )
        features = tuple(manifest.scale_features(b, case.features[b]) for b in sizes if b in case.features)
        encode = self._program("encode", sizes)
        more = (tuple(array[None] for array in features),) if features else ()
        entries = encode.run(self._parameters[0], *jax.device_put((*inputs, *more), self._devices[0]))
        constants = [jax.device_put((entries, inputs[2]), device) for device in self._devices]
        return Encoded(self, sizes, constants, manifest.scales_under(condition))

    def _program(self, function: str, sizes: Mapping[str, int], num_queries: int | None = None) -> Program:
        """Returns the first program for these sizes: one with the run's own kernel, or else the one for any sizes."""
        programs = [program for program in self._programs if program.function == function]
        for program in programs:
            if program.anchors in (None, sizes) and program.num_queries in (None, num_queries):
                return program
        newer = self._manifest.newer_jax()
        reason = f"the file has no program {function!r} for {dict(sizes)} anchors and {num_queries} queries"
        raise ValueError(reason if newer is None else f"{reason}: {newer}")

    @property
    def _stored(self) -> Case:
        """The anchors and the geometry of the run's context."""
        context = self._context
        anchors, features = (
            {name.removeprefix(prefix): a for name, a in context.items() if name.startswith(prefix)}
            for prefix in ("context/anchors/", "context/anchor_features/")
        )
        if "context/geometry" not in context:
            return Case(anchors, None, features)
        of_points = context.get("context/geometry_features")
        geometry = Geometry(context["context/geometry"], context["context/supernode_idx"], features=of_points)
        return Case(anchors, geometry, features)


@dataclass(frozen=True, eq=False)
class Encoded:
    """One case as the model has encoded it.

    Args:
        surrogate: What encoded it.
        num_anchors: Numbers of anchors by branch.
        constants: Keys and values of anchors and geometry, and the condition, on each device.
        scales: The scales of its fields by branch and name.
    """

    surrogate: ExportedSurrogate
    num_anchors: Mapping[str, int]
    constants: Sequence[Any]
    scales: Mapping[str, Mapping[str, Scale]]

    def stream(
        self,
        queries: Mapping[str, Any],
        *,
        query_features: Mapping[str, FeaturesLike] | None = None,
        chunk_size: int | str = "auto",
    ) -> Iterator[StreamedChunk]:
        """Yields the fields at the queries chunk by chunk, branch after branch, in physical units.

        Every call of the model has the same shape; devices take turns, and copies overlap with computation.

        Args:
            queries: Positions [N, n] of any of the branches: arrays, memory-maps, or iterables of arrays of any length.
            query_features: Features of the queries of every branch in `ExportedSurrogate.features`: an array [N, C], or
                an array for each name.
            chunk_size: Queries per call; "auto" is the size that the file has its own program for.

        Raises:
            ValueError: A branch is unknown, or positions or features do not fit or are not finite.
        """
        surrogate = self.surrogate
        manifest, devices = surrogate._manifest, surrogate._devices
        if unknown := sorted(set(queries) - set(manifest.scales)):
            branches = list(manifest.scales)
            raise ValueError(f"queries name the unknown branches {unknown!r}; the branches are {branches!r}")
        check_taken(surrogate.features, query_features or {}, queries)
        size = self._chunk_size(chunk_size)
        runs = {branch: surrogate._program(f"query/{branch}", self.num_anchors, size).run for branch in queries}
        turns = itertools.cycle(range(len(devices)))

        def start(chunk: Chunk) -> Sequence[jax.Array]:
            at, branch = next(turns), chunk.branch
            features = chunk_features(manifest, branch, query_features or {}, chunk.start, chunk.num_points, size)
            rows = jax.device_put([chunk.position, *features], devices[at])
            fields: Sequence[jax.Array] = runs[branch](surrogate._parameters[at], *self.constants[at], *rows)
            return fields

        chunks = cut_queries(queries, size, len(manifest.position_low), manifest.scale_position)
        yield from pipelined(chunks, start, partial(_finish, self.scales), in_flight=2 * len(devices))

    def predict(
        self,
        queries: Mapping[str, Any],
        *,
        query_features: Mapping[str, FeaturesLike] | None = None,
        out: Mapping[str, Any] | None = None,
        chunk_size: int | str = "auto",
    ) -> dict[str, Any]:
        """Returns the fields [N, F] at the queries by ``<branch>_<field>``, in physical units.

        Args:
            queries: Positions [N, n] of any of the branches; see `stream`.
            query_features: See `stream`.
            out: Arrays or memory-maps to fill instead of new ones, one for each field of the queried branches; needed
                for iterables, whose length is unknown.
            chunk_size: See `stream`.

        Raises:
            ValueError: See `stream`; or `out` does not fit.
        """
        chunks = self.stream(queries, query_features=query_features, chunk_size=chunk_size)
        return fill(chunks, queries, out, self.surrogate.fields)

    def _chunk_size(self, chunk_size: int | str) -> int:
        if chunk_size == "auto":
            sizes = [program.num_queries for program in self.surrogate._programs if program.num_queries is not None]
            return sizes[0] if sizes else CHUNK_SIZE
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer) or chunk_size < 1:
            raise ValueError(f"chunk_size must be 'auto' or a positive integer, got {chunk_size!r}")
        return int(chunk_size)


def _in_model_units(scales: Scales, condition: ConditionLike | None) -> ConditionLike | None:
    """Returns a condition as the model takes it."""
    if condition is None and scales:
        condition = {}
    return condition_channels(scales, condition) if scales and isinstance(condition, Mapping) else condition


def condition_input(condition: ConditionLike | None, condition_dim: int | Mapping[str, int] | None) -> tuple[Any, ...]:
    """Returns a checked condition [condition_dim], or each of named ones, as [1, size]; nothing if there is none."""
    if condition_dim is None and condition is None:
        return ()
    if isinstance(condition_dim, Mapping):
        if not isinstance(condition, Mapping) or set(condition) != set(condition_dim):
            given = sorted(condition) if isinstance(condition, Mapping) else condition
            raise ValueError(f"the model takes the conditions {sorted(condition_dim)}, got {given}")
        return ({name: condition_input(condition[name], size)[0] for name, size in condition_dim.items()},)
    if isinstance(condition, Mapping):
        expected = "no condition" if condition_dim is None else f"{condition_dim} numbers as condition"
        raise ValueError(f"the model takes {expected}, got {sorted(condition)}")
    values = np.asarray(condition if condition is not None else [])
    if condition_dim is None or values.shape != (condition_dim,) or values.dtype.kind not in "fiu":
        expected = "no condition" if condition_dim is None else f"{condition_dim} numbers as condition"
        raise ValueError(f"the model takes {expected}, got {None if condition is None else values.tolist()}")
    if not np.isfinite(values).all():
        raise ValueError(f"condition must hold finite numbers, got {values.tolist()}")
    return (values.astype(np.float32)[None],)


def _finish(scales_of: Mapping[str, Mapping[str, Scale]], chunk: Chunk, fields: Sequence[jax.Array]) -> StreamedChunk:
    """Waits for the fields of a chunk."""
    scales = scales_of[chunk.branch]
    host = {
        name: scale.denormalize(np.asarray(values)[: chunk.num_points].astype(np.float32))
        for (name, scale), values in zip(scales.items(), fields, strict=True)
    }
    return StreamedChunk(chunk.branch, chunk.start, host)
