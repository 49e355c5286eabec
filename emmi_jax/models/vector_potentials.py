"""Divergence-free fields: curls of what the network predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AbUptConfig
from emmi_jax.models.inputs import Arrays
from emmi_jax.ops.attention import forward_mode
from emmi_jax.ops.curl import curl_by_token


def predict_with_curls(
    network: nn.Module,
    variables: Mapping[str, Any],
    config: AbUptConfig,
    *,
    encoded: Mapping[str, Any],
    queries: Arrays,
    options: Mapping[str, Any],
) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
    """Predicts as the network does, but replaces vector potentials by their curls.

    The anchors are encoded first. After that, each token of a branch with potentials reads their keys and values and
    depends on no position but its own, so three forward-mode derivatives give the curl. The curl at an anchor is that
    of a query in the same place: only its own token moves.

    Args:
        network: The network, not bound to variables; it takes the arguments of `AnchoredBranchedUPT`.
        variables: Its variables.
        config: The configuration that names the potentials.
        encoded: The arguments that describe anchors and geometry.
        queries: Positions [B, T, 3] of any of the branches.
        options: The arguments that every part of the network takes, and its rngs.

    Returns:
        What the model returns; and the keys and values of anchors and geometry, empty if these are cached.
    """
    anchors: Arrays | None = encoded["anchors"]
    moved = _moved_tokens(config, anchors, queries)
    others = {branch: position for branch, position in queries.items() if branch not in moved}
    predictions: dict[str, jax.Array] = {}
    cache: Mapping[str, Any] = {}
    if anchors is not None:
        predictions, updated = network.apply(variables, queries=others, mutable=["cache"], **encoded, **options)
        cache = updated.get("cache", {})
        variables = {**variables, **updated}
    elif others:
        outputs: Any = network.apply(variables, queries=others, **options)
        predictions = outputs
    if moved:
        with forward_mode(True):
            curls, rest = _curls(network, variables, config, moved, options)
        for branch in moved:
            num_anchors = 0 if anchors is None else anchors[branch].shape[1]
            for name in config.fields[branch]:
                key = f"query_{branch}_{name}"
                if anchors is not None and key in curls:
                    predictions[f"{branch}_{name}"] = curls[key][:, :num_anchors]
                if branch in queries:
                    predictions[key] = (curls | rest)[key][:, num_anchors:]
    return predictions, cache


def _moved_tokens(config: AbUptConfig, anchors: Arrays | None, queries: Arrays) -> dict[str, jax.Array]:
    """Returns the positions of branches with potentials, anchors before queries."""
    moved = {}
    for branch in config.vector_potentials:
        parts = [given[branch] for given in (anchors or {}, queries) if branch in given]
        if parts:
            moved[branch] = jnp.concatenate(parts, axis=1).astype(jnp.float32)
    return moved


def _curls(
    network: nn.Module,
    variables: Mapping[str, Any],
    config: AbUptConfig,
    moved: dict[str, jax.Array],
    options: Mapping[str, Any],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the curls of the potentials at queries that read their anchors from the cache, and the other fields."""
    potentials = {f"query_{branch}_{name}" for branch in moved for name in config.vector_potentials[branch]}

    def potential(positions: Arrays) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        outputs: Any = network.apply(variables, queries=positions, **options)
        return {name: outputs.pop(name) for name in potentials}, outputs

    return curl_by_token(potential, moved)
