"""Sharding helpers for tiled loops, under any kind of mesh."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = TypeVar("Tree")
Args = ParamSpec("Args")


def device_count(*arrays: jax.Array) -> int:
    """Returns how many devices the partitioner may spread the arrays over.

    Only an argument of `jit` that was never placed leaves its mesh unknown: then these are all devices of the process.
    """
    mesh = _mesh(arrays)
    if mesh.empty:
        return jax.local_device_count()
    return math.prod(n for n, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind != AxisType.Manual)


def num_shares(size: int, num_devices: int) -> int:
    """Returns the number of equal shares that an axis is cut into, such that no device needs part of a share."""
    if num_devices == 1:
        return 1
    # An axis of symbolic size is cut into single entries.
    return math.gcd(size, num_devices) if isinstance(size, int) else size


def gather_axis(x: jax.Array, axis: int) -> jax.Array:
    """Leaves an axis whole on every device, so that a loop that slices it communicates nothing."""
    mesh = _mesh([x])
    if mesh.empty or all(kind != AxisType.Auto for kind in mesh.axis_types):
        return x
    spec = P(*(None if i == axis else P.UNCONSTRAINED for i in range(x.ndim)))
    return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def gather_shards(tree: Tree, axis_name: str | None, axis: int) -> Tree:
    """Joins the shards that devices hold of an axis of every array, inside `jax.shard_map`.

    Args:
        tree: The arrays.
        axis_name: The axis of the mesh; None leaves them as they are.
        axis: The axis of the arrays.
    """
    if axis_name is None:
        return tree
    whole: Tree = jax.tree.map(lambda x: lax.all_gather(x, axis_name, axis=axis, tiled=True), tree)
    return whole


def gather_key_mask(mask: jax.Array | None, num_keys: int, axis_name: str | None) -> jax.Array | None:
    """Joins the shards of a mask of keys as `gather_shards` does.

    Args:
        mask: Booleans of shape [B, N, 1, S], B, N and S may be 1; or None.
        num_keys: Keys of a shard.
        axis_name: The axis of the mesh; None leaves the mask as it is.

    Raises:
        ValueError: The mask depends on the queries, so that the shards do not make a whole.
    """
    if mask is None or axis_name is None:
        return mask
    if mask.shape[2] != 1:
        raise ValueError(f"tokens sharded over {axis_name!r} need a mask of keys alone, got {list(mask.shape)}")
    return gather_shards(jnp.broadcast_to(mask, (*mask.shape[:3], num_keys)), axis_name, axis=3)


def vary_alike(tree: Tree) -> Tree:
    """Makes arrays vary over the same manual axes of `jax.shard_map`, as the carry of a loop must."""

    def axes_of(x: jax.Array) -> frozenset[str]:
        axes: frozenset[str] = jax.typeof(x).manual_axis_type.varying
        return axes

    axes = frozenset[str]().union(*map(axes_of, jax.tree.leaves(tree)))

    def vary(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - axes_of(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    varied: Tree = jax.tree.map(vary, tree)
    return varied


def partition_automatically(fun: Callable[Args, Tree], spec: P, *arrays: jax.Array) -> Callable[Args, Tree]:
    """Leaves how `fun` is partitioned to the compiler, also where the axes of the mesh of `arrays` are explicit.

    Args:
        fun: What to call.
        spec: The sharding of every result over explicit axes.
        arrays: Arrays that know the mesh.
    """
    mesh = _mesh(arrays)
    if mesh.empty or all(kind != AxisType.Explicit for kind in mesh.axis_types):
        return fun
    automatic: Callable[Args, Tree] = jax.sharding.auto_axes(fun, out_sharding=NamedSharding(mesh, spec))
    return functools.wraps(fun)(automatic)


def resized_spec(x: jax.Array, axis: int, size: int, *, ndim: int | None = None) -> P | None:
    """Returns how x is sharded over explicit axes if one axis gets another size; None if that axis is not sharded.

    A size that the devices cannot share equally is not sharded. `ndim` is the number of axes of the result, if it
    differs from that of x behind the axis.
    """
    mesh, spec = _mesh([x]), jax.typeof(x).sharding.spec
    names = spec[axis] if axis < len(spec) else None
    if names is None or all(kind != AxisType.Explicit for kind in mesh.axis_types):
        return None
    shards = math.prod(mesh.shape[name] for name in (names if isinstance(names, tuple) else (names,)))
    after = spec[axis + 1 :] if ndim in (None, x.ndim) else ()
    return P(*spec[:axis], None if size % shards else names, *after)


def _mesh(arrays: object) -> AbstractMesh:
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays))
    return next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())
