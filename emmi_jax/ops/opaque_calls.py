"""Kernels that neither `jax.vmap` nor the partitioner can see into: how they are mapped, and shared by devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from emmi_jax.ops.sharding import device_count, vary_alike

Kernel = Callable[..., tuple[Array, ...]]


def opaque_call(
    kernel: Kernel, operands: Sequence[str], results: Sequence[str], arrays: Sequence[Array]
) -> tuple[Array, ...]:
    """Calls a kernel of attention, which is not differentiable.

    `jax.vmap` makes an axis longer: that of the tangents if all else is the same for them, or else that of the samples.
    Devices share samples, heads and queries; they sum up what has no axis of queries.

    Args:
        kernel: Takes and returns arrays.
        operands: The axes of the arrays, a letter each: a tangents, b samples, t queries, s keys, n heads, h channels.
            The first array is [b, t, n, h].
        results: The axes of the results.
        arrays: What the kernel is called with.
    """

    @custom_vmap
    def call(*arrays: Array) -> tuple[Array, ...]:
        return (_partitioned(kernel, operands, results) if device_count(*arrays) > 1 else kernel)(*arrays)

    @call.def_vmap
    def _(size: int, is_mapped: Sequence[bool], *arrays: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        are_shared = all(not mapped or "a" in axes for mapped, axes in zip(is_mapped, operands, strict=True))
        axis = "a" if are_shared and "a" in results[0] else "b"

        def fold(x: Array, axes: str, mapped: bool) -> Array:
            place = axes.find(axis)
            if place < 0:
                return x
            x = jnp.moveaxis(x, 0, place) if mapped else jnp.expand_dims(x, place)
            x = jnp.broadcast_to(x, (*x.shape[:place], size, *x.shape[place + 1 :]))
            return x.reshape(*x.shape[:place], -1, *x.shape[place + 2 :])

        def unfold(x: Array, axes: str) -> Array:
            place = axes.index(axis)
            return jnp.moveaxis(x.reshape(*x.shape[:place], size, -1, *x.shape[place + 1 :]), place, 0)

        outputs = opaque_call(kernel, operands, results, list(map(fold, arrays, operands, is_mapped)))
        return tuple(map(unfold, outputs, results)), (True,) * len(results)

    # A kernel does not say over which axes of `jax.shard_map` its results vary.
    return vary_alike((arrays[0], *call(*arrays)))[1:]


def _partitioned(kernel: Kernel, operands: Sequence[str], results: Sequence[str]) -> Kernel:
    def partition(mesh: Any, arguments: Any, _: Any) -> Any:
        spec = dict(zip(operands[0], arguments[0].sharding.spec, strict=False)) | {"h": None}

        def shardings(all_axes: Sequence[str]) -> tuple[NamedSharding, ...]:
            return tuple(NamedSharding(mesh, P(*map(spec.get, axes))) for axes in all_axes)

        def on_one_device(*arrays: Array) -> tuple[Array, ...]:
            outputs = kernel(*arrays)
            if spec.get("t") is None:
                return outputs
            return tuple(
                x if "t" in axes else lax.psum(x.astype(jnp.float32), spec["t"]).astype(x.dtype)
                for x, axes in zip(outputs, results, strict=True)
            )

        return mesh, on_one_device, shardings(results), shardings(operands)

    partitioned: Any = custom_partitioning(kernel)
    rule = " -> ".join(", ".join(" ".join(axes) for axes in side) for side in (operands, results))
    partitioned.def_partition(partition=partition, sharding_rule=rule)
    function: Kernel = partitioned
    return function
