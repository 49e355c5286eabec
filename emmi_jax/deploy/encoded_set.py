"""One case as several models, or one model from several draws of points, have encoded it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .intervals import Intervals
from .spread import DRAWS, MEMBERS, Spread
from .streaming import Queries, StreamedChunk
from .surrogate import Encoded, Surrogate

LOW, HIGH = "_low", "_high"
"""Added for its interval."""


class VariantChunk(NamedTuple):
    """Fields [members, draws, n, F] float32 at queries `start`, `start` + 1, … of a branch."""

    branch: str
    start: int
    fields: dict[str, NDArray[np.float32]]


Watch = Callable[[VariantChunk], object]


def watch_nothing(chunk: VariantChunk) -> None:
    """Does nothing with a chunk."""


@dataclass(frozen=True, eq=False)
class EncodedSet(Encoded):
    """One case as several models and several draws of points have encoded it; they stream together.

    Args:
        variants: The same case by member and draw, each an `Encoded`.
        intervals: Intervals to add to each field; None for none.
    """

    variants: tuple[tuple[Any, ...], ...]
    intervals: Intervals | None = None

    def __post_init__(self) -> None:
        for branch, fields in self.variants[0][0].fields.items():
            for name, suffix in itertools.product(fields, self._suffixes[1:]):
                if f"{name}{suffix}" in fields:
                    raise ValueError(f"{branch!r} has a field {name + suffix!r}, which is what {name!r} gets beside it")

    @property
    def fields(self) -> dict[str, dict[str, int]]:
        """Number of channels of what is predicted, by branch: each field, its deviations and bounds."""
        return {
            branch: {f"{name}{suffix}": channels for name, channels in fields.items() for suffix in self._suffixes}
            for branch, fields in self.variants[0][0].fields.items()
        }

    @property
    def normalizer(self) -> Any:
        """Scales of positions and fields, those of fields under the condition."""
        return self.variants[0][0].normalizer

    @property
    def _suffixes(self) -> list[str]:
        return [
            "",
            *([MEMBERS] if len(self.variants) > 1 else []),
            *([DRAWS] if len(self.variants[0]) > 1 else []),
            *([LOW, HIGH] if self.intervals is not None else []),
        ]

    def stream_each(self, queries: Mapping[str, Queries], **options: Any) -> Iterator[VariantChunk]:
        """Yields the fields [members, draws, n, F] chunk by chunk; see `Encoded.stream`."""
        encoded = list(itertools.chain.from_iterable(self.variants))
        shape = len(self.variants), len(self.variants[0])
        sources = {branch: _copies(source, len(encoded)) for branch, source in queries.items()}
        streams = [
            one.stream({branch: copies[number] for branch, copies in sources.items()}, **options)
            for number, one in enumerate(encoded)
        ]
        for chunks in zip(*streams, strict=True):
            fields = {name: np.stack([chunk.fields[name] for chunk in chunks]) for name in chunks[0].fields}
            by_variant = {name: values.reshape(*shape, *values.shape[1:]) for name, values in fields.items()}
            yield VariantChunk(chunks[0].branch, chunks[0].start, by_variant)

    def stream(
        self, queries: Mapping[str, Queries], *, watch: Watch = watch_nothing, **options: Any
    ) -> Iterator[StreamedChunk]:
        """Yields mean, deviations and bounds of the fields chunk by chunk; `watch` is shown those of each variant."""
        for chunk in self.stream_each(queries, **options):
            watch(chunk)
            fields: dict[str, NDArray[np.float32]] = {}
            for name, values in chunk.fields.items():
                spread = Spread.of(values)
                columns = {"": spread.mean, MEMBERS: spread.members, DRAWS: spread.draws}
                if self.intervals is not None:
                    columns[LOW], columns[HIGH] = self.intervals.of_field(chunk.branch, name, spread, self.normalizer)
                fields |= {f"{name}{suffix}": _single(columns[suffix]) for suffix in self._suffixes}
            yield StreamedChunk(chunk.branch, chunk.start, fields)


def encode_draws(
    surrogate: Surrogate, repeats: int, *, seed: int = 0, intervals: Intervals | None = None, **case: Any
) -> EncodedSet:
    """Encodes one case by every member of a surrogate, for several draws; see `Surrogate.encode`.

    Args:
        surrogate: The surrogate.
        repeats: Number of draws, with the seeds `seed`, `seed` + 1, ….
        seed: Seed of the first.
        intervals: Intervals to add to each field.
        **case: The other arguments of `Surrogate.encode`.

    Raises:
        ValueError: See `Surrogate.encode`; or repeats is less than 1, or intervals of several draws are asked for where
            the anchors are given, so that they do not vary.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if intervals is not None and repeats > 1 and (case.get("anchors") or not case.get("points")):
        raise ValueError(f"intervals of {repeats} draws need points to draw anchors from, and no anchors")
    draws = [surrogate.encode(**case, seed=seed + number) for number in range(repeats)]
    by_draw = [draw.variants if isinstance(draw, EncodedSet) else ((draw,),) for draw in draws]
    of_members = zip(*by_draw, strict=True)
    return EncodedSet(tuple(tuple(one for (one,) in of_member) for of_member in of_members), intervals)


def collect(branch: str, num_points: int, fields: Sequence[str]) -> tuple[dict[str, NDArray[np.float32]], Watch]:
    """Returns arrays [members, draws, num_points, F] of some fields of a branch, and what fills them as they stream."""
    arrays: dict[str, NDArray[np.float32]] = {}

    def watch(chunk: VariantChunk) -> None:
        if chunk.branch != branch:
            return
        for name in fields:
            values = chunk.fields[name]
            whole = arrays.setdefault(name, np.empty((*values.shape[:2], num_points, values.shape[-1]), np.float32))
            whole[:, :, chunk.start : chunk.start + values.shape[2]] = values

    return arrays, watch


def field_columns(names: Collection[str]) -> list[str]:
    """Returns those of the names in a prediction that are fields, without deviations and bounds."""
    added = {f"{name}{suffix}" for name in names for suffix in (MEMBERS, DRAWS, LOW, HIGH)}
    return [name for name in names if name not in added]


def shown_columns(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Returns what figures show of a prediction: fields [N, F], and deviations and half widths that vary."""
    fields = {name: arrays[name] for name in field_columns(arrays)}
    widths = {name + kind: arrays[name + kind] for name in fields for kind in (MEMBERS, DRAWS) if name + kind in arrays}
    for name in fields:
        if name + LOW in arrays:
            widths[f"{name}_half_width"] = (arrays[name + HIGH] - arrays[name + LOW]) / np.float32(2)
    is_shown = {name: np.isfinite(values).all() and (values != values[:1]).any() for name, values in widths.items()}
    return fields | {name: values for name, values in widths.items() if is_shown[name]}


def _copies(source: Queries, number: int) -> Sequence[Queries]:
    """Returns a source for each variant; an iterable is run through once, a few chunks of it being held."""
    return [source] * number if hasattr(source, "shape") else itertools.tee(source, number)


def _single(values: Any) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)
