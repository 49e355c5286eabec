"""Points with fields, slices of them, and the array library that computes on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)

CHUNK_ROWS = 1 << 20
"""Rows read at once."""

_LARGEST = 1e38
_FLAT = 0.05

Array: TypeAlias = NDArray[np.floating[Any]]
Fields: TypeAlias = dict[str, dict[str, Array]]
"""Values by branch and field, each [..., T, F]."""


class PointSet(NamedTuple):
    """Points of one branch, and the fields there.

    Attributes:
        position: Positions [..., T, n].
        fields: Values [..., T, F] by field.
        cell_size: Areas or volumes [T] of the mesh cells, which weight the draws.
        area_vector: Outward normals times areas [T, 3] of the cells of a surface, to integrate forces over.
        features: What a model takes beside the positions, [..., T, C], in the order that its run declares.
    """

    position: Array
    fields: dict[str, Array]
    cell_size: Array | None = None
    area_vector: Array | None = None
    features: Array | None = None


def as_points(what: str, points: PointSet | Array) -> PointSet:
    """Returns points that may be given as an array of positions [N, n].

    Raises:
        ValueError: They are neither; the message names `what` they are the points of.
    """
    position = points.position if isinstance(points, PointSet) else points
    if not isinstance(getattr(position, "dtype", None), np.dtype) or len(position.shape) != 2:
        raise ValueError(f"the points of {what!r} must be an array [points, axes], got {type(position).__name__}")
    return points if isinstance(points, PointSet) else PointSet(position, {})


def take_points(points: PointSet, idx: slice | NDArray[np.integer[Any]]) -> PointSet:
    """Selects points of a case without a batch axis."""
    return PointSet(
        points.position[idx],
        {name: values[idx] for name, values in points.fields.items()},
        None if points.cell_size is None else points.cell_size[idx],
        None if points.area_vector is None else points.area_vector[idx],
        None if points.features is None else points.features[idx],
    )


def split_points(points: PointSet, num_anchors: int) -> tuple[PointSet, PointSet]:
    """Splits points into the first `num_anchors` and the rest."""
    return take_points(points, slice(num_anchors)), take_points(points, slice(num_anchors, None))


def row_chunks(array: NDArray[_Scalar], num_rows: int = CHUNK_ROWS) -> Iterator[NDArray[_Scalar]]:
    """Yields views of at most `num_rows` rows, so that a memory map is read chunk by chunk."""
    for start in range(0, max(len(array), 1), num_rows):
        yield array[start : start + num_rows]


def check_range(place: Any, name: str, array: NDArray[Any], *, mask_nan: bool = False) -> None:
    """Refuses numbers that float32 cannot hold; a memory map is read chunk by chunk.

    Args:
        place: Where they are.
        name: What they are, if that has a name.
        array: Values [N] or [N, F].
        mask_nan: Whether NaN is a value that is unknown, as long as another is known.

    Raises:
        ValueError: There are some; the message says how many.
    """
    num_bad = sum(c.size - int(np.count_nonzero((c >= -_LARGEST) & (c <= _LARGEST))) for c in row_chunks(array))
    num_nan = sum(int(np.count_nonzero(np.isnan(c))) for c in row_chunks(array)) if num_bad else 0
    what = f"values of {name!r}" if name else "values"
    if num_bad > num_nan or (num_bad and not mask_nan):
        raise ValueError(f"{place}: {num_bad} of {array.size} {what} are NaN or infinite, or beyond {_LARGEST:g}")
    if num_nan and all(is_unknown(chunk).all() for chunk in row_chunks(array)):
        raise ValueError(f"{place}: all {len(array)} {what} are NaN: masked, nothing is left to compare with")


def is_unknown(values: Array) -> NDArray[np.bool_]:
    """Returns which values [N] or rows [N, F] are unknown: those with a NaN."""
    return np.asarray(np.isnan(values).any(axis=tuple(range(1, np.ndim(values)))))


def flat_axis(position: NDArray[np.floating[Any]]) -> int | None:
    """Returns the axis along which points [N, 3] hardly extend, if they lie near a plane along two long axes."""
    extent = np.ptp(position, axis=0)
    order = np.argsort(extent)
    is_flat = extent[order[0]] < _FLAT * extent[order[1]]
    return int(order[0]) if is_flat else None
