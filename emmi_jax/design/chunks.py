"""The cells of a surface, and points with fixed places, cut into chunks of one shape for the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import DTypeLike, NDArray

from emmi_jax.data.normalization import Normalizer
from emmi_jax.design.surface import Surface, cell_elements
from emmi_jax.points import PointSet

Chunks: TypeAlias = Callable[[int], Iterator["Chunk"]]
"""From the number of rows to chunks with so many each; may be called any number of times."""


class Chunk(NamedTuple):
    """Consecutive points of a branch; a pytree. Rows after the last point repeat it and are not real.

    Attributes:
        position: Positions [C, 3] in model units.
        place: The same in physical units, float64; on devices relative to the lowest corner of the normalizer's box.
        is_real: Booleans [C].
        size: Areas or volumes [C] of the cells of fixed points; None where they are unknown or follow from the corners.
        offset: Corners [C, K, 3] of cells, relative to `place`; None for fixed points.
        num_corners: Corners [C] of each cell; the rest repeat the last one.
        features: Features [C, F] in model units, if the branch has some.
    """

    position: Any
    place: Any
    is_real: Any
    size: Any = None
    offset: Any = None
    num_corners: Any = None
    features: Any = None


class Elements(NamedTuple):
    """Inputs of a functional beside the fields: positions [C, 3], normals [C, 3] or None, and sizes [C] or None.

    `model_position` holds the positions in model units; `position` is relative to the corner of the box.
    """

    model_position: jax.Array
    position: jax.Array
    normal: jax.Array | None
    size: jax.Array | None


def chunk_elements(chunk: Chunk, position_scale: float) -> Elements:
    """Returns positions, normals and sizes as differentiable functions of the corners of a chunk."""
    if chunk.offset is None:
        return Elements(chunk.position, chunk.place, None, chunk.size)
    shift, normal, area = cell_elements(chunk.offset, chunk.num_corners)
    return Elements(chunk.position + position_scale * shift, chunk.place + shift, normal, area)


def localized(chunk: Chunk, normalizer: Normalizer) -> Chunk:
    """Returns a chunk as the devices take it: a body far from the origin keeps its digits."""
    return chunk._replace(place=(chunk.place - np.asarray(normalizer.position_low)).astype(chunk.position.dtype))


def surface_chunks(
    surface: Surface, normalizer: Normalizer, dtype: DTypeLike, features: NDArray[Any] | None = None
) -> Chunks:
    """Returns the cells of a surface in chunks; their features are in model units."""

    def chunks(num_rows: int) -> Iterator[Chunk]:
        for rows, is_real in _rows(surface.num_cells, num_rows):
            # Differences are taken in float64: a cell is small beside its distance from the origin.
            place = surface.at_centers(rows).position(surface.vertices)
            offset = surface.vertices[surface.corners[rows]] - place[:, None]
            yield Chunk(
                scaled(normalizer, place, dtype),
                place,
                is_real,
                offset=offset.astype(dtype),
                num_corners=surface.num_corners[rows].astype(np.int32),
                features=None if features is None else features[rows],
            )

    return chunks


def point_chunks(
    points: PointSet, normalizer: Normalizer, dtype: DTypeLike, features: NDArray[Any] | None = None
) -> Chunks:
    """Returns points with fixed places in chunks; their features are in model units."""

    def chunks(num_rows: int) -> Iterator[Chunk]:
        for rows, is_real in _rows(len(points.position), num_rows):
            place = np.asarray(points.position[rows], np.float64)
            size = None if points.cell_size is None else np.asarray(points.cell_size[rows]).astype(dtype)
            of_points = None if features is None else features[rows]
            yield Chunk(scaled(normalizer, place, dtype), place, is_real, size, features=of_points)

    return chunks


def scaled(normalizer: Normalizer, position: NDArray[np.float64], dtype: DTypeLike) -> NDArray[Any]:
    """Converts positions [..., 3] to model units, computed in float64."""
    low = np.asarray(normalizer.position_low)
    return ((position - low) * normalizer.position_scale).astype(dtype)


def _rows(num_points: int, num_rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    for start in range(0, num_points, num_rows):
        rows = np.arange(start, start + num_rows)
        yield np.minimum(rows, num_points - 1), rows < num_points
