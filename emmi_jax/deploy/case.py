"""Inputs of `encode`, of a live surrogate and of an exported one, and what stands in for missing ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .draws import GEOMETRY_BRANCH, Array, Geometry, Points, Sampling, as_points, draw_anchors, draw_geometry
from .features import GEOMETRY, FeatureNames, chosen_features, join_features
from .manifest import Manifest
from .streaming import model_positions


class Case(NamedTuple):
    """Anchors [T, n] of every branch, and the geometry of models that have one, in physical units.

    Anchors of branches that have features have some, [T, C].
    """

    anchors: dict[str, Any]
    geometry: Any
    features: Mapping[str, Any] = {}


def choose_case(
    branches: Sequence[str],
    sampling: Sampling,
    *,
    has_geometry: bool,
    stored: Case,
    anchors: Mapping[str, Array] | None,
    geometry: Any,
    anchor_features: Mapping[str, Any] | None,
    points: Mapping[str, Any] | None,
    seed: int,
    channels: FeatureNames,
) -> Case:
    """Chooses anchors and geometry: what is given, else what is stored, else draws.

    Args:
        branches: All branches of the model.
        sampling: How many points are drawn, and how.
        has_geometry: Whether the model has a geometry branch.
        stored: The run's context; its geometry is None if there is none.
        anchors: Positions [T, n] of any of the branches.
        geometry: Points [P, n] to draw from; or a geometry, with positions and supernodes, used as it is.
        anchor_features: Features [T, C] of given anchors.
        points: Points [N, n] of any of the branches to draw from.
        seed: Seed of the draws.
        channels: The features that the model takes.

    Raises:
        ValueError: There is nothing to draw from, or too little; or a branch is unknown, or features do not fit.
    """
    rng = np.random.default_rng(seed)
    available = {branch: as_points(branch, given) for branch, given in (points or {}).items()}
    given = {**stored.anchors, **(anchors or {})}
    if unknown := sorted({*given, *available} - set(branches)):
        raise ValueError(
            f"anchors or points name the unknown branches {unknown!r}; the branches are {tuple(branches)!r}"
        )
    # Those of stored anchors are not those of given ones.
    stored_features = {b: array for b, array in stored.features.items() if b not in (anchors or {})}
    drawn = {b: draw_anchors(rng, b, available, sampling) for b in branches if b not in given}
    chosen = {b: drawn[b].position if b in drawn else given[b] for b in branches}
    features = {**stored_features, **(anchor_features or {})}
    features |= {b: points.features for b, points in drawn.items() if points.features is not None}
    features = chosen_features(channels, features, {b: len(position) for b, position in chosen.items()}, "anchor")
    if not has_geometry:
        if geometry is not None:
            raise ValueError("a geometry is given, but the model has no geometry branch")
        return Case(chosen, None, features)
    if geometry is None:
        geometry = _known_geometry(stored, available, chosen)
    if not hasattr(geometry, "supernode_idx"):
        geometry = draw_geometry(rng, as_points("geometry", geometry), sampling)
    if GEOMETRY in channels:
        num_points = len(geometry.position)
        joined = join_features("the geometry", geometry.features, channels[GEOMETRY], num_points)
        geometry = geometry._replace(features=joined)
    elif getattr(geometry, "features", None) is not None:
        raise ValueError("geometry.features are given, but the model takes none: leave them out")
    return Case(chosen, geometry, features)


def _known_geometry(stored: Case, available: Mapping[str, Points], chosen: Mapping[str, Array]) -> Any:
    """Returns the stored geometry, or else the points of the surface, or else its anchors."""
    if stored.geometry is not None:
        return stored.geometry
    if GEOMETRY_BRANCH in available:
        # What a model takes of the geometry need not be what it takes of its surface's anchors.
        return available[GEOMETRY_BRANCH]._replace(features=None)
    if GEOMETRY_BRANCH in chosen:
        return Points(chosen[GEOMETRY_BRANCH])
    raise ValueError(f"no geometry: give its points, or points of the branch {GEOMETRY_BRANCH!r}")


def check_not_empty(
    anchors: Mapping[str, Any], geometry: Geometry | None, is_real: Callable[[str], Any] = lambda branch: None
) -> None:
    """Refuses a case that the model would know nothing of.

    Args:
        anchors: Positions [T, n] by branch.
        geometry: The geometry, if the model has one.
        is_real: From a branch to booleans [T], True = real anchor, or None.

    Raises:
        ValueError: A branch has no anchors, or the geometry has no points or supernodes.
    """
    empty = [b for b, position in anchors.items() if not len(position) or not np.any(_mask(is_real(b)))]
    if empty:
        raise ValueError(f"the branches {empty!r} have no anchors: expected at least one")
    if geometry is None:
        return
    mask = getattr(geometry, "mask", None)
    counts = {
        "points": len(geometry.position),
        "supernodes": np.count_nonzero(_mask(mask, len(geometry.supernode_idx))),
    }
    for name, number in counts.items():
        if not number:
            raise ValueError(f"the geometry has no {name}: expected at least one")


def padded_geometry(manifest: Manifest, geometry: Geometry) -> tuple[Array, ...]:
    """Returns points, supernodes, which of these are real, and features, of the sizes that the program takes."""
    if getattr(geometry, "neighbors", None) is not None:
        raise ValueError("geometry.neighbors are given, but an exported model searches for them itself: leave them out")
    position, idx = (
        model_positions(
            "the geometry", geometry.position, len(manifest.scales.position_low), manifest.scales.normalize_position
        ),
        np.asarray(geometry.supernode_idx),
    )
    mask = np.ones(idx.shape, bool) if geometry.mask is None else np.asarray(geometry.mask)
    largest = manifest.geometry_sizes or (0, 0)
    if idx.ndim != 1 or idx.dtype.kind not in "iu" or len(position) > largest[0] or len(idx) > largest[1]:
        raise ValueError(
            f"the geometry must have at most {largest[0]} points and {largest[1]} supernodes [M], "
            f"got {len(position)} and {idx.dtype} of shape {list(idx.shape)}"
        )
    if mask.dtype != bool or mask.shape != idx.shape:
        raise ValueError(f"geometry.mask must be bool of shape {list(idx.shape)}, got {mask.dtype} {list(mask.shape)}")
    if not (idx[mask].min() >= 0 and idx[mask].max() < len(position)):
        raise ValueError(f"supernodes must lie in [0, {len(position)}), got {idx[mask].min()} … {idx[mask].max()}")
    # The model knows a point that is NaN as an absent one.
    points = np.full((1, largest[0], position.shape[1]), np.nan, np.float32)
    points[0, : len(position)] = position
    supernodes, is_real = np.zeros((1, largest[1]), np.int32), np.zeros((1, largest[1]), bool)
    supernodes[0, : len(idx)], is_real[0, : len(idx)] = np.where(mask, idx, 0), mask
    if getattr(geometry, "features", None) is None:
        return points, supernodes, is_real
    features = manifest.scales.normalize_features(GEOMETRY, np.asarray(geometry.features))
    padded = np.pad(features, ((0, largest[0] - len(position)), (0, 0)))
    return points, supernodes, is_real, padded[None]


def _mask(mask: Any, size: int = 1) -> Any:
    return np.ones(size, bool) if mask is None else np.asarray(mask)
