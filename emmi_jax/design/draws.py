"""The points of a case that the model sees, drawn once and then moving with the surface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.data.draws import GEOMETRY_BRANCH, add_supernodes, draw_points
from emmi_jax.data.readers.reader import NUM_GEOMETRY_POINTS
from emmi_jax.data.sampling import draw_on_triangles, sample_points
from emmi_jax.deploy.draws import rows_of
from emmi_jax.deploy.features import GEOMETRY, FeaturesLike, chosen_features
from emmi_jax.design.features import cell_features
from emmi_jax.design.surface import MovingPoints, Surface
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.layers.supernode_pooling import Geometry, search_neighbors
from emmi_jax.ops.neighbors import Neighbors
from emmi_jax.points import Array, PointSet, as_points


@dataclass(frozen=True, eq=False)
class Draws:
    """Points of a case that the model sees; reused, they make two shapes comparable.

    Args:
        surface_anchors: Anchors of the branch ``surface``.
        anchors: Positions [T, 3] of the anchors of the other branches.
        geometry: Points of the geometry; None for a model without a geometry branch.
        supernode_idx: Indices [M] of the supernodes among them.
        neighbors: The points around each supernode, idx and mask [M, K].
        anchor_features: Features [T, C] of the anchors of those branches that have some.
        geometry_features: Features [P, C] of the points of the geometry.
    """

    surface_anchors: MovingPoints
    anchors: Mapping[str, Array]
    geometry: MovingPoints | None = None
    supernode_idx: NDArray[np.int32] | None = None
    neighbors: Neighbors | None = None
    anchor_features: Mapping[str, Array] = field(default_factory=dict)
    geometry_features: Array | None = None

    def model_geometry(self, position: Array | None, features: Array | None = None) -> Geometry | None:
        """Returns the geometry with its points [P, 3] and features [P, C] in model units, with a batch axis."""
        if position is None or self.supernode_idx is None or self.neighbors is None:
            return None
        neighbors = Neighbors(*(array[None] for array in self.neighbors))
        of_points = None if features is None else features[None]
        return Geometry(position[None], self.supernode_idx[None], neighbors, of_points)

    def positions(self, surface: Surface, geometry: Surface | None) -> dict[str, Any]:
        """Returns anchors and geometry of these shapes as `Surrogate.encode` takes them, in physical units."""
        anchors = {**self.anchors, GEOMETRY_BRANCH: self.surface_anchors.position(surface.vertices)}
        inputs: dict[str, Any] = {"anchors": anchors, "anchor_features": self.anchor_features}
        if self.geometry is None or self.supernode_idx is None:
            return inputs
        position = self.geometry.position((geometry or surface).vertices)
        shown = Geometry(position, self.supernode_idx, self.neighbors, self.geometry_features)
        return {**inputs, "geometry": shown}


def draw_case(
    surrogate: Surrogate,
    surface: Surface,
    *,
    geometry: Surface | None = None,
    points: Mapping[str, PointSet | Array] | None = None,
    anchors: Mapping[str, Array] | None = None,
    features: Mapping[str, FeaturesLike] | None = None,
    seed: int = 0,
) -> Draws:
    """Draws what `Surrogate.encode` would draw from the same meshes and seed, in a form that follows their vertices.

    Args:
        surrogate: The surrogate.
        surface: The surface, whose cell centres its anchors are drawn from.
        geometry: The surface that shows the geometry, if it is another mesh.
        points: Points [N, 3] of the other branches to draw anchors from; as a `PointSet` they may bring cell sizes and
            features.
        anchors: Anchors [T, 3] of the other branches; what is missing comes from the run's context, or is drawn.
        features: Features of the cells of the surface; see `CaseInputs`.
        seed: Seed of the draws.

    Raises:
        ValueError: The model lacks the branch ``surface``, a branch has nothing to draw from, or a name is unknown.
    """
    config, sampling = surrogate.model.config, surrogate.sampling
    _check(config, surface, geometry, {**(points or {}), **(anchors or {})})
    of_cells = cell_features(surrogate.features, surface, features or {}, has_own_geometry=geometry is not None)
    rng = np.random.default_rng(seed)
    stored = {} if surrogate.context is None else surrogate.context.anchors
    of_stored = {} if surrogate.context is None else surrogate.context.anchor_features
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
    cells = drawn.pop(GEOMETRY_BRANCH)
    of_anchors = {b: array for b, array in of_stored.items() if b not in (GEOMETRY_BRANCH, *(anchors or {}))}
    of_anchors |= {
        b: rows_of(available[b].features, idx) for b, idx in drawn.items() if available[b].features is not None
    }
    of_anchors |= {GEOMETRY_BRANCH: of_cells[GEOMETRY_BRANCH][cells]} if GEOMETRY_BRANCH in of_cells else {}
    given |= {branch: available[branch].position[idx] for branch, idx in drawn.items()}
    counts = {GEOMETRY_BRANCH: len(cells), **{branch: len(position) for branch, position in given.items()}}
    joined = chosen_features(surrogate.features, of_anchors, counts, "anchor")
    draws = Draws(surface.at_centers(cells), given, anchor_features=joined)
    if not config.has_geometry:
        return draws
    return _with_geometry(draws, rng, surrogate, surface, centers, geometry, of_cells.get(GEOMETRY))


def _with_geometry(
    draws: Draws,
    rng: np.random.Generator,
    surrogate: Surrogate,
    surface: Surface,
    centers: Array,
    geometry: Surface | None,
    features: Array | None,
) -> Draws:
    """Draws geometry points, from the cell centres unless there is another mesh, their supernodes and neighbours."""
    sampling = surrogate.sampling
    if geometry is None:
        number = min(sampling.num_geometry_points, len(centers))
        rows = sample_points(rng, centers, number)
        moving, features = surface.at_centers(rows), None if features is None else features[rows]
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
    on_device = search_neighbors(scaled, supernode_idx, surrogate.model.config.supernode_pooling)
    neighbors = jax.tree.map(np.asarray, on_device)
    return replace(draws, geometry=moving, supernode_idx=supernode_idx, neighbors=neighbors, geometry_features=features)


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
