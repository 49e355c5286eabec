"""Derivatives of the encoding of a case: from anchors, geometry points and condition to cached keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from emmi_jax.inference.streaming import encode_inputs
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.ops.arrays import at_least_float32

Tree: TypeAlias = Any


@partial(jax.jit, static_argnums=0)
def vjp_encoding(model: AnchoredBranchedUPT, variables: Tree, inputs: Tree, d_cache: Tree) -> dict[str, Any]:
    """Takes a gradient with respect to the cache back to anchors, geometry points and condition."""
    return _pull(model, variables, inputs, _movable(inputs), d_cache)


@partial(jax.jit, static_argnums=0)
def hvp_encoding(
    model: AnchoredBranchedUPT, variables: Tree, inputs: Tree, d_cache: Tree, tangents: Tree, d_cache_tangents: Tree
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what `vjp_encoding` does, and its derivative along a direction of the inputs and of `d_cache`."""

    def pull(movable: Tree, d_cache: Tree) -> dict[str, Any]:
        return _pull(model, variables, inputs, movable, d_cache)

    return jax.jvp(pull, (_movable(inputs), d_cache), (tangents, d_cache_tangents))


@partial(jax.jit, static_argnums=0)
def jvp_encoding(model: AnchoredBranchedUPT, variables: Tree, inputs: Tree, tangents: Tree) -> tuple[Tree, Tree]:
    """Returns the cache, and its derivative along a direction of anchors, geometry points and condition."""

    def encode(movable: Tree) -> tuple[Tree, Tree]:
        cache = encode_inputs(model, variables, _with_movable(inputs, movable))
        return floats(cache), cache

    _, d_cache, cache = jax.jvp(encode, (_movable(inputs),), (tangents,), has_aux=True)
    return cache, d_cache


def _pull(model: AnchoredBranchedUPT, variables: Tree, inputs: Tree, movable: Tree, d_cache: Tree) -> dict[str, Any]:
    def encode(movable: Tree) -> Tree:
        return floats(encode_inputs(model, variables, _with_movable(inputs, movable)))

    cache, pull = jax.vjp(encode, movable)
    (gradient,) = pull(jax.tree.map(lambda leaf, total: total.astype(leaf.dtype), cache, d_cache))
    return dict(gradient)


def _movable(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that have derivatives: anchors, geometry points and condition."""
    geometry = inputs.get("geometry")
    position = None if geometry is None else geometry.position
    return {"anchors": dict(inputs["anchors"]), "geometry": position, "condition": inputs.get("condition")}


def _with_movable(inputs: Mapping[str, Any], movable: Mapping[str, Any]) -> dict[str, Any]:
    geometry = inputs.get("geometry")
    if geometry is not None:
        geometry = geometry._replace(position=movable["geometry"])
    return {**inputs, "anchors": movable["anchors"], "geometry": geometry, "condition": movable["condition"]}


def floats(tree: Tree) -> Tree:
    """Returns the tree with None in place of masks and other leaves without derivatives."""
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, tree)


def merged(new: Tree, old: Tree) -> Tree:
    """Returns the new tree with the leaves that `floats` left out taken from the old one."""
    return jax.tree.map(lambda a, b: b if a is None else a, new, old, is_leaf=lambda leaf: leaf is None)


def zeros_like(leaf: Any) -> jax.Array:
    """Returns zeros to add arrays like this one to."""
    return at_least_float32(jnp.zeros(leaf.shape, leaf.dtype))
