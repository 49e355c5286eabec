"""From a file of positions to fields in physical units: what `emmi-jax predict` computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.cfd.cases import SampleSizes
from emmi_jax.cfd.normalization import Normalizer
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.streaming import encode, stream
from emmi_jax.models.ab_upt import AnchoredBranchedUPT

Positions: TypeAlias = Mapping[str, NDArray[np.floating[Any]]]
GEOMETRY = "geometry"
GEOMETRY_BRANCH = "surface"
_DRAW_SEED = 0


def query_name(branch: str, branches: Sequence[str]) -> str:
    """Name of the array with a branch's query positions: the branch, or `position` if it is the only one."""
    return branch if len(branches) > 1 else "position"


def point_names(branches: Sequence[str]) -> list[str]:
    """Names of all arrays that `predict_fields` takes."""
    queries = [query_name(branch, branches) for branch in branches]
    return [*queries, *(f"{branch}_anchors" for branch in branches), GEOMETRY]


def predict_fields(
    model: AnchoredBranchedUPT,
    params: Any,
    normalizer: Normalizer,
    positions: Positions,
    *,
    sizes: SampleSizes,
    chunk_size: ChunkSize = "auto",
) -> dict[str, NDArray[np.float32]]:
    """Predicts fields at points of one case.

    Args:
        model: The model.
        params: Its parameters.
        normalizer: Its scales.
        positions: Arrays [N, 3] in the unit of the training data. Queries are called as their branch (`position` in a
            model of one branch); the anchors of every branch are `<branch>_anchors`, or else drawn from its queries;
            `geometry` describes the body to a model with a geometry branch, or else is drawn from the surface.
        sizes: How many anchors, geometry points and supernodes to draw.
        chunk_size: Queries in one call of the model; see `stream`.

    Returns:
        Fields [N, F] in physical units by `<branch>_<field>`, or by field in a model of one branch.

    Raises:
        ValueError: Nothing to predict, or too few points to draw anchors or geometry from.
    """
    branches = list(model.config.fields)
    queries = {b: positions[query_name(b, branches)] for b in branches if query_name(b, branches) in positions}
    if not queries:
        names = [query_name(branch, branches) for branch in branches]
        raise ValueError(f"no points to predict: expected an array {_either(names)}")
    variables = {"params": params}
    cache = encode_case(model, variables, normalizer, positions, sizes=sizes)
    fields = stream(model, variables, cache, queries, chunk_size=chunk_size, normalizer=normalizer)
    if len(branches) > 1:
        return fields
    return {name.removeprefix(f"{branches[0]}_"): values for name, values in fields.items()}


def encode_case(
    model: AnchoredBranchedUPT,
    variables: Mapping[str, Any],
    normalizer: Normalizer,
    positions: Positions,
    *,
    sizes: SampleSizes,
) -> Any:
    """Encodes the anchors and the geometry of one case, given or drawn from its points as in `predict_fields`.

    Args:
        model: The model.
        variables: Its variables, ``{"params": ...}``.
        normalizer: Its scales.
        positions: Arrays as `predict_fields` takes them.
        sizes: How many anchors, geometry points and supernodes to draw.

    Returns:
        The cache that `stream` and `iter_stream` take.

    Raises:
        ValueError: Too few points to draw anchors or geometry from.
    """
    branches = list(model.config.fields)
    rng = np.random.default_rng(_DRAW_SEED)
    inputs: dict[str, Any] = {"anchors": {b: _anchors(b, branches, positions, sizes, rng) for b in branches}}
    if model.config.has_geometry:
        geometry = _geometry(positions, sizes.num_geometry_points, rng)
        supernode_idx = np.arange(min(sizes.num_test_supernodes, len(geometry)), dtype=np.int32)
        inputs |= {"geometry_position": geometry, "supernode_idx": supernode_idx}
    return encode(model, variables, **inputs, normalizer=normalizer)


def _anchors(
    branch: str, branches: Sequence[str], positions: Positions, sizes: SampleSizes, rng: np.random.Generator
) -> NDArray[np.floating[Any]]:
    given = positions.get(f"{branch}_anchors")
    if given is not None:
        return given
    name = query_name(branch, branches)
    points = positions.get(name)
    if points is None or len(points) < sizes.num_anchors:
        raise ValueError(
            f"no anchors for branch {branch!r}: expected an array '{branch}_anchors', or at least {sizes.num_anchors} "
            f"points in {name!r} to draw them from; found {0 if points is None else len(points)}"
        )
    return points[rng.permutation(len(points))[: sizes.num_test_anchors]]


def _geometry(positions: Positions, num_points: int, rng: np.random.Generator) -> NDArray[np.floating[Any]]:
    for name in (GEOMETRY, GEOMETRY_BRANCH, f"{GEOMETRY_BRANCH}_anchors"):
        points = positions.get(name)
        if points is not None:
            return points[rng.permutation(len(points))[:num_points]]
    raise ValueError(f"no geometry: expected an array {_either([GEOMETRY, GEOMETRY_BRANCH])} with points of the body")


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))
