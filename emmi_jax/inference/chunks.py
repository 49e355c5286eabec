"""Queries of any number and source, cut into checked chunks of one shape, and the arrays that receive their fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.data.normalization import Normalizer
from emmi_jax.deploy.draws import check_unmasked

Queries: TypeAlias = Any
"""Positions [N, n]: an array, a memory-map or anything sliced like one; or an iterable of arrays of any length."""
ChunkSize: TypeAlias = int | Literal["auto"]

CPU_CHUNK_SIZE = 4096
"""What "auto" means on a device that does not report its memory."""

LARGEST_CHUNK_SIZE = 2**17
"""The most queries that "auto" gives one device; more would not keep it busier."""

_MEMORY_SHARE = 0.25


class Chunk(NamedTuple):
    """Some queries of a branch, and their positions [chunk_size, n] in model units, zeros after the last query."""

    branch: str
    start: int
    num_points: int
    position: NDArray[np.float32]


def cut_queries(
    queries: Mapping[str, Queries], chunk_size: int, config: AbUptConfig, normalizer: Normalizer | None
) -> Iterator[Chunk]:
    """Yields the queries of all branches in order; only the last chunk of a branch is not full.

    Raises:
        ValueError: Positions are not [N, n] or not finite, or their source failed; the message says where.
    """
    num_axes = config.num_position_axes
    for branch, source in queries.items():
        start, num_points = 0, 0
        position = np.zeros((chunk_size, num_axes), np.float32)
        for rows in _slices(branch, source, chunk_size, num_axes):
            rows = _model_units(f"the query {branch}", rows, start + num_points, normalizer)
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


def to_model_units(what: str, position: Any, num_axes: int, normalizer: Normalizer | None) -> NDArray[np.float32]:
    """Returns checked positions [N, n] as the model takes them.

    Args:
        what: Name of the points in error messages.
        position: Positions [N, n].
        num_axes: Number of axes n.
        normalizer: Set if the positions are in physical units; None if they are in model units.

    Raises:
        ValueError: The shape or dtype is wrong, or a position is not finite; the message quotes it.
    """
    array = position if hasattr(position, "dtype") else np.asarray(position)
    return _model_units(what, np.asarray(_checked_positions(what, array, num_axes)), 0, normalizer)


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


def resolve_chunk_size(
    chunk_size: ChunkSize, config: AbUptConfig, cache: Any, devices: Sequence[jax.Device], *, num_layers: int = 1
) -> int:
    """Returns the number of queries per call of the model, a multiple of the number of devices.

    "auto" fills a quarter of each device's free memory, by an estimate of the activations, with at most
    `LARGEST_CHUNK_SIZE` queries. On a device that does not report its memory it is `CPU_CHUNK_SIZE`, and a quarter of
    that with vector potentials. `num_layers` is the number of layers whose activations are alive at once: 1 unless a
    derivative needs them later.

    Raises:
        ValueError: It is neither "auto" nor a positive integer.
    """
    if isinstance(chunk_size, str) and chunk_size == "auto":
        return len(devices) * min(_auto_chunk_size(config, cache, device, num_layers) for device in devices)
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer) or chunk_size < 1:
        raise ValueError(f"chunk_size must be 'auto' or a positive integer, got {chunk_size!r}")
    return -(-int(chunk_size) // len(devices)) * len(devices)


def num_queries(source: Queries) -> int | None:
    """Returns how many points a source has, or None if only iterating tells."""
    shape = getattr(source, "shape", None)
    return int(shape[0]) if shape else None


def _auto_chunk_size(config: AbUptConfig, cache: Any, device: jax.Device, num_layers: int) -> int:
    # A curl takes three derivatives beside the value.
    num_passes = 4 if config.vector_potentials else 1
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return CPU_CHUNK_SIZE // num_passes
    # Residuals, q, k, v, rotations and both sides of the MLP, in float32 at worst; two chunks are alive.
    values = 16 * config.dim + 3 * max(config.mlp_hidden_dim or 0, (config.mlp_ratio or 0) * config.dim)
    if config.implementation in ("masked", "xla"):  # these hold the logits of every key
        keys = [leaf.shape[1] for leaf in jax.tree.leaves(cache) if leaf.ndim == 4]
        values += 3 * config.num_heads * len(config.branches) * max(keys, default=0)
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    fitting = max(1, int(_MEMORY_SHARE * free / (4 * values * num_passes * num_layers)))
    return min(LARGEST_CHUNK_SIZE, 1 << (fitting.bit_length() - 1))


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


def _model_units(what: str, position: NDArray[Any], start: int, normalizer: Normalizer | None) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = position.astype(np.float32) if normalizer is None else normalizer.normalize_position(position)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        first = int(np.argmin(is_finite))
        raise ValueError(f"{what} position {start + first} is not finite: {position[first].tolist()}")
    return values
