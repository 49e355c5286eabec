"""Inputs of the model: checks of the arguments, and the layout of their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from emmi_jax.config import AbUptConfig
from emmi_jax.layers.supernode_pooling import Geometry, check_geometry
from emmi_jax.ops.arrays import AnyArray, check_array
from emmi_jax.ops.rope import RopeFrequencies, rope_frequencies
from emmi_jax.tokens import TokenSpec

# A colon, which no branch name holds, keeps the groups of a branch apart from a branch called "surface_anchors".
ANCHORS, QUERIES = ":anchors", ":queries"

Arrays: TypeAlias = Mapping[str, jax.Array]
Condition: TypeAlias = jax.Array | Arrays
"""A condition [B, channels], or one by name each."""


class Tokens(NamedTuple):
    """Inputs of tokens, each by branch; a pytree.

    Attributes:
        anchors: Positions [B, T, n] of the anchors; None where they are cached.
        queries: Positions of the queries.
        anchor_features: Features [B, T, channels] of the anchors.
        query_features: Features of the queries.
    """

    anchors: Arrays | None
    queries: Arrays
    anchor_features: Arrays
    query_features: Arrays

    def silenced(self, anchor_masks: Arrays) -> Tokens:
        """Returns tokens whose masked anchors are 0: a gradient through NaN stays NaN, even behind a mask."""
        if self.anchors is None:
            return self

        def silence(given: Arrays) -> Arrays:
            real = {b: jnp.where(mask[..., None], given[b], 0) for b, mask in anchor_masks.items() if b in given}
            return {**given, **real}

        return self._replace(anchors=silence(self.anchors), anchor_features=silence(self.anchor_features))


def check_inputs(
    config: AbUptConfig,
    tokens: Tokens,
    geometry: Geometry | None,
    condition: Condition | None,
    anchor_masks: Arrays,
) -> None:
    """Checks the arguments of a call of the model against the configuration and one another.

    Raises:
        ValueError: Something does not fit; the message names the argument.
    """
    anchors, queries = tokens.anchors, tokens.queries
    _check_branches(config, anchors, queries, anchor_masks)
    arrays: dict[str, AnyArray] = {}
    for group, given in (("anchors", anchors or {}), ("queries", queries)):
        for branch, positions in given.items():
            name = f"{group}[{branch!r}]"
            check_array(name, positions, "float32", ("batch", "tokens", config.num_position_axes))
            arrays[name] = positions
    if not arrays:
        raise ValueError("there is nothing to compute: neither anchors nor queries are given")
    for branch, mask in anchor_masks.items():
        check_array(f"anchor_masks[{branch!r}]", mask, "bool", (anchors or {})[branch].shape[:2])
    _check_features(config, "anchor_features", tokens.anchor_features, anchors or {})
    _check_features(config, "query_features", tokens.query_features, queries)
    _check_geometry_is_wanted(config, anchors is not None, geometry is not None)
    if geometry is not None:
        check_geometry(geometry, config.num_position_axes, config.supernode_pooling.input_features_dim)
        arrays["geometry.position"] = geometry.position
    arrays |= _checked_conditions(config, condition)
    sizes = {name: array.shape[0] for name, array in arrays.items()}
    if any(size != next(iter(sizes.values())) for size in sizes.values()):
        raise ValueError(f"all inputs must have the same batch size, got {sizes!r}")


def _checked_conditions(config: AbUptConfig, condition: Condition | None) -> dict[str, AnyArray]:
    """Returns the arrays of a condition by the name of the argument."""
    if config.conditioning_dims is None:
        if condition is not None and config.condition_dim is not None:
            if isinstance(condition, Mapping):
                raise ValueError(
                    f"the configuration has condition_dim={config.condition_dim} and no conditioning_dims, "
                    f"but condition names {sorted(condition)!r}"
                )
            check_array("condition", condition, "floating point", ("batch", config.condition_dim))
            return {"condition": condition}
        if condition is not None or config.condition_dim is not None:
            state = "missing" if condition is None else "given"
            raise ValueError(f"the configuration has condition_dim={config.condition_dim} but condition is {state}")
        return {}
    dims = config.named_conditions
    given = sorted(condition) if isinstance(condition, Mapping) else type(condition).__name__
    if not isinstance(condition, Mapping) or set(condition) != set(dims):
        raise ValueError(f"condition must name {sorted(dims)!r}, as conditioning_dims do, got {given!r}")
    for name, channels in dims.items():
        check_array(f"condition[{name!r}]", condition[name], "floating point", ("batch", channels))
    return {f"condition[{name!r}]": array for name, array in condition.items()}


def _check_features(config: AbUptConfig, what: str, features: Arrays, positions: Arrays) -> None:
    for branch, array in features.items():
        if branch not in config.feature_dims:
            raise ValueError(f"{what} name branch {branch!r}, which is not in feature_dims {config.feature_dims!r}")
        if branch not in positions:
            raise ValueError(f"{what} name branch {branch!r}, but there are no positions of such tokens")
        shape = (*positions[branch].shape[:2], config.feature_dims[branch])
        check_array(f"{what}[{branch!r}]", array, "floating point", shape)


def _check_branches(config: AbUptConfig, anchors: Arrays | None, queries: Arrays, anchor_masks: Arrays) -> None:
    branches = config.branches
    if anchors is not None and set(anchors) != set(branches):
        raise ValueError(f"anchors must name the branches {list(branches)!r}, got {sorted(anchors)!r}")
    for what, names in (("queries", queries), ("anchor_masks", anchor_masks)):
        if unknown := sorted(set(names) - set(branches)):
            raise ValueError(f"{what} name the unknown branches {unknown!r}; the branches are {list(branches)!r}")
    if anchors is None and anchor_masks:
        raise ValueError(f"anchor_masks {sorted(anchor_masks)!r} are given but the anchors are read from the cache")


def _check_geometry_is_wanted(config: AbUptConfig, has_anchors: bool, has_geometry: bool) -> None:
    wants_geometry = config.has_geometry and has_anchors
    if wants_geometry == has_geometry:
        return
    if wants_geometry:
        raise ValueError(f"the physics blocks {list(config.physics_blocks)!r} read a geometry, but geometry is missing")
    if config.has_geometry:
        raise ValueError("anchors are read from the cache, and the geometry with them, but geometry is given")
    raise ValueError("no physics block is a perceiver, but geometry is given")


class TokenSequence(NamedTuple):
    """All tokens, branch after branch, the anchors of each before its queries.

    Attributes:
        specs: Names and sizes of the groups.
        rows: Where each branch lies.
        positions: Coordinates [B, T, n].
        freqs: Rotations of the tokens.
        mask: Booleans [B, T], True = real token; None means that all are.
        features: Features of those groups that have them.
    """

    specs: tuple[TokenSpec, ...]
    rows: dict[str, slice]
    positions: jax.Array
    freqs: RopeFrequencies
    mask: jax.Array | None
    features: Arrays


def build_token_sequence(config: AbUptConfig, tokens: Tokens, anchor_masks: Arrays) -> TokenSequence:
    """Lays out checked inputs as one sequence."""
    anchors, queries = tokens.anchors, tokens.queries
    sides = ((ANCHORS, anchors or {}, tokens.anchor_features), (QUERIES, queries, tokens.query_features))
    specs, rows, arrays, masks, features = [], {}, [], [], {}
    start = 0
    for branch in config.branches:
        size = 0
        for suffix, given, of_tokens in sides:
            positions = given.get(branch)
            if branch in of_tokens:
                features[f"{branch}{suffix}"] = of_tokens[branch]
            if positions is not None:
                mask = anchor_masks.get(branch) if suffix == ANCHORS else None
                masks.append(jnp.ones_like(positions[..., 0], bool) if mask is None else jnp.asarray(mask))
                arrays.append(positions)
                size += positions.shape[1]
            if positions is not None or suffix == ANCHORS:
                specs.append(TokenSpec(f"{branch}{suffix}", None if positions is None else positions.shape[1]))
        rows[branch] = slice(start, start + size)
        start += size
    positions = jnp.concatenate(arrays, axis=1)
    freqs = rope_frequencies(positions, config.head_dim, config.max_wavelength)
    mask = jnp.concatenate(masks, axis=1) if anchor_masks else None
    return TokenSequence(tuple(specs), rows, positions, freqs, mask, features)
