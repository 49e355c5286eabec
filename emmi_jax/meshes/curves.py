"""Lines in a plane, the surface of a flow of two dimensions: lengths, outward normals, and whether they are closed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.content import cell_arrays
from emmi_jax.points import flat_axis

_LINE, _POLYLINE = 3, 4
_SAME_POINT = 1e-9  # of the extent of the lines


class CurveElements(NamedTuple):
    """Lines of a plane.

    Args:
        length: Lengths [N], which are areas per unit of span.
        normal: Outward unit normals [N, 3]; zero for a line without length.
        num_ends: Points that do not join exactly two lines; 0 for closed curves.
        is_turned: Which lines [N] run clockwise around the body.
        plane: Names of the axes of the plane, such as "x-y".
    """

    length: NDArray[np.float64]
    normal: NDArray[np.float64]
    num_ends: int
    is_turned: NDArray[np.bool_]
    plane: str


def segments(dataset: Any) -> NDArray[np.int64] | None:
    """Returns the points of the lines of a `pyvista.DataSet`, [N, 2]; None if it has other cells, or none."""
    if not dataset.n_cells:
        return None
    if dataset.IsA("vtkPolyData"):
        corners, offsets = cell_arrays(dataset.GetLines())
    elif not hasattr(dataset, "celltypes") or not np.isin(dataset.celltypes, (_LINE, _POLYLINE)).all():
        return None
    else:
        corners, offsets = cell_arrays(dataset.GetCells())
    is_whole = len(offsets) - 1 == dataset.n_cells and bool((np.diff(offsets) == 2).all())
    return corners.reshape(-1, 2) if is_whole else None


def curve_elements(points: NDArray[np.float64], ends: NDArray[np.int64]) -> CurveElements:
    """Computes lengths and outward normals of lines; each connected curve encloses a body, the fluid is outside.

    A curve with ends is closed by a straight line between them.

    Args:
        points: Points [P, 3], in a plane of two axes.
        ends: The points of each line [N, 2], in any order and direction.

    Raises:
        ValueError: The lines lie in no such plane, or more than two of them meet in a point.
    """
    if (axis := flat_axis(points[ends.reshape(-1)])) is None:
        raise ValueError("lines are a surface in the planes x-y, x-z and y-z alone, and these lie in none of them")
    across = [(axis + 1) % 3, (axis + 2) % 3]
    plane = points[:, across]
    ends = _joined(plane, ends)
    order, sign, curve, num_ends = _walk(ends)
    start, end = plane[np.where(sign > 0, ends[:, 0], ends[:, 1])], plane[np.where(sign > 0, ends[:, 1], ends[:, 0])]
    _, first = np.unique(curve[order], return_index=True)
    origin = start[order[first]][curve]  # a lid from the last end to the first adds no area seen from there
    (u, v), (next_u, next_v) = (start - origin).T, (end - origin).T
    is_clockwise = (np.bincount(curve, u * next_v - v * next_u) < 0)[curve]
    is_turned = is_clockwise != (sign < 0)
    direction = np.where(is_turned, -1.0, 1.0)[:, None] * (plane[ends[:, 1]] - plane[ends[:, 0]])
    length = np.linalg.norm(direction, axis=1)
    normal = np.zeros((len(ends), 3))
    normal[:, across[0]], normal[:, across[1]] = direction[:, 1], -direction[:, 0]
    normal /= np.where(length > 0, length, 1.0)[:, None]
    return CurveElements(length, normal, num_ends, is_turned, "-".join(sorted("xyz"[a] for a in across)))


def _joined(plane: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns lines whose points are the first of those at the same place."""
    step = _SAME_POINT * float(np.ptp(plane, axis=0).max()) or 1.0
    _, first, place = np.unique(np.round(plane / step), axis=0, return_index=True, return_inverse=True)
    return np.asarray(first[place.reshape(-1)][ends])


def _walk(
    ends: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Returns the lines in the order of a walk, the direction and the curve of each, and the number of open ends."""
    at = dict[int, list[int]]()
    for line, (first, second) in enumerate(ends.tolist()):
        for point in {first, second}:
            at.setdefault(point, []).append(line)
    if branching := [point for point, lines in at.items() if len(lines) > 2]:
        raise ValueError(f"{len(branching):,} points join more than two lines, which have no outward side")
    open_ends = [point for point, lines in at.items() if len(lines) == 1]
    order, sign, curve, number = list[int](), np.zeros(len(ends), np.int64), np.full(len(ends), -1), 0
    for point in (*open_ends, *at):
        here = point
        before = len(order)
        while (ahead := next((one for one in at[here] if curve[one] < 0), None)) is not None:
            first, second = ends[ahead].tolist()
            sign[ahead], curve[ahead] = (1, number) if first == here else (-1, number)
            order.append(ahead)
            here = second if first == here else first
        number += len(order) > before
    return np.array(order, np.int64), sign, curve, len(open_ends)
