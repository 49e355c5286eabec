"""The outside of a surface: decided for each connected part."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_WIDE = 0.25
"""An opening is wide if it takes up this share of what is seen of the part along its axis."""
_BODY_AREA = 1.5
"""A part with one wide opening is a body if its area is at least this many times that of the opening, else a sheet."""
_FLAT = 1e-9
_COPY = 1e-5
"""Parts that differ less, as a share of their size, are copies of one another."""
_PROBES = 3


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


class _Edges(NamedTuple):
    """Half-edges in the order of their edges: polygon, start, end, edge; all [E]."""

    cell: Ints
    start: Ints
    end: Ints
    edge: Ints


def orient(points: Floats, connectivity: Ints, offsets: Ints, vector_area: Floats) -> Orientation:
    """Finds the outward side of a surface.

    Polygons that run against their neighbours are turned first. A closed part points out of the volume that it
    encloses, or into it where it lies inside an odd number of other closed parts and so is the wall of a cavity. Gaps
    are closed by flat lids, unless several of them are wide as in a duct, or the part is a sheet: such a part goes with
    most of the others, or else keeps its side.

    Args:
        points: Positions [V, 3], near the origin.
        connectivity: Corners of all polygons among the points.
        offsets: Where each polygon starts among them, and the end, [N + 1].
        vector_area: Normal times area of each polygon [N, 3].
    """
    edges = _edges(points, connectivity, offsets)
    part, is_turned = _parts(edges, len(offsets) - 1, np.linalg.norm(vector_area, axis=1))
    num_against = int(np.count_nonzero(is_turned))
    vector_area = np.where(is_turned[:, None], -vector_area, vector_area)
    border = _border(edges, part, is_turned)
    surface = _Parts(points, points[connectivity[offsets[:-1]]], vector_area, part, border)
    sign = surface.signs()
    num_closed, is_decided = int(surface.is_closed.sum()), sign != 0
    # Polygons that lie on each other close nothing.
    is_turned &= (is_decided | ~surface.is_closed)[part]
    is_inside = np.zeros(len(sign), bool)
    if num_closed > 1:
        is_inside = surface.is_closed & _is_inside_oddly(points, connectivity, offsets, part, surface.is_closed)
        sign[is_inside] *= -1
    sign[~is_decided] = surface.sign_of_others(sign)
    count = {
        "closed {}": num_closed,
        "{} with gaps": int((is_decided & ~surface.is_closed).sum()),
        "open {}": int((~is_decided).sum()),
    }
    num_doubled = max(_num_doubled(edges, len(part)), surface.num_copied())
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


def _edges(points: Floats, connectivity: Ints, offsets: Ints) -> _Edges:
    edges = _half_edges(connectivity, offsets)
    if (np.bincount(edges.edge) != 2).any():
        # Some writers repeat the corners of every polygon, so no edges match by index.
        _, first, same = np.unique(points, axis=0, return_index=True, return_inverse=True)
        edges = _half_edges(first[same.reshape(-1)].astype(np.int64)[connectivity], offsets)
    return edges


def _half_edges(corner: Ints, offsets: Ints) -> _Edges:
    end = np.roll(corner, -1)
    end[offsets[1:] - 1] = corner[offsets[:-1]]
    cell = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    real = corner != end
    cell, start, end = cell[real], corner[real], end[real]
    low, high = np.minimum(start, end), np.maximum(start, end)
    key = low * (high.max(initial=0) + 1) + high
    order = np.argsort(key, kind="stable")
    edge = np.cumsum(np.diff(key[order], prepend=key[order[:1]]) != 0, dtype=np.int64)
    return _Edges(cell[order], start[order], end[order], edge)


def _num_doubled(edges: _Edges, num_cells: int) -> int:
    """Returns how many polygons have the same edges as another, beside which there are more."""
    is_shared = (np.bincount(edges.edge) > 2)[edges.edge]
    if not is_shared.any():
        return 0
    is_suspect = np.bincount(edges.cell[is_shared], minlength=num_cells) > 0
    rows = np.flatnonzero(is_suspect[edges.cell])
    rows = rows[np.argsort(edges.cell[rows], kind="stable")]
    _, first, size = np.unique(edges.cell[rows], return_index=True, return_counts=True)
    of_size = [edges.edge[rows][first[size == n, None] + np.arange(n)] for n in np.unique(size)]
    return sum(len(table) - len(np.unique(table, axis=0)) for table in of_size)


def _parts(edges: _Edges, num_cells: int, area: Floats) -> tuple[Ints, Bools]:
    """Returns the part of each polygon, and which to turn to run as their neighbours do."""
    count = np.bincount(edges.edge)
    first = np.flatnonzero(np.diff(edges.edge, prepend=-1))[count == 2]
    one, other = edges.cell[first], edges.cell[first + 1]
    is_against = edges.start[first] == edges.start[first + 1]
    if not is_against.any():
        return _components(one, other, num_cells), np.zeros(num_cells, bool)
    # Every polygon stands in the graph twice, as it is and turned.
    shift = num_cells * is_against
    label = _components(
        np.concatenate([one, one + num_cells]),
        np.concatenate([other + shift, other + num_cells - shift]),
        2 * num_cells,
    )
    here, turned = label[:num_cells], label[num_cells:]
    _, part = np.unique(np.minimum(here, turned), return_inverse=True)
    part = part.reshape(-1)
    is_turned = here > turned
    # The larger side of a part says how it runs.
    share = np.bincount(part, np.where(is_turned, area, -area))
    return part, np.where(here == turned, False, is_turned ^ (share[part] > 0))


def _components(one: Ints, other: Ints, num: int) -> Ints:
    sparse = importlib.import_module("scipy.sparse")
    graph = sparse.coo_array((np.ones(len(one), np.int8), (one, other)), shape=(num, num))
    found = importlib.import_module("scipy.sparse.csgraph").connected_components(graph, directed=False)[1]
    return np.asarray(found, np.int64)


def _border(edges: _Edges, part: Ints, is_turned: Bools) -> _Edges:
    """Returns one half-edge of every edge that does not join two polygons of one part that run alike."""
    turned = is_turned[edges.cell]
    start, end = np.where(turned, edges.end, edges.start), np.where(turned, edges.start, edges.end)
    ahead = np.where(start < end, 1.0, -1.0)
    rows = np.flatnonzero(
        (np.bincount(edges.edge) != 2)[edges.edge] | (np.bincount(edges.edge, ahead) != 0)[edges.edge]
    )
    key = edges.edge[rows] * (part.max(initial=0) + 1) + part[edges.cell[rows]]
    _, first, group, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    rows = rows[first[(count != 2) | (np.bincount(group.reshape(-1), ahead[rows], len(count)) != 0)]]
    return _Edges(edges.cell[rows], start[rows], end[rows], edges.edge[rows])


class _Parts:
    """The parts of a surface whose polygons run alike.

    Args:
        points: Positions [V, 3].
        corner: A corner [N, 3] of each polygon.
        vector_area: Normal times area [N, 3] of each polygon.
        part: Part [N] of each polygon.
        border: Half-edges of its open edges.
    """

    def __init__(self, points: Floats, corner: Floats, vector_area: Floats, part: Ints, border: _Edges) -> None:
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
    def _loops(border: _Edges, part: Ints) -> Ints:
        if not len(part):
            return np.zeros(0, np.int64)
        ends = np.stack([border.start, border.end], axis=1) * (part.max() + 1) + part[:, None]
        _, node = np.unique(ends, return_inverse=True)
        node = node.reshape(-1, 2)
        return _components(node[:, 0], node[:, 1], int(node.max()) + 1)[node[:, 0]]

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
        key = np.round(np.column_stack([self.middle / size, self.area / size**2]) / _COPY)
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


def _is_inside_oddly(points: Floats, connectivity: Ints, offsets: Ints, part: Ints, is_closed: Bools) -> Bools:
    """Returns which parts lie inside an odd number of closed ones, by rays along x from points on them."""
    cell = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    low, high = (np.full((len(is_closed), 3), bound) for bound in (np.inf, -np.inf))
    np.minimum.at(low, part[cell], points[connectivity])
    np.maximum.at(high, part[cell], points[connectivity])
    by_part = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[by_part], np.arange(len(is_closed) + 1))
    depth = np.zeros(len(is_closed), np.int64)
    for outer in np.flatnonzero(is_closed):
        # There is a wall around a cavity on all sides, but none around a copy of the part or a body on its floor.
        wall = _COPY * (high[outer] - low[outer]).max()
        within = (low > low[outer] + wall).all(axis=1) & (high < high[outer] - wall).all(axis=1)
        if not within.any():
            continue
        triangles = points[fans(connectivity, offsets, by_part[bounds[outer] : bounds[outer + 1]])[0]]
        around = triangles[:, :, 1:].min(axis=1), triangles[:, :, 1:].max(axis=1)
        for inner in np.flatnonzero(within):
            cells = by_part[bounds[inner] : bounds[inner + 1]][:_PROBES]
            # Weights without a pattern keep rays off edges.
            probes = np.einsum(
                "k,nkd->nd", [0.371, 0.417, 0.212], points[fans(connectivity, offsets, cells)[0][:_PROBES]]
            )
            depth[inner] += 2 * sum(_is_odd(probe, triangles, *around) for probe in probes) > len(probes)
    return depth % 2 == 1


def fans(connectivity: Ints, offsets: Ints, cells: Ints) -> tuple[Ints, Ints]:
    """Cuts polygons into triangles [T, 3] around their first corners, and returns which of `cells` each came from."""
    number = np.maximum(np.diff(offsets)[cells] - 2, 0)
    first = np.repeat(offsets[cells], number)
    step = np.arange(len(first)) - np.repeat(np.cumsum(number) - number, number)
    triangles = np.stack([connectivity[first], connectivity[first + step + 1], connectivity[first + step + 2]], axis=1)
    return triangles, np.repeat(np.arange(len(cells)), number)


def _is_odd(probe: Floats, triangles: Floats, low: Floats, high: Floats) -> bool:
    near = triangles[((low <= probe[1:]) & (high >= probe[1:])).all(axis=1)] - probe
    y, z = near[:, :, 1], near[:, :, 2]
    weight = y[:, [1, 2, 0]] * z[:, [2, 0, 1]] - z[:, [1, 2, 0]] * y[:, [2, 0, 1]]
    is_hit = (weight > 0).all(axis=1) | (weight < 0).all(axis=1)
    x: Any = (weight * near[:, :, 0])[is_hit].sum(axis=1) / weight[is_hit].sum(axis=1)
    return bool(np.count_nonzero(x > 0) % 2)
