"""From a file of positions to fields in physical units: what `emmi-jax predict` computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.data.draws import draw_supernodes
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import SampleSizes
from emmi_jax.data.sampling import sample_points
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.streaming import StreamedChunk, encode, iter_stream
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


def field_name(branch: str, field: str, branches: Sequence[str]) -> str:
    """Name of the array with a predicted field: `<branch>_<field>`, or the field if the branch is the only one."""
    return f"{branch}_{field}" if len(branches) > 1 else field


def field_shapes(config: AbUptConfig, positions: Positions) -> dict[str, tuple[int, int]]:
    """Returns the shapes [N, F] of what `iter_fields` predicts, by the names of the arrays.

    Raises:
        ValueError: There is nothing to predict.
    """
    branches = list(config.fields)
    names = {branch: query_name(branch, branches) for branch in branches}
    if not any(name in positions for name in names.values()):
        raise ValueError(f"no points to predict: expected an array {_either(list(names.values()))}")
    return {
        field_name(branch, field, branches): (len(positions[name]), channels)
        for branch, name in names.items()
        if name in positions
        for field, channels in config.fields[branch].items()
    }


def iter_fields(
    model: AnchoredBranchedUPT,
    params: Any,
    normalizer: Normalizer,
    positions: Positions,
    *,
    sizes: SampleSizes,
    chunk_size: ChunkSize = "auto",
) -> Iterator[StreamedChunk]:
    """Predicts fields at points of one case, chunk by chunk.

    Args:
        model: The model.
        params: Its parameters.
        normalizer: Its scales.
        positions: Arrays or memory-maps [N, 3] in the unit of the training data. Queries are called as their branch
            (`position` in a model of one branch); the anchors of every branch are `<branch>_anchors`, or else drawn
            from its queries; `geometry` describes the body to a model with a geometry branch, or else is drawn from
            the surface.
        sizes: How many anchors, geometry points and supernodes to draw.
        chunk_size: Queries in one call of the model; see `iter_stream`.

    Yields:
        Chunks in physical units, each branch from its first query on.

    Raises:
        ValueError: Nothing to predict, too few points to draw anchors or geometry from, or positions are unusable.
    """
    branches = list(model.config.fields)
    names = {branch: query_name(branch, branches) for branch in branches}
    queries = {branch: positions[name] for branch, name in names.items() if name in positions}
    variables = {"params": params}
    cache = encode_case(model, variables, normalizer, positions, sizes=sizes)
    yield from iter_stream(model, variables, cache, queries, chunk_size=chunk_size, normalizer=normalizer)


def predict_fields(
    model: AnchoredBranchedUPT,
    params: Any,
    normalizer: Normalizer,
    positions: Positions,
    *,
    sizes: SampleSizes,
    chunk_size: ChunkSize = "auto",
    advance: Callable[[int], object] = lambda num_points: None,
) -> dict[str, NDArray[np.float32]]:
    """Predicts fields at points of one case into arrays; see `iter_fields`.

    Args:
        model: The model.
        params: Its parameters.
        normalizer: Its scales.
        positions: Arrays [N, 3] in the unit of the training data.
        sizes: How many anchors, geometry points and supernodes to draw.
        chunk_size: Queries in one call of the model.
        advance: Called with the number of points of each piece that is done.

    Returns:
        Fields [N, F] in physical units by `<branch>_<field>`, or by field in a model of one branch.
    """
    branches = list(model.config.fields)
    fields = {name: np.empty(shape, np.float32) for name, shape in field_shapes(model.config, positions).items()}
    for chunk in iter_fields(model, params, normalizer, positions, sizes=sizes, chunk_size=chunk_size):
        for field, values in chunk.fields.items():
            fields[field_name(chunk.branch, field, branches)][chunk.start : chunk.start + len(values)] = values
        advance(chunk.num_points)
    return fields


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
        num_supernodes = min(sizes.num_test_supernodes, len(geometry))
        supernode_idx = draw_supernodes(rng, geometry, num_supernodes, sizes)
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
    if sizes.sampling == "weighted":
        raise ValueError(f"the run draws anchors by the sizes of cells, which points have not: give '{branch}_anchors'")
    if points is None or len(points) < sizes.num_anchors:
        raise ValueError(
            f"no anchors for branch {branch!r}: expected an array '{branch}_anchors', or at least {sizes.num_anchors} "
            f"points in {name!r} to draw them from; found {0 if points is None else len(points)}"
        )
    return points[sample_points(rng, points, min(sizes.num_test_anchors, len(points)))]


def _geometry(positions: Positions, num_points: int, rng: np.random.Generator) -> NDArray[np.floating[Any]]:
    for name in (GEOMETRY, GEOMETRY_BRANCH, f"{GEOMETRY_BRANCH}_anchors"):
        points = positions.get(name)
        if points is not None:
            return points[sample_points(rng, points, min(num_points, len(points)))]
    raise ValueError(f"no geometry: expected an array {_either([GEOMETRY, GEOMETRY_BRANCH])} with points of the body")


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))
