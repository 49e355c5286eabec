"""Structured parts of EnSight Gold files as points and cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.ensight_files import EnsightData

_KINDS = ("curvilinear", "rectilinear", "uniform")
_MOST_POINTS = 1 << 28
_CELL_TYPES = (1, 3, 9, 12)  # vertex, line, quadrilateral, hexahedron


def read_block(data: EnsightData, flags: list[str]) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """Reads a block behind its keyword.

    Args:
        data: The file.
        flags: The words after the keyword.

    Returns:
        Points [N, 3] with the first index fastest, corners of the cells [C, 1, 2, 4 or 8], and VTK's type of cell.

    Raises:
        ValueError: It is of another kind, such as with blanked points or a range.
    """
    kind, *others = flags or ["curvilinear"]
    if kind not in _KINDS or others:
        raise ValueError(f"{data.path}: 'block {' '.join(flags)}' is not read, expected one of {', '.join(_KINDS)}")
    num = data.ints(3, num_rows=1)
    if (num < 1).any() or np.prod(num, dtype=object) > _MOST_POINTS:
        raise data.damage(f"a block of {' × '.join(f'{n:,}' for n in num)} points")
    if kind == "curvilinear":
        points = data.floats(data.total([3 * int(num.prod())])).reshape(3, -1).T
    elif kind == "rectilinear":
        points = _product([data.floats(data.total([n])) for n in num])
    else:
        origin, step = data.floats(3), data.floats(3)
        points = _product([o + s * np.arange(n, dtype=np.float32) for o, s, n in zip(origin, step, num, strict=True)])
    return np.ascontiguousarray(points), *_cells(num)


def _product(axes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    return np.stack([x, y, z], axis=-1).reshape(-1, 3)


def _cells(num: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Returns the corners of the cells of a lattice [C, corners] in the order of VTK, and their type."""
    idx = np.arange(num.prod()).reshape(num[::-1])
    corners = [idx[tuple(slice(None) if n == 1 else slice(0, n - 1) for n in num[::-1])].reshape(-1)]
    strides, dim = np.array([1, num[0], num[0] * num[1]]), 0
    for axis in np.flatnonzero(num > 1):
        turned = corners if dim == 0 else corners[::-1] if dim == 1 else corners
        corners = corners + [corner + strides[axis] for corner in turned]
        dim += 1
    return np.stack(corners, axis=1), _CELL_TYPES[dim]
