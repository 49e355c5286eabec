"""The points of a case that the model sees, drawn once and then moving with the surface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.data.draws import GEOMETRY_BRANCH, add_supernodes, draw_points
from emmi_jax.data.readers.reader import NUM_GEOMETRY_POINTS
from emmi_jax.data.sampling import draw_on_triangles, sample_points
from emmi_jax.design.surface import MovingPoints, Surface
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.ops.neighbors import Neighbors, nearest_neighbors, radius_neighbors
from emmi_jax.points import Array, PointSet, as_points


@dataclass(frozen=True, eq=False)
class Draws:
    """Which points of a case the model sees; reused, they make two shapes comparable.

    Args:
        surface_anchors: Anchors of the branch ``surface``.
        anchors: Positions [T, 3] of the anchors of the other branches.
        geometry: Points of the geometry; None for a model without a geometry branch.
        supernode_idx: Indices [M] of the supernodes among them.
        neighbors: The points around each supernode, idx and mask [M, K].
    """

    surface_anchors: MovingPoints
    anchors: Mapping[str, Array]
    geometry: MovingPoints | None = None
    supernode_idx: NDArray[np.int32] | None = None
    neighbors: Neighbors | None = None

    def model_geometry(self, position: Array | None) -> Geometry | None:
        """Returns the geometry with its points at these positions [P, 3] in model units, with a batch axis."""
        if position is None or self.supernode_idx is None or self.neighbors is None:
            return None
        neighbors = Neighbors(*(array[None] for array in self.neighbors))
        return Geometry(position[None], self.supernode_idx[None], neighbors)

    def positions(self, surface: Surface, geometry: Surface | None) -> dict[str, Any]:
        """Returns anchors and geometry of these shapes as `Surrogate.encode` takes them, in physical units."""
        anchors = {**self.anchors, GEOMETRY_BRANCH: self.surface_anchors.position(surface.vertices)}
        if self.geometry is None or self.supernode_idx is None:
            return {"anchors": anchors}
        position = self.geometry.position((geometry or surface).vertices)
        return {"anchors": anchors, "geometry": Geometry(position, self.supernode_idx, self.neighbors)}


def draw_case(
    surrogate: Surrogate,
    surface: Surface,
    *,
    geometry: Surface | None = None,
    points: Mapping[str, PointSet | Array] | None = None,
    anchors: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Draws:
    """Draws what `Surrogate.encode` would draw from the same meshes and seed, in a form that follows their vertices.

    Args:
        surrogate: The surrogate.
        surface: The surface, whose cell centres its anchors are drawn from.
        geometry: The surface that shows the geometry, if it is another mesh.
        points: Points [N, 3] of the other branches to draw anchors from; as a `PointSet` they may bring cell sizes.
        anchors: Anchors [T, 3] of the other branches; what is missing comes from the run's context, or is drawn.
        seed: Seed of the draws.

    Raises:
        ValueError: The model lacks the branch ``surface``, a branch has nothing to draw from, or a name is unknown.
    """
    config, sampling = surrogate.model.config, surrogate.sampling
    _check(config, surface, geometry, {**(points or {}), **(anchors or {})})
    rng = np.random.default_rng(seed)
    stored = {} if surrogate.context is None else surrogate.context.anchors
    given = {**stored, **(anchors or {})}
    given.pop(GEOMETRY_BRANCH, None)  # those of the run's context would not move
    centers = surface.centers()
    sizes = surface.areas() if sampling.method == "weighted" else None
    others = {branch: as_points(branch, given) for branch, given in (points or {}).items()}
    available = {**others, GEOMETRY_BRANCH: PointSet(centers, {}, sizes)}
    drawn: dict[str, NDArray[np.int64]] = {}
    for branch in config.branches:
        if branch in given:
            continue
        if branch not in available or not len(available[branch].position):
            raise ValueError(f"no anchors for the branch {branch!r}: give them, or points to draw them from")
        number = min(sampling.num_test_anchors, len(available[branch].position))
        drawn[branch] = draw_points(rng, available[branch], number, sampling)
    surface_anchors = surface.at_centers(drawn.pop(GEOMETRY_BRANCH))
    given |= {branch: available[branch].position[idx] for branch, idx in drawn.items()}
    if not config.has_geometry:
        return Draws(surface_anchors, given)
    return _with_geometry(Draws(surface_anchors, given), rng, surrogate, surface, centers, geometry)


def _with_geometry(
    draws: Draws,
    rng: np.random.Generator,
    surrogate: Surrogate,
    surface: Surface,
    centers: Array,
    geometry: Surface | None,
) -> Draws:
    """Draws geometry points, from the cell centres unless there is another mesh, their supernodes and neighbours."""
    sampling = surrogate.sampling
    if geometry is None:
        number = min(sampling.num_geometry_points, len(centers))
        moving = surface.at_centers(sample_points(rng, centers, number))
        position = moving.position(surface.vertices)
    else:
        triangles = geometry.triangles()
        face, weights = draw_on_triangles(0, geometry.vertices[triangles], NUM_GEOMETRY_POINTS)
        number = min(sampling.num_geometry_points, len(face))
        rows = sample_points(rng, weights, number)
        moving = MovingPoints(triangles[face[rows]], weights[rows])
        position = moving.position(geometry.vertices)
    number = min(sampling.num_test_supernodes, len(position))
    supernode_idx = np.asarray(add_supernodes(rng, position, sampling, num_supernodes=number).supernode_idx)
    scaled = surrogate.normalizer.normalize_position(position)
    neighbors = _neighbors(surrogate.model.config, scaled, supernode_idx)
    return Draws(draws.surface_anchors, draws.anchors, moving, supernode_idx, neighbors)


def _neighbors(config: AbUptConfig, position: Array, supernode_idx: NDArray[np.int32]) -> Neighbors:
    pooling = config.supernode_pooling
    if pooling.k is not None:
        found = nearest_neighbors(position, supernode_idx, k=pooling.k)
    else:
        found = radius_neighbors(position, supernode_idx, radius=pooling.radius or 0.0, max_degree=pooling.max_degree)
    return jax.tree.map(np.asarray, found)


def _check(config: AbUptConfig, surface: Surface, geometry: Surface | None, others: Mapping[str, Any]) -> None:
    if GEOMETRY_BRANCH not in config.branches:
        raise ValueError(f"the model has the branches {list(config.branches)}, none of which is {GEOMETRY_BRANCH!r}")
    if config.num_position_axes != surface.vertices.shape[1]:
        raise ValueError(f"the model takes {config.num_position_axes} position axes, a surface has 3")
    if GEOMETRY_BRANCH in others:
        raise ValueError(f"points and anchors of {GEOMETRY_BRANCH!r} come from the surface mesh, but others are given")
    if unknown := sorted(set(others) - set(config.branches)):
        raise ValueError(f"points or anchors name the unknown branches {unknown!r}; expected {list(config.branches)!r}")
    if geometry is not None and not config.has_geometry:
        raise ValueError("a geometry is given, but the model has no geometry branch")
    config.refuse_features("points on a moving surface")
