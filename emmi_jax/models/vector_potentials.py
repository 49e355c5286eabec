"""Divergence-free fields: curls of what the network predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AbUptConfig
from emmi_jax.models.inputs import Arrays, Tokens
from emmi_jax.ops.attention import forward_mode
from emmi_jax.ops.curl import curl_by_token


def predict_with_curls(
    network: nn.Module,
    variables: Mapping[str, Any],
    config: AbUptConfig,
    tokens: Tokens,
    *,
    encoded: Mapping[str, Any],
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
        tokens: Positions and features of anchors and queries.
        encoded: The arguments that describe the geometry.
        options: The arguments that every part of the network takes, and its rngs.

    Returns:
        What the model returns; and the keys and values of anchors and geometry, empty if these are cached.
    """
    moved = config.vector_potentials
    others = {branch: position for branch, position in tokens.queries.items() if branch not in moved}
    other_features = {branch: array for branch, array in tokens.query_features.items() if branch not in moved}
    still = tokens._replace(queries=others, query_features=other_features)
    predictions: dict[str, jax.Array] = {}
    cache: Mapping[str, Any] = {}
    if tokens.anchors is not None:
        predictions, updated = network.apply(variables, still, mutable=["cache"], **encoded, **options)
        cache = updated.get("cache", {})
        variables = {**variables, **updated}
    elif others:
        outputs: Any = network.apply(variables, still, **options)
        predictions = outputs
    for sides in _sides_at_once(config, tokens):
        with forward_mode(True):
            predictions |= _curls(network, variables, config, sides, options)
    return predictions, cache


class _Side(NamedTuple):
    """Anchors or queries of branches with potentials: what their outputs start with, positions and features."""

    prefix: str
    positions: Arrays
    features: Arrays


def _sides_at_once(config: AbUptConfig, tokens: Tokens) -> list[list[_Side]]:
    """Returns anchors and queries together, or one after the other where only one of them has features."""
    sides = [
        _Side(
            prefix, *({b: given[b] for b in config.vector_potentials if b in given} for given in (positions, features))
        )
        for prefix, positions, features in (
            ("", tokens.anchors or {}, tokens.anchor_features),
            ("query_", tokens.queries, tokens.query_features),
        )
    ]
    sides = [side for side in sides if side.positions]
    differ = {branch for side in sides for branch in side.positions if branch not in side.features}
    return (
        [[side] for side in sides] if differ & {b for side in sides for b in side.features} else [sides] * bool(sides)
    )


def _curls(
    network: nn.Module,
    variables: Mapping[str, Any],
    config: AbUptConfig,
    sides: Sequence[_Side],
    options: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Returns the fields of tokens that read the anchors from the cache, with the curls of the potentials.

    At anchors, only the curls: the other fields are known.
    """
    moved = _joined([side.positions for side in sides])
    features = _joined([side.features for side in sides])
    potentials = {f"query_{branch}_{name}" for branch in moved for name in config.vector_potentials[branch]}

    def potential(positions: Arrays) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        outputs: Any = network.apply(variables, Tokens(None, positions, {}, features), **options)
        return {name: outputs.pop(name) for name in potentials}, outputs

    curls, rest = curl_by_token(potential, {branch: position.astype(jnp.float32) for branch, position in moved.items()})
    predictions: dict[str, jax.Array] = {}
    for branch in moved:
        start = 0
        for side in sides:
            if branch not in side.positions:
                continue
            rows = slice(start, start := start + side.positions[branch].shape[1])
            for name in config.fields[branch]:
                key = f"query_{branch}_{name}"
                if side.prefix or key in curls:
                    predictions[f"{side.prefix}{branch}_{name}"] = (curls | rest)[key][:, rows]
    return predictions


def _joined(parts: Sequence[Arrays]) -> dict[str, jax.Array]:
    """Joins arrays [B, T, ...] of the same branch."""
    branches = {branch: None for part in parts for branch in part}
    return {branch: jnp.concatenate([part[branch] for part in parts if branch in part], axis=1) for branch in branches}
