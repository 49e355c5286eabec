"""Anchors encoded once, then fields at any number of queries.

>>> cache = encode(model, variables, anchors=anchors)
>>> fields = stream(model, variables, cache, {"volume": positions})  # {"volume_velocity": [N, 3], ...}

`stream` fills arrays or memory-maps; `iter_stream` hands over the chunks as they come and keeps none.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import ArrayLike

from emmi_jax.cfd.normalization import Normalizer
from emmi_jax.inference.chunks import (
    Array,
    Chunk,
    ChunkSize,
    Positions,
    cut_queries,
    output_arrays,
    resolve_chunk_size,
    to_model_units,
)
from emmi_jax.layers.supernode_pooling import Geometry, check_geometry
from emmi_jax.models.ab_upt import AnchoredBranchedUPT

Variables: TypeAlias = Mapping[str, Any]
Cache: TypeAlias = Any

_AXIS = "queries"
_CHUNKS_ON_DEVICE = 2


class StreamedChunk(NamedTuple):
    """Fields at queries `start`, `start` + 1, … of a branch: arrays [num_points, F] float32 by field."""

    branch: str
    start: int
    fields: dict[str, Array]

    @property
    def num_points(self) -> int:
        """How many queries there are."""
        return len(next(iter(self.fields.values())))


def encode(
    model: AnchoredBranchedUPT,
    variables: Variables,
    *,
    anchors: Mapping[str, ArrayLike],
    geometry_position: ArrayLike | None = None,
    supernode_idx: ArrayLike | None = None,
    geometry_features: ArrayLike | None = None,
    condition: ArrayLike | None = None,
    anchor_masks: Mapping[str, ArrayLike] | None = None,
    normalizer: Normalizer | None = None,
) -> Cache:
    """Encodes the anchors and the geometry of one case into the keys and values that its queries attend to.

    The arrays are those of the model's call, without the batch axis.

    Args:
        model: The model.
        variables: Its variables, ``{"params": ...}``.
        anchors: Positions [T, n] of every branch.
        geometry_position: Points of the geometry [P, n], if the model has a geometry branch.
        supernode_idx: Which of them are supernodes [M].
        geometry_features: Point features [P, F], if the pooling has `input_features_dim`.
        condition: Array [condition_dim], if the model has one.
        anchor_masks: Booleans [T] of any of the branches, True = real anchor.
        normalizer: The scales if positions are in physical units; None if they are in model units.

    Returns:
        The `cache` collection, for `stream`.

    Raises:
        ValueError: The arrays do not fit the model, or a position is not finite.
    """
    axes = model.config.num_position_axes
    inputs: dict[str, Any] = {
        "anchors": {b: to_model_units(f"the anchor {b}", a, axes, normalizer) for b, a in anchors.items()},
        "condition": condition,
        "anchor_masks": anchor_masks,
    }
    if geometry_position is not None:
        position = to_model_units("the geometry", geometry_position, axes, normalizer)
        features = None if geometry_features is None else np.asarray(geometry_features)
        inputs["geometry"] = Geometry(position, np.asarray(supernode_idx), features=features)
    inputs = jax.tree.map(lambda a: np.asarray(a)[None], inputs)
    if geometry_position is not None:
        check_geometry(inputs["geometry"], axes, model.config.supernode_pooling.input_features_dim)
    return _encode(model, _without_cache(variables), inputs)


def iter_stream(
    model: AnchoredBranchedUPT,
    variables: Variables,
    cache: Cache,
    queries: Mapping[str, Positions],
    *,
    chunk_size: ChunkSize = "auto",
    normalizer: Normalizer | None = None,
    condition: ArrayLike | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[StreamedChunk]:
    """Yields the fields at the queries chunk by chunk, branch after branch, each branch from its first query on.

    Every call of the model has the same shape, so each branch is compiled once whatever its length. While the
    fields of a chunk travel to the host, the next one is computed; no more than two are on the devices.

    Args:
        model: The model.
        variables: Its variables, ``{"params": ...}``.
        cache: What `encode` returned for the same variables and condition.
        queries: By branch, for any of the branches: positions [N, n] as an array or memory-map, or an iterable of such
            arrays of any lengths, of which no more than a chunk is held.
        chunk_size: Queries in one call, rounded up to a multiple of the number of devices; "auto" goes by the memory
            of the devices (see `resolve_chunk_size`).
        normalizer: The scales if positions and fields are in physical units; None if they are in model units.
        condition: Array [condition_dim], if the model has one; that of `encode`.
        devices: What computes: each takes an equal part of every chunk. By default all local ones.

    Yields:
        `StreamedChunk`; none for a branch of no points.

    Raises:
        ValueError: A branch is unknown, or positions are no [N, n], not finite, or stop with an exception; the message
            names the branch and the point. Chunks before it have been yielded, save the last one or two.
    """
    config = model.config
    if unknown := sorted(set(queries) - set(config.branches)):
        raise ValueError(f"queries name the unknown branches {unknown!r}; the branches are {list(config.branches)!r}")
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must name at least one device, got none")
    mesh = Mesh(np.array(devices), (_AXIS,))
    size = resolve_chunk_size(chunk_size, config, cache, devices)
    constants = (
        {**_without_cache(variables), "cache": cache},
        None if condition is None else np.asarray(condition)[None],
    )
    constants = jax.device_put(constants, NamedSharding(mesh, P()))
    pending: collections.deque[tuple[Chunk, dict[str, jax.Array]]] = collections.deque()
    for chunk in cut_queries(queries, size, config, normalizer):
        pending.append((chunk, _start(model, mesh, chunk, constants)))
        if len(pending) == _CHUNKS_ON_DEVICE:
            yield _finish(*pending.popleft(), normalizer)
    while pending:
        yield _finish(*pending.popleft(), normalizer)


def stream(
    model: AnchoredBranchedUPT,
    variables: Variables,
    cache: Cache,
    queries: Mapping[str, Positions],
    *,
    chunk_size: ChunkSize = "auto",
    out: Mapping[str, Any] | None = None,
    normalizer: Normalizer | None = None,
    condition: ArrayLike | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Predicts the fields at any number of queries into arrays.

    Args:
        model: See `iter_stream`, as for all that follow.
        variables: Its variables.
        cache: What `encode` returned.
        queries: Positions by branch.
        chunk_size: Queries in one call.
        out: Arrays or memory-maps [N, F] by ``<branch>_<field>`` to write to, one for each field of the branches asked
            for; None makes them. An iterable, whose length is not known, needs them.
        normalizer: The scales of positions and fields in physical units.
        condition: Array [condition_dim].
        devices: What computes.

    Returns:
        `out`, or arrays [N, F] float32, by ``<branch>_<field>``.

    Raises:
        ValueError: See `iter_stream`; or `out` does not fit.
    """
    fields = output_arrays(queries, out, model.config)
    done = dict.fromkeys(queries, 0)
    options: Any = {"chunk_size": chunk_size, "normalizer": normalizer, "condition": condition, "devices": devices}
    for branch, start, values in iter_stream(model, variables, cache, queries, **options):
        for name, part in values.items():
            target, done[branch] = fields[f"{branch}_{name}"], start + len(part)
            if done[branch] > len(target):
                more = f"there are at least {done[branch]} queries"
                raise ValueError(f"out['{branch}_{name}'] has {len(target)} rows, but {more}")
            target[start : done[branch]] = part
    for branch, num_points in done.items():
        for name in model.config.fields[branch]:
            rows = len(fields[f"{branch}_{name}"])
            if rows != num_points:
                raise ValueError(f"out['{branch}_{name}'] has {rows} rows, but there were {num_points} queries")
    return fields


def _without_cache(variables: Variables) -> dict[str, Any]:
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params', got {sorted(variables)[:5]!r}")
    return {name: collection for name, collection in variables.items() if name != "cache"}


def _start(model: AnchoredBranchedUPT, mesh: Mesh, chunk: Chunk, constants: Any) -> dict[str, jax.Array]:
    """Starts copying a chunk to the devices, computing on it, and copying the fields back; waits for nothing."""
    position = jax.device_put(chunk.position, NamedSharding(mesh, P(_AXIS)))
    fields = _query(model, chunk.branch, mesh, *constants, position)
    for values in fields.values():
        values.copy_to_host_async()
    return fields


def _finish(chunk: Chunk, fields: dict[str, jax.Array], normalizer: Normalizer | None) -> StreamedChunk:
    """Waits for the fields of a chunk."""
    host = {}
    for name, values in fields.items():
        real = np.asarray(values)[: chunk.num_points].astype(np.float32)
        host[name] = real if normalizer is None else normalizer.denormalize_field(chunk.branch, name, real)
    return StreamedChunk(chunk.branch, chunk.start, host)


@partial(jax.jit, static_argnums=0)
def _encode(model: AnchoredBranchedUPT, variables: Variables, inputs: Mapping[str, Any]) -> Cache:
    _, updated = model.apply(variables, **inputs, mutable=["cache"])
    return updated["cache"]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _query(
    model: AnchoredBranchedUPT,
    branch: str,
    mesh: Mesh,
    variables: Variables,
    condition: jax.Array | None,
    position: jax.Array,
) -> dict[str, jax.Array]:
    def on_one_device(variables: Variables, condition: jax.Array | None, position: jax.Array) -> dict[str, jax.Array]:
        outputs: Any = model.apply(variables, queries={branch: position[None]}, condition=condition)
        return {name: jnp.squeeze(outputs[f"query_{branch}_{name}"], 0) for name in model.config.fields[branch]}

    # Queries do not see each other: each device computes on its own ones and talks to no other.
    specs = (P(), P(), P(_AXIS))
    return jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=P(_AXIS), check_vma=False)(
        variables, condition, position
    )
