"""The outside of a surface: decided for each connected part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.cavities import COPY, is_inside_oddly
from emmi_jax.meshes.polygon_parts import Edges, border_of, components, connected_parts, copies_of, half_edges_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_WIDE = 0.25
"""An opening is wide if it takes up this share of what is seen of the part along its axis."""
_BODY_AREA = 1.5
"""A part with one wide opening is a body if its area is at least this many times that of the opening, else a sheet."""
_FLAT = 1e-9


class Orientation(NamedTuple):
    """Polygons to turn so that all normals point out of the body.

    Args:
        is_turned: The polygons [N] to turn.
        num_open_edges: Edges that do not join exactly two cells of one part.
        side: What was assumed, for people.
    """

    is_turned: Bools
    num_open_edges: int
    side: str


def orient(points: Floats, connectivity: Ints, offsets: Ints, vector_area: Floats) -> Orientation:
    """Finds the outward side of a surface.

    Polygons that run against their neighbours are turned first. A closed part points out of the volume that it
    encloses, or into it where it lies inside an odd number of other closed parts and so is the wall of a cavity. Gaps
    are closed by flat lids, unless several of them are wide as in a duct, or the part is a sheet: such a part goes with
    most of the others, or else keeps its side. So does one with a single side, such as a Möbius strip.

    Args:
        points: Positions [V, 3], near the origin.
        connectivity: Corners of all polygons among the points.
        offsets: Where each polygon starts among them, and the end, [N + 1].
        vector_area: Normal times area of each polygon [N, 3].
    """
    edges = half_edges_of(points, connectivity, offsets)
    copies = copies_of(edges, len(offsets) - 1)
    middle = _mean(points[connectivity], np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), len(offsets) - 1)
    part, is_turned, is_one_sided = connected_parts(points, middle, edges, copies, np.linalg.norm(vector_area, axis=1))
    num_against = int(np.count_nonzero(is_turned))
    vector_area = np.where(is_turned[:, None], -vector_area, vector_area)
    border = border_of(edges, part, is_turned)
    surface = _Parts(points, points[connectivity[offsets[:-1]]], vector_area, part, border)
    sign, has_area = surface.signs(), surface.area > 0
    sign[part[is_one_sided]] = 0
    num_closed, is_decided = int((surface.is_closed & has_area).sum()), sign != 0
    # Polygons that lie on each other close nothing.
    is_turned &= (is_decided | ~surface.is_closed)[part]
    is_inside = np.zeros(len(sign), bool)
    if num_closed > 1:
        is_inside = surface.is_closed & is_inside_oddly(points, connectivity, offsets, part, surface.is_closed)
        sign[is_inside] *= -1
    sign[~is_decided] = surface.sign_of_others(sign)
    num_one_sided = len(np.unique(part[is_one_sided]))
    count = {
        "closed {}": num_closed,
        "{} with gaps": int((is_decided & ~surface.is_closed).sum()),
        "open {}": int((~is_decided & has_area).sum()) - num_one_sided,
        "one-sided {}, which cannot have an outside": num_one_sided,
    }
    num_doubled = max(int((copies.rank > 0).sum()), surface.num_copied())
    side = _describe(count, int((sign < 0).sum()), int(is_inside.sum()), num_against, len(border.cell), num_doubled)
    return Orientation(is_turned ^ (sign[part] < 0), len(border.cell), side)


def _describe(
    count: dict[str, int], num_turned: int, num_inside: int, num_against: int, num_open: int, num_doubled: int
) -> str:
    parts = [
        f"{number:,} {what.format('part' if number == 1 else 'parts')}" for what, number in count.items() if number
    ]
    words = f"outward by the volume that each part encloses: {', '.join(parts)}"
    if not count["closed {}"] and not count["{} with gaps"]:
        words = f"the side of the polygons in the file: {', '.join(parts)}"
    elif count["open {}"]:
        words += ", open ones like most others"
    more = [f"{num_turned:,} turned round"] * (num_turned > 0)
    more += [f"{num_inside:,} inside another, so the wall of a cavity"] * (num_inside > 0)
    more += [f"{num_against:,} polygons turned to run as their neighbours"] * (num_against > 0)
    more += [f"{num_open:,} open edges"] * (num_open > 0)
    more += [f"{num_doubled:,} polygons on top of others, so counted twice"] * (num_doubled > 0)
    return f"{words}; {', '.join(more)}" if more else words


class _Parts:
    """The parts of a surface whose polygons run alike.

    Args:
        points: Positions [V, 3].
        corner: A corner [N, 3] of each polygon.
        vector_area: Normal times area [N, 3] of each polygon.
        part: Part [N] of each polygon.
        border: Half-edges of its open edges.
    """

    def __init__(self, points: Floats, corner: Floats, vector_area: Floats, part: Ints, border: Edges) -> None:
        self._vector_area, self._part = vector_area, part
        self.num = int(part.max(initial=-1)) + 1
        self.area = np.bincount(part, np.linalg.norm(vector_area, axis=1), self.num)
        self.middle = middle = _mean(corner, part, self.num)
        self.volume = np.bincount(part, ((corner - middle[part]) * vector_area).sum(axis=1) / 3, self.num)
        of_edge = part[border.cell]
        self.is_closed = np.bincount(of_edge, minlength=self.num) == 0
        loop = self._loops(border, of_edge)
        num_loops = int(loop.max(initial=-1)) + 1
        a, b = points[border.start], points[border.end]
        tip = _mean(a, loop, num_loops)[loop]
        lid = np.cross(a - b, tip - b) / 2
        self.volume += np.bincount(of_edge, ((b - middle[of_edge]) * lid).sum(axis=1) / 3, self.num)
        self._lids = np.stack([np.bincount(loop, lid[:, i], num_loops) for i in range(3)], axis=1)
        self._part_of_lid = np.zeros(num_loops, np.int64)
        self._part_of_lid[loop] = of_edge
        self._whole = float(((corner - corner.mean(axis=0)) * vector_area).sum()) / 3

    @staticmethod
    def _loops(border: Edges, part: Ints) -> Ints:
        if not len(part):
            return np.zeros(0, np.int64)
        ends = np.stack([border.start, border.end], axis=1) * (part.max() + 1) + part[:, None]
        _, node = np.unique(ends, return_inverse=True)
        node = node.reshape(-1, 2)
        return components(node[:, 0], node[:, 1], int(node.max()) + 1)[node[:, 0]]

    def signs(self) -> Floats:
        """Returns 1 for parts that point out of their volume, -1 for those that do not, 0 where that says nothing."""
        size = np.linalg.norm(self._lids, axis=1)
        num_wide, widest = np.zeros(self.num, np.int64), np.zeros(self.num)
        for lid in np.flatnonzero(size > 0.01 * self.area[self._part_of_lid]):
            part = self._part_of_lid[lid]
            along = np.abs(self._vector_area[self._part == part] @ (self._lids[lid] / size[lid])).sum()
            num_wide[part] += size[lid] > _WIDE * (along + size[lid]) / 2
            widest[part] = max(widest[part], size[lid])
        is_body = (num_wide == 0) | ((num_wide == 1) & (self.area > _BODY_AREA * widest))
        is_body &= np.abs(self.volume) > _FLAT * self.area**1.5
        return np.where(is_body, np.sign(self.volume), 0.0)

    def num_copied(self) -> int:
        """Returns how many polygons belong to parts that lie where another one does, of the same area."""
        size = np.sqrt(max(self.area.max(initial=0), 1e-300))
        key = np.round(np.column_stack([self.middle / size, self.area / size**2]) / COPY)
        _, first = np.unique(key, axis=0, return_index=True)
        number = np.bincount(self._part, minlength=self.num)
        return int(number.sum() - number[first].sum())

    def sign_of_others(self, sign: Floats) -> float:
        """Returns the sign of parts whose volume says nothing: that of most others, or else of all of them together."""
        if sign.any():
            return -1.0 if (sign * self.area).sum() < 0 else 1.0
        is_around = np.linalg.norm(self._vector_area.sum(axis=0)) < 0.05 * self.area.sum()
        return -1.0 if self.num > 1 and is_around and self._whole < -_FLAT * self.area.sum() ** 1.5 else 1.0


def _mean(values: Floats, group: Ints, num: int) -> Floats:
    total = np.stack([np.bincount(group, values[:, i], num) for i in range(3)], axis=1)
    return total / np.maximum(np.bincount(group, minlength=num), 1)[:, None]
