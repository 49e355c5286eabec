"""Anchors encoded once, then any number of queries in chunks of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.models.ab_upt import AnchoredBranchedUPT

Array: TypeAlias = NDArray[np.float32]
Params: TypeAlias = Any
Cache: TypeAlias = Any


@partial(jax.jit, static_argnums=0)
def encode(model: AnchoredBranchedUPT, params: Params, inputs: Mapping[str, Any]) -> Cache:
    """Encodes anchors and geometry into the keys and values that queries attend to.

    Args:
        model: The model.
        params: Its parameters.
        inputs: Keyword arguments of the model: `anchors`, and where it has a geometry branch `geometry_position` and
            `supernode_idx`, in model units and with a batch axis of 1.

    Returns:
        The `cache` collection.
    """
    _, variables = model.apply({"params": params}, **inputs, mutable=["cache"])
    return variables["cache"]


def stream(
    model: AnchoredBranchedUPT, params: Params, cache: Cache, branch: str, position: Array, *, chunk_size: int
) -> dict[str, Array]:
    """Predicts the fields of one branch at any number of points; compiles once whatever their number.

    Args:
        model: The model.
        params: Its parameters.
        cache: What `encode` returned.
        branch: Name of the branch.
        position: Positions [N, n] in model units.
        chunk_size: Queries in one call.

    Returns:
        Fields [N, F] by name, in model units.
    """
    parts = []
    for chunk, num_points in _chunks(position, chunk_size):
        fields = _query(model, params, cache, branch, chunk[None])
        parts.append({name: np.asarray(values[0])[:num_points] for name, values in fields.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@partial(jax.jit, static_argnums=(0, 3))
def _query(
    model: AnchoredBranchedUPT, params: Params, cache: Cache, branch: str, position: jax.Array
) -> dict[str, jax.Array]:
    outputs: Any = model.apply({"params": params, "cache": cache}, anchors=None, queries={branch: position})
    return {name: outputs[f"query_{branch}_{name}"] for name in model.config.fields[branch]}


def _chunks(position: Array, size: int) -> Iterator[tuple[Array, int]]:
    """Cuts positions [N, n] into chunks [size, n], the last one padded, and says how many points of each are real."""
    for start in range(0, max(len(position), 1), size):
        chunk = position[start : start + size]
        yield np.pad(chunk, ((0, size - len(chunk)), (0, 0))), len(chunk)
