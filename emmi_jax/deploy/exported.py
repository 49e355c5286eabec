"""The model of an exported file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .archive import Program
from .case import Case, check_not_empty, padded_geometry
from .conditions import Condition, in_model_units
from .draws import Array, Geometry
from .encoded_set import EncodedSet, encode_draws
from .features import FeaturesLike
from .intervals import CalibrationScores
from .manifest import FileScales, Manifest
from .streaming import Chunk, Query, StreamedChunk, model_positions, stream_fields
from .surrogate import ConditionLike, Encoded, Inputs, Surrogate, check_chunk_size

CHUNK_SIZE = 4096
"""Queries per call where the file has a program for no number of its own."""


class ExportedSurrogate(Surrogate):
    """The model of a file; see `Surrogate`.

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
        number = manifest.num_members
        members = [parameters] if number == 1 else [tuple(a[member] for a in parameters) for member in range(number)]
        self._parameters = [[jax.device_put(member, device) for device in devices] for member in members]

    @property
    def fields(self) -> dict[str, dict[str, int]]:
        """Numbers of channels by branch and field."""
        return {
            branch: {name: len(scale.mean) for name, scale in scales.items()}
            for branch, scales in self._manifest.scales.fields.items()
        }

    @property
    def features(self) -> dict[str, dict[str, int]]:
        """Inputs of the model beside positions: numbers of channels by branch, or ``geometry``, and name, in order."""
        return self._manifest.scales.feature_channels

    @property
    def num_members(self) -> int:
        """Number of models in the file; their mean is the prediction."""
        return self._manifest.num_members

    @property
    def units(self) -> dict[str, str]:
        """The units that the file names: by `position` and `<branch>/<field>`."""
        return dict(self._manifest.units)

    @property
    def conditions(self) -> dict[str, Condition]:
        """Unit, kind, trained range and scale of each condition by name."""
        return dict(self._manifest.conditions)

    @property
    def calibration(self) -> CalibrationScores | None:
        """The scores of the cases that the run was calibrated with; None for a run that was not."""
        return self._manifest.calibration

    @property
    def kernels(self) -> dict[str, str]:
        """The attention kernel of each program, by function and sizes."""
        return {program.title: program.kernel for program in self._programs}

    @property
    def _inputs(self) -> Inputs:
        context, manifest = self._context, self._manifest
        anchors, features = (
            {name.removeprefix(prefix): a for name, a in context.items() if name.startswith(prefix)}
            for prefix in ("context/anchors/", "context/anchor_features/")
        )
        geometry = None
        if "context/geometry" in context:
            of_points = context.get("context/geometry_features")
            geometry = Geometry(context["context/geometry"], context["context/supernode_idx"], features=of_points)
        return Inputs(manifest.sampling, manifest.geometry_sizes is not None, Case(anchors, geometry, features))

    def encode_with_intervals(self, level: float, *, seed: int = 0, **case: Any) -> EncodedSet:
        """Encodes one case as the calibration did; its fields have ``<field>_low`` and ``<field>_high`` beside them.

        Args:
            level: The probability that a new case is inside, such as 0.9.
            seed: Seed of the first draw.
            **case: The other arguments of `encode`.

        Raises:
            ValueError: See `encode`; or the run was not calibrated, or with too few cases for the level.
        """
        if self.calibration is None:
            raise ValueError("the file has no intervals: calibrate its run, then export it again")
        intervals = self.calibration.intervals(level, self._manifest.num_members)
        return encode_draws(self, self.calibration.repeats, seed=seed, intervals=intervals, **case)

    def _encoded(self, case: Case, condition: ConditionLike | None) -> Encoded:
        manifest, scales = self._manifest, self._manifest.scales
        check_not_empty(case.anchors, case.geometry)
        num_axes = len(scales.position_low)
        model_units = {
            b: model_positions(f"the anchor {b}", position, num_axes, scales.normalize_position)
            for b, position in case.anchors.items()
        }
        sizes = {b: len(position) for b, position in model_units.items()}
        given = in_model_units(manifest.conditions, condition, manifest.condition_dim)
        inputs = (
            tuple(position[None] for position in model_units.values()),
            () if case.geometry is None else padded_geometry(manifest, case.geometry),
            condition_input(given, manifest.condition_dim),
        )
        features = tuple(scales.normalize_features(b, case.features[b])[None] for b in sizes if b in case.features)
        encode = self._program("encode", sizes)
        more = (features,) if features else ()
        on_device, under = jax.device_put((*inputs, *more), self._devices[0]), scales.under(condition)
        members = []
        for parameters in self._parameters:
            entries = encode.run(parameters[0], *on_device)
            constants = [jax.device_put((entries, inputs[2]), device) for device in self._devices]
            members.append(ExportedCase(self, parameters, sizes, constants, under))
        return members[0] if len(members) == 1 else EncodedSet(tuple((member,) for member in members))

    def _program(self, function: str, sizes: Mapping[str, int], num_queries: int | None = None) -> Program:
        """Returns the first program for these sizes: one with the run's own kernel, or else the one for any sizes."""
        programs = [program for program in self._programs if program.function == function]
        for program in programs:
            if program.anchors in (None, sizes) and program.num_queries in (None, num_queries):
                return program
        newer = self._manifest.newer_jax()
        reason = f"the file has no program {function!r} for {dict(sizes)} anchors and {num_queries} queries"
        raise ValueError(reason if newer is None else f"{reason}: {newer}")


@dataclass(frozen=True, eq=False)
class ExportedCase(Encoded):
    """One case as the model of a file has encoded it; see `Encoded`.

    Args:
        surrogate: What encoded it.
        parameters: Those of its model on each device.
        num_anchors: Numbers of anchors by branch.
        constants: Keys and values of anchors and geometry, and the condition, on each device.
        scales: Conversions of its positions, features and fields.
    """

    surrogate: ExportedSurrogate
    parameters: Sequence[Any]
    num_anchors: Mapping[str, int]
    constants: Sequence[Any]
    scales: FileScales

    @property
    def fields(self) -> Mapping[str, Mapping[str, int]]:
        """Numbers of channels by branch and field."""
        return self.surrogate.fields

    @property
    def normalizer(self) -> FileScales:
        """Scales of positions and fields, those of fields under the condition."""
        return self.scales

    def stream(
        self,
        queries: Mapping[str, Any],
        *,
        query_features: Mapping[str, FeaturesLike] | None = None,
        chunk_size: Any = "auto",
        devices: Sequence[jax.Device] | None = None,
    ) -> Iterator[StreamedChunk]:
        """Yields the fields chunk by chunk, see `Encoded.stream`; the devices of the file take turns."""
        surrogate, size = self.surrogate, self._chunk_size(chunk_size)
        if devices is not None and list(devices) != list(surrogate._devices):
            raise ValueError(f"an exported file computes on the devices that it was loaded for, got {list(devices)}")
        turns = itertools.cycle(range(len(surrogate._devices)))

        def start(chunk: Chunk, features: Any) -> dict[str, jax.Array]:
            at, branch = next(turns), chunk.branch
            run = surrogate._program(f"query/{branch}", self.num_anchors, size).run
            given = [chunk.position, *([] if features is None else [features])]
            rows = jax.device_put(given, surrogate._devices[at])
            return dict(zip(self.fields[branch], run(self.parameters[at], *self.constants[at], *rows), strict=True))

        in_flight, num_axes = 2 * len(surrogate._devices), len(self.scales.position_low)
        yield from stream_fields(
            Query(self.fields, self.scales, num_axes, size, start, in_flight), queries, query_features
        )

    def _chunk_size(self, chunk_size: Any) -> int:
        if chunk_size != "auto":
            return check_chunk_size(chunk_size)
        sizes = [program.num_queries for program in self.surrogate._programs if program.num_queries is not None]
        return sizes[0] if sizes else CHUNK_SIZE


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
