"""Queries of any number and source, cut into checked chunks of one shape, and the arrays for their fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.data.normalization import Normalizer

Array: TypeAlias = NDArray[np.float32]
Positions: TypeAlias = Any
"""Positions [N, n]: an array, a memory-map or anything sliced like one; or an iterable of arrays of any lengths."""
ChunkSize: TypeAlias = int | Literal["auto"]

CPU_CHUNK_SIZE = 4096
"""What "auto" is on a device that does not say how much memory it has."""

LARGEST_CHUNK_SIZE = 2**17
"""The most that "auto" gives one device: beyond, a device is busy anyway."""

_MEMORY_SHARE = 0.25


class Chunk(NamedTuple):
    """Some queries of a branch: which ones, and their positions [chunk_size, n] in model units, zeros at the end."""

    branch: str
    start: int
    num_points: int
    position: Array


def cut_queries(
    queries: Mapping[str, Positions], chunk_size: int, config: AbUptConfig, normalizer: Normalizer | None
) -> Iterator[Chunk]:
    """Yields the queries of all branches in order, each chunk but a branch's last one full.

    Raises:
        ValueError: Positions are no [N, n] or not finite, or what yields them failed; the message says where.
    """
    for branch, source in queries.items():
        start, num_points = 0, 0
        position = np.zeros((chunk_size, config.num_position_axes), np.float32)
        for piece in _pieces(branch, source, chunk_size, config.num_position_axes):
            piece = _model_units(f"the query {branch}", piece, start + num_points, normalizer)
            while len(piece):
                taken = piece[: chunk_size - num_points]
                position[num_points : num_points + len(taken)] = taken
                num_points, piece = num_points + len(taken), piece[len(taken) :]
                if num_points == chunk_size:
                    yield Chunk(branch, start, num_points, position)
                    # A device on the host may compute on the old array itself, so it is not written again.
                    position = np.zeros_like(position)
                    start, num_points = start + chunk_size, 0
        if num_points:
            yield Chunk(branch, start, num_points, position)


def to_model_units(what: str, position: Any, num_axes: int, normalizer: Normalizer | None) -> Array:
    """Returns checked positions [N, n] as the model takes them.

    Args:
        what: What the points are, for messages.
        position: Positions [N, n].
        num_axes: Number of axes n.
        normalizer: The scales if the positions are in physical units; None if they are in model units.

    Raises:
        ValueError: The shape is wrong or a position is not finite; the message quotes it.
    """
    return _model_units(what, _checked_shape(what, np.asarray(position), num_axes), 0, normalizer)


def output_arrays(
    queries: Mapping[str, Positions], out: Mapping[str, Any] | None, config: AbUptConfig
) -> dict[str, Any]:
    """Returns the arrays [N, F] to fill, by ``<branch>_<field>``: `out`, checked, or new ones.

    Raises:
        ValueError: `out` does not fit, or is missing where the number of queries is not known.
    """
    shapes = {
        f"{branch}_{name}": (_number_of_points(source), channels)
        for branch, source in queries.items()
        for name, channels in config.fields.get(branch, {}).items()
    }
    if out is None:
        if endless := [name for name, (num_points, _) in shapes.items() if num_points is None]:
            raise ValueError(f"the queries do not tell their number: pass out with {endless!r}, or use iter_stream")
        return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    if set(out) != set(shapes):
        raise ValueError(f"out must hold the arrays {sorted(shapes)!r}, got {sorted(out)!r}")
    for name, (num_points, channels) in shapes.items():
        rows = out[name].shape[0] if num_points is None and out[name].shape else num_points
        if out[name].shape != (rows, channels):
            expected = ["N" if num_points is None else num_points, channels]
            raise ValueError(f"out[{name!r}] must have the shape {expected}, got {list(out[name].shape)}")
    return dict(out)


def resolve_chunk_size(chunk_size: ChunkSize, config: AbUptConfig, cache: Any, devices: Sequence[jax.Device]) -> int:
    """Returns the queries in one call of the model: a multiple of the number of devices.

    "auto" fills a quarter of each device's free memory by an estimate of the activations, at most `LARGEST_CHUNK_SIZE`
    a device; where the memory is not known it is `CPU_CHUNK_SIZE` a device, a quarter of that for vector potentials.

    Raises:
        ValueError: It is neither "auto" nor a positive number.
    """
    if chunk_size == "auto":
        return len(devices) * min(_auto_chunk_size(config, cache, device) for device in devices)
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer) or chunk_size < 1:
        raise ValueError(f"chunk_size must be 'auto' or a positive integer, got {chunk_size!r}")
    return -(-int(chunk_size) // len(devices)) * len(devices)


def _number_of_points(source: Positions) -> int | None:
    """Returns how many points there are, or None if only iterating tells."""
    shape = getattr(source, "shape", None)
    return int(shape[0]) if shape else None


def _auto_chunk_size(config: AbUptConfig, cache: Any, device: jax.Device) -> int:
    # A curl takes three derivatives beside the value.
    num_passes = 4 if config.vector_potentials else 1
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return CPU_CHUNK_SIZE // num_passes
    # Residuals, q, k, v, rotations and both sides of the MLP, in float32 at worst; two chunks are alive.
    values = config.dim * (16 + 3 * config.mlp_ratio)
    if config.implementation in ("masked", "xla") or config.vector_potentials:  # these hold the logits of every key
        keys = [leaf.shape[1] for leaf in jax.tree.leaves(cache) if leaf.ndim == 4]
        values += 3 * config.num_heads * len(config.branches) * max(keys, default=0)
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    fitting = max(1, int(_MEMORY_SHARE * free / (4 * values * num_passes)))
    return min(LARGEST_CHUNK_SIZE, 1 << (fitting.bit_length() - 1))


def _pieces(branch: str, source: Positions, chunk_size: int, num_axes: int) -> Iterator[NDArray[Any]]:
    """Yields checked arrays [N, n] of at most `chunk_size` points."""
    what, start = f"the query {branch}", 0
    for block in _blocks(branch, source):
        block = _checked_shape(what, block, num_axes, start)
        for low in range(0, len(block), chunk_size):
            yield np.asarray(block[low : low + chunk_size])
        start += len(block)


def _blocks(branch: str, source: Positions) -> Iterator[Any]:
    """Yields the array, or what the iterable yields; says after how many points it fails."""
    if hasattr(source, "shape"):
        # JAX would compile a slice a chunk.
        yield np.asarray(source) if isinstance(source, jax.Array) else source
        return
    if not isinstance(source, Iterable) or isinstance(source, str | Mapping):
        raise ValueError(f"the queries of {branch!r} must be an array or an iterable of arrays, got {source!r:.80}")
    blocks, num_points = iter(source), 0
    while True:
        try:
            block = next(blocks)
        except StopIteration:
            return
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"what yields the queries of {branch!r} failed after {num_points} points: {reason}"
            ) from error
        block = np.asarray(block)
        yield block
        num_points += len(block)


def _checked_shape(what: str, block: Any, num_axes: int, start: int = 0) -> Any:
    if len(block.shape) != 2 or block.shape[1] != num_axes or np.dtype(block.dtype).kind not in "fiu":
        where = f" from point {start}" if start else ""
        raise ValueError(
            f"{what} positions{where} must be numbers of the shape [points, {num_axes}], "
            f"got {block.dtype} of shape {list(block.shape)}"
        )
    return block


def _model_units(what: str, piece: NDArray[Any], start: int, normalizer: Normalizer | None) -> Array:
    with np.errstate(over="ignore"):
        values = piece.astype(np.float32) if normalizer is None else normalizer.normalize_position(piece)
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        first = int(np.argmin(is_finite))
        raise ValueError(f"{what} position {start + first} is not finite: {piece[first].tolist()}")
    return values
