"""Connected parts of a surface, and the edges that close none."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_SAME_DIRECTION = 1e-6


class Edges(NamedTuple):
    """Half-edges in the order of their edges: polygon, start, end, edge; all [E]."""

    cell: Ints
    start: Ints
    end: Ints
    edge: Ints


def half_edges_of(points: Floats, connectivity: Ints, offsets: Ints) -> Edges:
    """Returns the half-edges of polygons; points at the same place are one."""
    edges = _half_edges(connectivity, offsets)
    if (np.bincount(edges.edge) != 2).any():
        # Some writers repeat the corners of every polygon, so no edges match by index.
        _, first, same = np.unique(points, axis=0, return_index=True, return_inverse=True)
        edges = _half_edges(first[same.reshape(-1)].astype(np.int64)[connectivity], offsets)
    return edges


def _half_edges(corner: Ints, offsets: Ints) -> Edges:
    end = np.roll(corner, -1)
    end[offsets[1:] - 1] = corner[offsets[:-1]]
    cell = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    real = corner != end
    cell, start, end = cell[real], corner[real], end[real]
    low, high = np.minimum(start, end), np.maximum(start, end)
    key = low * (high.max(initial=0) + 1) + high
    order = np.argsort(key, kind="stable")
    edge = np.cumsum(np.diff(key[order], prepend=key[order[:1]]) != 0, dtype=np.int64)
    return Edges(cell[order], start[order], end[order], edge)


class Copies(NamedTuple):
    """Polygons that lie on one another: the group [N] of each, -1 for those that are alone, and its place [N] there."""

    group: Ints
    rank: Ints


def copies_of(edges: Edges, num_cells: int) -> Copies:
    """Finds polygons that have the same edges, beside which there are more."""
    copies = Copies(np.full(num_cells, -1), np.full(num_cells, -1))
    is_shared = (np.bincount(edges.edge) > 2)[edges.edge]
    if not is_shared.any():
        return copies
    is_suspect = np.bincount(edges.cell[is_shared], minlength=num_cells) > 0
    rows = np.flatnonzero(is_suspect[edges.cell])
    rows = rows[np.argsort(edges.cell[rows], kind="stable")]
    cells, first, size = np.unique(edges.cell[rows], return_index=True, return_counts=True)
    for number in np.unique(size):
        here = np.flatnonzero(size == number)
        table = edges.edge[rows][first[here, None] + np.arange(number)]
        order = np.lexsort(table.T)
        is_new = (np.diff(table[order], axis=0, prepend=-1) != 0).any(axis=1)
        start = np.flatnonzero(is_new)
        group = np.cumsum(is_new) - 1
        is_copied = np.diff(start, append=len(order))[group] > 1
        of_group = cells[here[order]]
        copies.group[of_group] = np.where(is_copied, of_group[start[group]], -1)
        copies.rank[of_group] = np.where(is_copied, np.arange(len(order)) - start[group], -1)
    return copies


def connected_parts(
    points: Floats, middle: Floats, edges: Edges, copies: Copies, area: Floats
) -> tuple[Ints, Bools, Bools]:
    """Returns the part of each polygon, which to turn to run as their neighbours do, and which have no such side.

    Args:
        points: Positions [V, 3].
        middle: The mean of the corners of each polygon [N, 3].
        edges: Their half-edges.
        copies: Those on top of one another.
        area: Their areas [N].
    """
    num_cells, count = len(area), np.bincount(edges.edge)
    first = np.flatnonzero(np.diff(edges.edge, prepend=-1))
    pairs = first[count == 2, None] + np.arange(2)
    group = copies.group[edges.cell[pairs]]
    pairs = pairs[(group[:, 0] < 0) | (group[:, 0] != group[:, 1])]
    if len(of_four := first[count == 4, None] + np.arange(4)):
        pairs = np.concatenate([pairs, _pairs_of_copies(edges, copies, of_four)])
        label = components(edges.cell[pairs[:, 0]], edges.cell[pairs[:, 1]], num_cells)
        pairs = np.concatenate([pairs, _pairs_where_parts_touch(points, middle, edges, label, of_four)])
    one, other = edges.cell[pairs].T
    is_against = edges.start[pairs[:, 0]] == edges.start[pairs[:, 1]]
    if not is_against.any():
        return components(one, other, num_cells), np.zeros(num_cells, bool), np.zeros(num_cells, bool)
    # Every polygon stands in the graph twice, as it is and turned.
    shift = num_cells * is_against
    label = components(
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
    is_one_sided = here == turned  # as on a Möbius strip
    return part, np.where(is_one_sided, False, is_turned ^ (share[part] > 0)), is_one_sided


def _pairs_of_copies(edges: Edges, copies: Copies, rows: Ints) -> Ints:
    """Pairs the four half-edges [M, 4] of edges between polygons that all lie on others: first copies, second ones."""
    rank = copies.rank[edges.cell[rows]]
    order = np.argsort(rank, axis=1, kind="stable")
    is_inner = (np.take_along_axis(rank, order, axis=1) == [0, 0, 1, 1]).all(axis=1)
    return np.take_along_axis(rows, order, axis=1)[is_inner].reshape(-1, 2)


def _pairs_where_parts_touch(points: Floats, middle: Floats, edges: Edges, label: Ints, rows: Ints) -> Ints:
    """Pairs the four half-edges [M, 4] of edges around a face that two bodies share, one polygon of each.

    Both polygons of the face leave the edge in one direction. Either goes with either body, but the same along the rim.
    """
    cell, start = edges.cell[rows], points[edges.start[rows[:, 0]]]
    axis = points[edges.end[rows[:, 0]]] - start
    axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-300)
    away = middle[cell] - start[:, None]
    away -= (away * axis[:, None]).sum(axis=2, keepdims=True) * axis[:, None]
    away /= np.maximum(np.linalg.norm(away, axis=2, keepdims=True), 1e-300)
    is_same = np.einsum("mid,mjd->mij", away, away) > 1 - _SAME_DIRECTION
    is_shared = is_same.sum(axis=2) == 2
    order = np.lexsort((label[cell], is_shared))
    rows, around = np.take_along_axis(rows, order, axis=1), np.take_along_axis(label[cell], order, axis=1)
    is_rim = (is_same.sum(axis=(1, 2)) == 6) & (around[:, 0] != around[:, 1]) & (around[:, 2] != around[:, 3])
    return rows[is_rim][:, [0, 2, 1, 3]].reshape(-1, 2)


def components(one: Ints, other: Ints, num: int) -> Ints:
    """Returns the connected component [num] of each node of a graph, from both nodes of its edges."""
    sparse = importlib.import_module("scipy.sparse")
    graph = sparse.coo_array((np.ones(len(one), np.int8), (one, other)), shape=(num, num))
    labels = importlib.import_module("scipy.sparse.csgraph").connected_components(graph, directed=False)[1]
    return np.asarray(labels, np.int64)


def border_of(edges: Edges, part: Ints, is_turned: Bools) -> Edges:
    """Returns one half-edge of every edge that does not join two polygons of one part that run alike."""
    turned = is_turned[edges.cell]
    start, end = np.where(turned, edges.end, edges.start), np.where(turned, edges.start, edges.end)
    ahead = np.where(start < end, 1.0, -1.0)
    of_edge, first = part[edges.cell], np.flatnonzero(np.diff(edges.edge, prepend=-1))
    is_open = (np.bincount(edges.edge) != 2) | (np.bincount(edges.edge, ahead) != 0)
    is_open |= np.bincount(edges.edge, of_edge != of_edge[first][edges.edge]) > 0
    rows = np.flatnonzero(is_open[edges.edge])
    key = edges.edge[rows] * (part.max(initial=0) + 1) + of_edge[rows]
    _, first, group, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    rows = rows[first[(count != 2) | (np.bincount(group.reshape(-1), ahead[rows], len(count)) != 0)]]
    return Edges(edges.cell[rows], start[rows], end[rows], edges.edge[rows])
