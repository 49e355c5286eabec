"""Points with fields, and slices of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)

CHUNK_ROWS = 1 << 20
"""Rows that are read at once."""

Array: TypeAlias = NDArray[np.floating[Any]]
Fields: TypeAlias = dict[str, dict[str, Array]]
"""Values by branch and field, each [..., T, F]."""


class PointSet(NamedTuple):
    """Points of one branch: position [..., T, n] and the fields there, each [..., T, F].

    Those of a mesh may bring the areas or volumes of their cells [T] to be drawn by.
    """

    position: Array
    fields: dict[str, Array]
    cell_size: Array | None = None


def split_points(points: PointSet, num_anchors: int) -> tuple[PointSet, PointSet]:
    """Splits points into the first `num_anchors`, and the rest."""
    return take_points(points, slice(num_anchors)), take_points(points, slice(num_anchors, None))


def take_points(points: PointSet, idx: slice | NDArray[np.integer[Any]]) -> PointSet:
    """Selects points of a case that has no batch axis."""
    return PointSet(
        points.position[idx],
        {name: values[idx] for name, values in points.fields.items()},
        None if points.cell_size is None else points.cell_size[idx],
    )


def row_chunks(array: NDArray[_Scalar], num_rows: int = CHUNK_ROWS) -> Iterator[NDArray[_Scalar]]:
    """Cuts an array into views of at most `num_rows` rows; a memory map is read piece by piece."""
    for start in range(0, max(len(array), 1), num_rows):
        yield array[start : start + num_rows]
