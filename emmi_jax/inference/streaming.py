"""A bare model on one case: anchors encoded once, then fields at any number of queries.

>>> cache = encode(model, variables, anchors=anchors)
>>> fields = predict(model, variables, cache, {"volume": positions})  # {"volume_velocity": [N, 3], ...}

`predict` fills arrays or memory-maps; `stream` yields the chunks as they come and keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import ArrayLike

from emmi_jax.data.normalization import Normalizer
from emmi_jax.deploy.features import FeaturesLike
from emmi_jax.deploy.streaming import Chunk, Queries, Query, StreamedChunk, fill, stream_fields
from emmi_jax.deploy.surrogate import ConditionLike
from emmi_jax.inference.cache import AnchorCache, check_cache, fingerprint
from emmi_jax.inference.chunks import ChunkSize, resolve_chunk_size
from emmi_jax.inference.inputs import case_inputs, condition_input, scales_of
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.models.ab_upt import AnchoredBranchedUPT

Variables: TypeAlias = Mapping[str, Any]
_T = TypeVar("_T")

QUERY_AXIS = "queries"
"""Axis of the mesh of devices that share a chunk."""


def encode(
    model: AnchoredBranchedUPT,
    variables: Variables,
    *,
    anchors: Mapping[str, ArrayLike],
    geometry: Geometry | None = None,
    condition: ConditionLike | None = None,
    anchor_masks: Mapping[str, ArrayLike] | None = None,
    anchor_features: Mapping[str, ArrayLike] | None = None,
    normalizer: Normalizer | None = None,
) -> AnchorCache:
    """Encodes the anchors and the geometry of one case into the keys and values that its queries attend to.

    The arrays are those of the model's call, without the batch axis.

    Args:
        model: The model.
        variables: Its variables, ``{"params": ...}``.
        anchors: Positions [T, n] of every branch.
        geometry: Points [P, n] and supernodes [M], if the model has a geometry branch.
        condition: Array [condition_dim], if the model has one; or an array for each of its named conditions.
        anchor_masks: Booleans [T] of any of the branches, True = real anchor.
        anchor_features: Features [T, channels] of the anchors of any branch that takes them.
        normalizer: Set if positions and features are in physical units; None if they are in model units.

    Returns:
        The cache for `stream` and `predict`; it belongs to these variables and this condition.

    Raises:
        ValueError: The arrays do not fit the model, a position is not finite, or an index is out of range.
    """
    variables = without_cache(variables)
    inputs = case_inputs(model.config, anchors, geometry, condition, anchor_masks, anchor_features, normalizer)
    device = device_of(variables)
    variables = on_devices(variables, [device])
    with jax.set_mesh(device_mesh([device])):
        entries = encode_inputs(model, variables, inputs)
        return AnchorCache(entries, fingerprint(model.config, variables, inputs["condition"]))


def stream(
    model: AnchoredBranchedUPT,
    variables: Variables,
    cache: AnchorCache,
    queries: Mapping[str, Queries],
    *,
    chunk_size: ChunkSize = "auto",
    normalizer: Normalizer | None = None,
    condition: ConditionLike | None = None,
    query_features: Mapping[str, FeaturesLike] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[StreamedChunk]:
    """Yields the fields at the queries chunk by chunk, branch after branch, each branch from its first query on.

    Every call of the model has the same shape, so each branch is compiled once, whatever its length. While the fields
    of one chunk travel to the host, the next one is computed; at most two chunks are on the devices.

    Args:
        model: The model.
        variables: Its variables, ``{"params": ...}``.
        cache: The result of `encode` for the same variables and condition.
        queries: Positions [N, n] of any of the branches: arrays, memory-maps, or iterables of arrays of any length, of
            which at most one chunk is held.
        chunk_size: Queries per call, see `resolve_chunk_size`; "auto" goes by the memory of the devices.
        normalizer: Set if positions, fields and features are in physical units; None if they are in model units.
        condition: Array [condition_dim], if the model has one; or an array for each; the same as for `encode`.
        query_features: Features [N, channels] of the queries of every branch that takes some.
        devices: The devices that share each chunk equally; by default all local ones.

    Yields:
        `StreamedChunk`; none for a branch without points.

    Raises:
        ValueError: The cache belongs to something else, a branch is unknown, positions are not [N, n] or not finite, or
            their source fails; the message names the branch and the point. All earlier chunks but the last one or two
            have been yielded.
    """
    config = model.config
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must name at least one device, got none")
    variables = on_devices(without_cache(variables), devices[:1])
    batched_condition, mesh = condition_input(condition), device_mesh(devices)
    with jax.set_mesh(device_mesh(devices[:1])):
        check_cache(cache, config, variables, batched_condition)
    size = resolve_chunk_size(chunk_size, config, cache.entries, devices)
    constants = on_devices(({**variables, "cache": cache.entries}, batched_condition), devices)

    def start(chunk: Chunk, features: Any) -> dict[str, jax.Array]:
        rows = jax.device_put((chunk.position, features), NamedSharding(mesh, P(QUERY_AXIS)))
        # A mesh that the caller has set would not fit these devices.
        with jax.set_mesh(mesh):
            return _query(model, chunk.branch, mesh, *constants, *rows)

    query = Query(config.fields, scales_of(config, normalizer), config.num_position_axes, size, start)
    yield from stream_fields(query, queries, query_features)


def predict(
    model: AnchoredBranchedUPT,
    variables: Variables,
    cache: AnchorCache,
    queries: Mapping[str, Queries],
    *,
    out: Mapping[str, Any] | None = None,
    advance: Callable[[int], object] = lambda num_points: None,
    **options: Any,
) -> dict[str, Any]:
    """Predicts the fields at any number of queries into arrays.

    Args:
        model: The model.
        variables: Its variables, ``{"params": ...}``.
        cache: The result of `encode`.
        queries: Positions by branch.
        out: Arrays or memory-maps [N, F] of floats by ``<branch>_<field>``, one for each field of the queried branches;
            None makes them. Needed for an iterable, whose length is unknown.
        advance: Called with the number of points of each chunk that is done.
        **options: The other arguments of `stream`.

    Returns:
        `out`, or arrays [N, F] float32, by ``<branch>_<field>``.

    Raises:
        ValueError: See `stream`; or `out` does not fit.
    """
    chunks = stream(model, variables, cache, queries, **options)
    return fill(chunks, queries, out, model.config.fields, advance)


def device_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh of devices that share each chunk."""
    return jax.make_mesh((len(devices),), (QUERY_AXIS,), (jax.sharding.AxisType.Auto,), devices=devices)


def device_of(variables: Variables) -> jax.Device:
    """Returns the local device that variables lie on, or the first where they are on the host or on several."""
    used = {device for leaf in jax.tree.leaves(variables) if isinstance(leaf, jax.Array) for device in leaf.devices()}
    local = jax.local_devices()
    return used.pop() if len(used) == 1 and used <= {*local} else local[0]


def on_devices(tree: _T, devices: Sequence[jax.Device]) -> _T:
    """Returns arrays as copies on each of the devices, wherever they lie.

    Raises:
        ValueError: A part of them lies on devices of another process.
    """
    # Not the device itself: JAX 0.10 keeps the explicit axes of an array in its type then.
    there = NamedSharding(device_mesh(devices), P())

    def local(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                raise ValueError(f"parameters are spread over the processes, as {leaf.sharding}: gather them first")
            leaf = leaf.addressable_data(0)
        return leaf

    def is_there(leaf: Any) -> bool:
        if not isinstance(leaf, jax.Array):
            return False
        alone = len(devices) == 1 and leaf.sharding == SingleDeviceSharding(devices[0])
        return leaf.sharding == there or (alone and jax.typeof(leaf).sharding.mesh.empty)

    leaves, structure = jax.tree.flatten(tree)
    # To put hundreds of arrays where they are would take as long as to encode.
    missing = [number for number, leaf in enumerate(leaves) if not is_there(leaf)]
    for number, leaf in zip(missing, jax.device_put([local(leaves[n]) for n in missing], there), strict=True):
        leaves[number] = leaf
    placed: _T = jax.tree.unflatten(structure, leaves)
    return placed


def without_cache(variables: Variables) -> dict[str, Any]:
    """Returns the variables without a cache; refuses those without parameters."""
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params', got {sorted(variables)[:5]!r}")
    return {name: collection for name, collection in variables.items() if name != "cache"}


@partial(jax.jit, static_argnums=0)
def encode_inputs(model: AnchoredBranchedUPT, variables: Variables, inputs: Mapping[str, Any]) -> Any:
    """Returns the ``cache`` collection of checked inputs; differentiable."""
    _, updated = model.apply(variables, **inputs, mutable=["cache"])
    return updated["cache"]


def query_fields(
    model: AnchoredBranchedUPT,
    branch: str,
    variables: Variables,
    condition: Any,
    position: jax.Array,
    features: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Returns the fields [N, F] of a branch at queries [N, n] that read their anchors from the cache; differentiable.

    All is in model units. `variables` hold the cache; the condition is [1, condition_dim], or one by name each; the
    features are [N, channels], if there are any.
    """
    given = None if features is None else {branch: features[None]}
    outputs: Any = model.apply(variables, queries={branch: position[None]}, condition=condition, query_features=given)
    return {name: jnp.squeeze(outputs[f"query_{branch}_{name}"], 0) for name in model.config.fields[branch]}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _query(
    model: AnchoredBranchedUPT,
    branch: str,
    mesh: Mesh,
    variables: Variables,
    condition: Any,
    position: jax.Array,
    features: jax.Array | None,
) -> dict[str, jax.Array]:
    on_one_device = partial(query_fields, model, branch)

    # Queries do not see each other: each device computes its own share and talks to no other. Pallas kernels do not
    # say how their outputs vary over the devices, so that is not checked.
    specs = (P(), P(), P(QUERY_AXIS), P(QUERY_AXIS))
    return jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=P(QUERY_AXIS), check_vma=False)(
        variables, condition, position, features
    )
