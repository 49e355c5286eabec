"""Queries of any number and source in chunks of one shape: cut, kept in flight, and gathered."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from .draws import check_unmasked, rows_of
from .features import check_taken, join_features
from .scales import Scales

Queries: TypeAlias = Any
"""Positions [N, n]: an array, a memory-map or anything sliced like one; or an iterable of arrays of any length."""

ToModelUnits: TypeAlias = Callable[[NDArray[Any]], NDArray[np.float32]]
"""From positions [N, n] to those that the model takes."""

_T = TypeVar("_T")
_R = TypeVar("_R")
_V = TypeVar("_V")


class Chunk(NamedTuple):
    """Some queries of a branch, and their positions [chunk_size, n] in model units, zeros after the last query."""

    branch: str
    start: int
    num_points: int
    position: NDArray[np.float32]


class Query(NamedTuple):
    """Means by which a backend computes fields at queries.

    Attributes:
        fields: Number of channels by branch and field.
        scales: Conversions to and from model units.
        num_axes: Number of axes of positions.
        chunk_size: Queries of a chunk.
        start: Starts to compute the fields of a chunk, by name, from its features [chunk_size, C] in model units, or
            None; waits for nothing.
        in_flight: Most chunks that have been started and not finished; exported files set their own number.
    """

    fields: Mapping[str, Mapping[str, int]]
    scales: Scales
    num_axes: int
    chunk_size: int
    start: Callable[[Chunk, Any], Mapping[str, jax.Array]]
    in_flight: int = 2


class StreamedChunk(NamedTuple):
    """Fields at queries `start`, `start` + 1, … of a branch: arrays [..., num_points, F] float32 by field."""

    branch: str
    start: int
    fields: dict[str, NDArray[np.float32]]

    @property
    def num_points(self) -> int:
        """Number of queries in the chunk."""
        return int(next(iter(self.fields.values())).shape[-2])


def stream_fields(
    query: Query, queries: Mapping[str, Queries], query_features: Mapping[str, Any] | None
) -> Iterator[StreamedChunk]:
    """Yields the fields at queries chunk by chunk, branch after branch, in physical units.

    Raises:
        ValueError: A branch is unknown, or positions or features do not fit or are not finite.
    """
    given, channels = query_features or {}, query.scales.feature_channels
    if unknown := sorted(set(queries) - set(query.fields)):
        branches = list(query.fields)
        raise ValueError(f"queries name the unknown branches {unknown!r}; the branches are {branches!r}")
    check_taken(channels, given, queries)

    def start(chunk: Chunk) -> Mapping[str, jax.Array]:
        if chunk.branch not in channels:
            return query.start(chunk, None)
        rows = rows_of(given[chunk.branch], slice(chunk.start, chunk.start + chunk.num_points))
        what = f"the query {chunk.branch}" + (f" from {chunk.start} on" if chunk.start else "")
        joined = join_features(what, rows, channels[chunk.branch], chunk.num_points)
        features = query.scales.normalize_features(chunk.branch, joined)
        return query.start(chunk, np.pad(features, ((0, query.chunk_size - chunk.num_points), (0, 0))))

    def finish(chunk: Chunk, fields: Mapping[str, jax.Array]) -> StreamedChunk:
        host = {
            name: query.scales.denormalize_field(
                chunk.branch, name, np.asarray(values)[: chunk.num_points].astype(np.float32)
            )
            for name, values in fields.items()
        }
        return StreamedChunk(chunk.branch, chunk.start, host)

    chunks = cut_queries(queries, query.chunk_size, query.num_axes, query.scales.normalize_position)
    yield from pipelined(chunks, start, finish, in_flight=query.in_flight)


def pipelined(
    items: Iterable[_T], start: Callable[[_T], _R], finish: Callable[[_T, _R], _V], *, in_flight: int = 2
) -> Iterator[_V]:
    """Starts the next item before the result of the last one is read; yields what `finish` returns, in order.

    Args:
        items: What to work on.
        start: Starts to compute a tree of arrays, which are then copied to the host; waits for nothing.
        finish: Waits for the result of an item.
        in_flight: Most items that have been started and not finished.
    """
    pending: collections.deque[tuple[_T, _R]] = collections.deque()
    for item in items:
        pending.append((item, start(item)))
        for leaf in jax.tree.leaves(pending[-1][1]):
            leaf.copy_to_host_async()
        if len(pending) == in_flight:
            yield finish(*pending.popleft())
    while pending:
        yield finish(*pending.popleft())


def cut_queries(
    queries: Mapping[str, Queries], chunk_size: int, num_axes: int, to_model_units: ToModelUnits
) -> Iterator[Chunk]:
    """Yields the queries of all branches in order; only the last chunk of a branch is not full.

    Raises:
        ValueError: Positions are not [N, n] or not finite, or their source failed; the message says where.
    """
    for branch, source in queries.items():
        start, num_points = 0, 0
        position = np.zeros((chunk_size, num_axes), np.float32)
        for rows in _slices(branch, source, chunk_size, num_axes):
            rows = model_positions(f"the query {branch}", rows, num_axes, to_model_units, start + num_points)
            while len(rows):
                taken = rows[: chunk_size - num_points]
                position[num_points : num_points + len(taken)] = taken
                num_points, rows = num_points + len(taken), rows[len(taken) :]
                if num_points == chunk_size:
                    yield Chunk(branch, start, num_points, position)
                    # A device on the host may compute on the old array itself, so it is not written again.
                    position = np.zeros_like(position)
                    start, num_points = start + chunk_size, 0
        if num_points:
            yield Chunk(branch, start, num_points, position)


def model_positions(
    what: str, position: Any, num_axes: int, to_model_units: ToModelUnits, start: int = 0
) -> NDArray[np.float32]:
    """Returns checked positions [N, n] as the model takes them; the first has the number `start`.

    Raises:
        ValueError: The shape or dtype is wrong, or a position is not finite; the message quotes it.
    """
    array = position if hasattr(position, "dtype") else np.asarray(position)
    array = np.asarray(_checked_positions(what, array, num_axes, start))
    with np.errstate(over="ignore"):
        values = to_model_units(array)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        first = int(np.argmin(is_finite))
        raise ValueError(f"{what} position {start + first} is not finite: {array[first].tolist()}")
    return values


def fill(
    chunks: Iterable[StreamedChunk],
    queries: Mapping[str, Queries],
    out: Mapping[str, Any] | None,
    channels: Mapping[str, Mapping[str, int]],
    advance: Callable[[int], object] = lambda num_points: None,
) -> dict[str, Any]:
    """Fills arrays with the fields of chunks as they come; see `predict`.

    Args:
        chunks: The chunks of all queries.
        queries: Positions by branch.
        out: See `predict`.
        channels: Number of channels by branch and field.
        advance: See `predict`.
    """
    fields = output_arrays(queries, out, channels)
    done = dict.fromkeys(fields, 0)
    for chunk in chunks:
        for field, values in chunk.fields.items():
            name = f"{chunk.branch}_{field}"
            done[name] = chunk.start + len(values)
            if done[name] > len(fields[name]):
                more = f"there are at least {done[name]} queries"
                raise ValueError(f"out[{name!r}] has {len(fields[name])} rows, but {more}")
            fields[name][chunk.start : done[name]] = values
        advance(chunk.num_points)
    for name, num_points in done.items():
        if len(fields[name]) != num_points:
            raise ValueError(f"out[{name!r}] has {len(fields[name])} rows, but there were {num_points} queries")
    return fields


def output_arrays(
    queries: Mapping[str, Queries], out: Mapping[str, Any] | None, fields: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Returns the arrays [N, F] to fill, by ``<branch>_<field>``: a checked `out`, or new float32 arrays.

    `fields` has the number of channels by branch and field.

    Raises:
        ValueError: `out` does not fit, or is missing although the number of queries is unknown.
    """
    shapes = {
        f"{branch}_{name}": (num_queries(source), channels)
        for branch, source in queries.items()
        for name, channels in fields.get(branch, {}).items()
    }
    if out is None:
        if unknown := [name for name, (num_points, _) in shapes.items() if num_points is None]:
            raise ValueError(f"the number of queries is unknown: pass out with {unknown!r}, or stream the chunks")
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    if set(out) != set(shapes):
        raise ValueError(f"out must hold the arrays {sorted(shapes)!r}, got {sorted(out)!r}")
    for name, (num_points, channels) in shapes.items():
        array = out[name]
        dtype = getattr(array, "dtype", None)
        if not isinstance(dtype, np.dtype) or dtype.kind != "f" or isinstance(array, jax.Array):
            raise ValueError(f"out[{name!r}] must be a writable array of floats, got {dtype or type(array).__name__}")
        rows = array.shape[0] if num_points is None and array.shape else num_points
        if array.shape != (rows, channels):
            expected = ["N" if num_points is None else num_points, channels]
            raise ValueError(f"out[{name!r}] must have the shape {expected}, got {list(array.shape)}")
    return dict(out)


def num_queries(source: Queries) -> int | None:
    """Returns how many points a source has, or None if only iterating tells."""
    shape = getattr(source, "shape", None)
    return int(shape[0]) if shape else None


def _slices(branch: str, source: Queries, chunk_size: int, num_axes: int) -> Iterator[NDArray[Any]]:
    """Yields checked arrays [N, n] of at most `chunk_size` points."""
    start = 0
    for array in _arrays(branch, source):
        array = _checked_positions(f"the query {branch}", array, num_axes, start)
        for low in range(0, len(array), chunk_size):
            yield np.asarray(array[low : low + chunk_size])
        start += len(array)


def _arrays(branch: str, source: Queries) -> Iterator[Any]:
    """Yields the array, or what the iterable yields; if that fails, the error says after how many points."""
    if hasattr(source, "shape"):
        # JAX would compile one slice per chunk.
        yield np.asarray(source) if isinstance(source, jax.Array) else source
        return
    if not isinstance(source, Iterable) or isinstance(source, str | Mapping):
        raise ValueError(f"the queries of {branch!r} must be an array or an iterable of arrays, got {source!r:.80}")
    arrays, num_points = iter(source), 0
    while True:
        try:
            array = next(arrays)
        except StopIteration:
            return
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"the source of the queries of {branch!r} failed after {num_points} points: {reason}"
            ) from error
        array = array if hasattr(array, "dtype") else np.asarray(array)
        yield array
        num_points += len(array)


def _checked_positions(what: str, array: Any, num_axes: int, start: int = 0) -> Any:
    where = f" from point {start}" if start else ""
    expected = f"{what} positions{where} must be float32, float64 or integer arrays of shape [points, {num_axes}]"
    if not isinstance(getattr(array, "dtype", None), np.dtype):
        raise ValueError(f"{expected}, got {type(array).__module__}.{type(array).__name__}")
    # Half precision would move the points, by 10 % of the output and more.
    is_exact = array.dtype.kind in "iu" or (array.dtype.kind == "f" and array.dtype.itemsize >= 4)
    if len(array.shape) != 2 or array.shape[1] != num_axes or not is_exact:
        raise ValueError(f"{expected}, got {array.dtype} of shape {list(array.shape)}")
    check_unmasked(f"{what} positions", array)
    return array
