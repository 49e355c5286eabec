"""Fields without divergence: curls of what the network predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AbUptConfig
from emmi_jax.ops.curl import curl_by_token

FORWARD_MODE = ("masked", "xla")
"""Implementations of attention with a forward-mode derivative; they hold every logit."""

Positions = Mapping[str, jax.Array]


def predict_with_curls(
    model: nn.Module,
    config: AbUptConfig,
    *,
    anchors: Positions | None,
    queries: Positions,
    encoded: Mapping[str, Any],
    options: dict[str, Any],
) -> dict[str, jax.Array]:
    """Predicts as the model without potentials does, with curls in place of the vector potentials.

    The anchors are encoded first. Then each token of a branch with potentials sees their keys and values and depends on
    no position but its own, so that the curl follows from three derivatives in forward mode. The curl at an anchor is
    that at a query in its place: as if only its own token moved.

    Args:
        model: An `AnchoredBranchedUPT`, bound to its variables.
        config: Its configuration.
        anchors: Positions [B, T, 3] of each branch; None reads them from the cache.
        queries: Positions [B, T, 3] of any of the branches.
        encoded: The other arguments of its call that describe anchors and geometry.
        options: The other arguments that every part of the network sees.

    Returns:
        What the call returns.
    """
    plain = dataclasses.replace(config, vector_potentials={})
    variables = dict(model.variables)
    if model.has_rng("dropout"):
        options = options | {"rngs": {"dropout": model.make_rng("dropout")}}
    moved, others = _split(config, anchors, queries)
    predictions: dict[str, jax.Array] = {}
    if anchors is not None or others or not moved:
        network = model.clone(config=plain, parent=None)
        mutable = ["cache"] if anchors is not None else []
        predictions, updated = network.apply(
            variables, anchors=anchors, queries=others, mutable=mutable, **encoded, **options
        )
        variables |= updated
        if model.is_mutable_collection("cache"):
            for name, entry in updated.get("cache", {}).items():
                model.put_variable("cache", name, entry)
    if moved:
        implementation = config.implementation if config.implementation in FORWARD_MODE else "xla"
        network = model.clone(config=dataclasses.replace(plain, implementation=implementation), parent=None)
        potentials = {f"query_{b}_{name}" for b in moved for name in config.vector_potentials[b]}

        def potential(positions: Positions) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
            outputs: Any = network.apply(variables, queries=positions, **options)
            return {name: outputs.pop(name) for name in potentials}, outputs

        curls, rest = curl_by_token(potential, moved)
        for branch in moved:
            num_anchors = 0 if anchors is None else anchors[branch].shape[1]
            for name in config.fields[branch]:
                key = f"query_{branch}_{name}"
                if anchors is not None and key in curls:
                    predictions[f"{branch}_{name}"] = curls[key][:, :num_anchors]
                if branch in queries:
                    predictions[key] = (curls | rest)[key][:, num_anchors:]
    return predictions


def _split(
    config: AbUptConfig, anchors: Positions | None, queries: Positions
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the tokens of branches with potentials, anchors before queries, and the queries of the others."""
    moved = {}
    for branch in config.vector_potentials:
        parts = [given[branch] for given in (anchors, queries) if given is not None and branch in given]
        for part in parts:
            if part.ndim != 3 or part.shape[2] != 3:
                expected = "[batch, tokens, 3]"
                raise ValueError(f"the positions of {branch!r} must have the shape {expected}, got {list(part.shape)}")
        if parts:
            moved[branch] = jnp.concatenate(parts, axis=1).astype(jnp.float32)
    return moved, {branch: position for branch, position in queries.items() if branch not in moved}
