"""AB-UPT: a transformer over anchors and queries of several branches, with a geometry branch beside them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AbUptConfig
from emmi_jax.layers.anchor_attention import CrossAnchorAttention, JointAnchorAttention, SelfAnchorAttention
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.mlp import Mlp
from emmi_jax.layers.perceiver_block import PerceiverBlock, UntiedPerceiverBlock
from emmi_jax.layers.supernode_pooling import SupernodePooling
from emmi_jax.layers.transformer_block import TransformerBlock, UntiedTransformerBlock
from emmi_jax.models.vector_potentials import predict_with_curls
from emmi_jax.ops.neighbors import Neighbors
from emmi_jax.ops.rope import RopeFrequencies, rope_frequencies
from emmi_jax.ops.sincos import sincos_embedding
from emmi_jax.tokens import TokenSpec, owning_branch, token_slices

ATTENTION = {"self": SelfAnchorAttention, "cross": CrossAnchorAttention, "joint": JointAnchorAttention}
# A colon, which no branch name holds, keeps the groups of a branch apart from a branch called "surface_anchors".
ANCHORS, QUERIES = ":anchors", ":queries"


class AnchoredBranchedUPT(nn.Module):
    """The AB-UPT model.

    Args:
        config: Sizes, branches and fields.

    Source: Alkin et al. 2025, "AB-UPT: Scaling neural CFD surrogates for high-fidelity automotive aerodynamics
    simulations via anchored-branched universal physics transformers" (arXiv 2502.09692).
    """

    config: AbUptConfig

    @nn.compact
    def __call__(
        self,
        *,
        anchors: Mapping[str, jax.Array] | None = None,
        queries: Mapping[str, jax.Array] | None = None,
        geometry_position: jax.Array | None = None,
        supernode_idx: jax.Array | None = None,
        neighbor_idx: jax.Array | None = None,
        neighbor_mask: jax.Array | None = None,
        geometry_features: jax.Array | None = None,
        condition: jax.Array | None = None,
        anchor_masks: Mapping[str, jax.Array] | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """Predicts the fields at anchors and queries.

        With ``mutable=["cache"]`` the keys and values of anchors and geometry are stored in the ``cache`` collection;
        a later call without anchors and geometry reads them, for any subset of branches. Positions are scaled to about
        0 … 1000.

        Args:
            anchors: Positions [B, T, n] of each branch; None reads them from the cache.
            queries: Positions [B, T, n] of any of the branches.
            geometry_position: Points of the geometry [B, P, n], in the units of the pooling radius.
            supernode_idx: Which of the points are supernodes [B, M].
            neighbor_idx: Points around each supernode [B, M, K]; searched for on the device if None.
            neighbor_mask: Booleans [B, M, K], True = a neighbour; None with `neighbor_idx` means that all are.
            geometry_features: Point features [B, P, F], if the pooling has `input_features_dim`.
            condition: Array [B, condition_dim], if the configuration has one.
            anchor_masks: Booleans [B, T] of any of the branches, True = real anchor; others are never attended to.
            deterministic: Whether drop path is off; if not, an rng named ``dropout`` is needed.

        Returns:
            ``{branch}_{field}`` at anchors and ``query_{branch}_{field}`` at queries, each [B, T, channels].

        Raises:
            ValueError: Inputs do not fit the configuration or each other; the message names the branch or value.
        """
        config = self.config
        if config.vector_potentials and not self.is_initializing():
            encoded = {
                "geometry_position": geometry_position,
                "supernode_idx": supernode_idx,
                "neighbor_idx": neighbor_idx,
                "neighbor_mask": neighbor_mask,
                "geometry_features": geometry_features,
                "anchor_masks": anchor_masks,
            }
            options = {"condition": condition, "deterministic": deterministic}
            return predict_with_curls(
                self, config, anchors=anchors, queries=queries or {}, encoded=encoded, options=options
            )
        self._check_inputs(anchors, geometry_position, supernode_idx)
        _check_neighbors(supernode_idx, neighbor_idx, neighbor_mask, geometry_features)
        sequence = _lay_out(config, anchors, queries or {}, anchor_masks or {})
        embedded = sincos_embedding(sequence.positions, config.dim, config.max_wavelength)
        embedded = embedded.astype(config.dtype or embedded.dtype)
        tokens = [
            Mlp(config.dim, config.dim, config, names=("mlp_0", "mlp_2"), name=f"{branch}_bias")(embedded[:, rows])
            for branch, rows in sequence.rows.items()
        ]
        x = jnp.concatenate(tokens, axis=1)
        step = functools.partial(self._run, condition=condition, deterministic=deterministic)
        geometry, geometry_freqs = None, None
        if geometry_position is not None and supernode_idx is not None:
            neighbors = None
            if neighbor_idx is not None:
                mask = jnp.ones(neighbor_idx.shape, bool) if neighbor_mask is None else neighbor_mask
                neighbors = Neighbors(neighbor_idx, mask)
            geometry, geometry_freqs = self._encode_geometry(
                step, geometry_position, supernode_idx, geometry_features, neighbors
            )
        for i, kind in enumerate(config.physics_blocks):
            name = f"physics_blocks_{i}"
            if kind.startswith("perceiver"):
                block = self._perceiver_block(kind, name)
                specs = sequence.specs if kind.endswith("_untied") else None
                x = step(block, x, geometry, sequence.freqs, geometry_freqs, token_specs=specs)
            else:
                block = self._transformer_block(kind, config.branches, name)
                x = step(block, x, freqs=sequence.freqs, token_specs=sequence.specs, key_padding_mask=sequence.mask)
        predictions: dict[str, jax.Array] = {}
        for branch in config.branches:
            predictions |= self._decode(step, branch, x, sequence)
        return predictions

    def _encode_geometry(
        self,
        step: Callable[..., jax.Array],
        position: jax.Array,
        supernode_idx: jax.Array,
        features: jax.Array | None,
        neighbors: Neighbors | None,
    ) -> tuple[jax.Array, RopeFrequencies]:
        """Returns the geometry tokens [B, M, C] and their rotations."""
        config = self.config
        pooling = SupernodePooling(config.dim, config.supernode_pooling, config, config.max_wavelength, name="encoder")
        tokens = pooling(position, supernode_idx, features=features, neighbors=neighbors)
        supernodes = jnp.take_along_axis(position, supernode_idx[..., None], axis=1)
        freqs = rope_frequencies(supernodes, config.head_dim, config.max_wavelength)
        for i in range(config.geometry_depth):
            block = TransformerBlock(config.attention, **self._block_options, name=f"geometry_blocks_{i}")
            tokens = step(block, tokens, freqs=freqs)
        return tokens, freqs

    def _decode(
        self, step: Callable[..., jax.Array], branch: str, x: jax.Array, sequence: _Sequence
    ) -> dict[str, jax.Array]:
        """Returns the fields of one branch; none if only its cached anchors take part."""
        config, rows = self.config, sequence.rows[branch]
        specs = tuple(spec for spec in sequence.specs if owning_branch(spec.name, config.branches) == branch)
        if all(spec.size is None for spec in specs):
            return {}
        x = x[:, rows]
        freqs = RopeFrequencies(*(f[:, rows] for f in sequence.freqs))
        mask = None if sequence.mask is None else sequence.mask[:, rows]
        for i in range(config.decoder_depths.get(branch, 0)):
            block = self._transformer_block("self", (branch,), f"{branch}_decoder_blocks_{i}")
            x = step(block, x, freqs=freqs, token_specs=specs, key_padding_mask=mask)
        fields = config.fields[branch]
        y = Linear(sum(fields.values()), config, axes=("embed", "fields"), name=f"{branch}_decoder")(x)
        predictions = {}
        for spec_name, tokens in token_slices(specs).items():
            prefix = branch if spec_name == f"{branch}{ANCHORS}" else f"query_{branch}"
            start = 0
            for name, channels in fields.items():
                predictions[f"{prefix}_{name}"] = y[:, tokens, start : start + channels]
                start += channels
        return predictions

    @property
    def _block_options(self) -> dict[str, Any]:
        config = self.config
        return {
            "mlp_ratio": config.mlp_ratio,
            "condition_dim": config.condition_dim,
            "layer_scale": config.layer_scale,
            "drop_path_rate": config.drop_path_rate,
        }

    def _transformer_block(self, kind: str, branches: tuple[str, ...], name: str) -> nn.Module:
        attention_config = dataclasses.replace(self.config.attention, branches=branches, anchor_suffix=ANCHORS)
        options = {"attention": ATTENTION[kind.removesuffix("_untied")], **self._block_options}
        if kind.endswith("_untied"):
            return UntiedTransformerBlock(TransformerBlock(attention_config, **options, parent=None), name=name)
        return TransformerBlock(attention_config, **options, name=name)

    def _perceiver_block(self, kind: str, name: str) -> nn.Module:
        if kind.endswith("_untied"):
            block = PerceiverBlock(self.config.attention, **self._block_options, parent=None)
            return UntiedPerceiverBlock(block, self.config.branches, name=name)
        return PerceiverBlock(self.config.attention, **self._block_options, name=name)

    def _run(self, block: nn.Module, *args: Any, token_specs: Any = None, deterministic: bool, **kwargs: Any) -> Any:
        """Calls a block, under rematerialisation if the configuration says so."""
        static = {"deterministic": deterministic} | ({} if token_specs is None else {"token_specs": token_specs})

        def call(block: Any, *args: Any, **kwargs: Any) -> Any:
            return block(*args, **kwargs, **static)

        return (nn.remat(call) if self.config.remat else call)(block, *args, **kwargs)

    def _check_inputs(
        self,
        anchors: Mapping[str, jax.Array] | None,
        geometry_position: jax.Array | None,
        supernode_idx: jax.Array | None,
    ) -> None:
        config = self.config
        if (geometry_position is None) != (supernode_idx is None):
            missing = "geometry_position" if geometry_position is None else "supernode_idx"
            raise ValueError(f"geometry_position and supernode_idx belong together, but {missing} is missing")
        axes = config.num_position_axes
        if geometry_position is not None and (geometry_position.ndim != 3 or geometry_position.shape[2] != axes):
            shape = list(geometry_position.shape)
            raise ValueError(f"geometry_position must have the shape [batch, points, {axes}], got {shape}")
        wants_geometry = config.has_geometry and anchors is not None
        if wants_geometry != (geometry_position is not None):
            reason = (
                f"the physics blocks {list(config.physics_blocks)!r} read a geometry"
                if wants_geometry
                else "no physics block is a perceiver"
                if not config.has_geometry
                else "anchors are read from the cache, and the geometry with them"
            )
            state = "given" if geometry_position is not None else "missing"
            raise ValueError(f"{reason}, but geometry_position is {state}")


def _check_neighbors(
    supernode_idx: jax.Array | None,
    neighbor_idx: jax.Array | None,
    neighbor_mask: jax.Array | None,
    geometry_features: jax.Array | None,
) -> None:
    given = {"neighbor_idx": neighbor_idx, "neighbor_mask": neighbor_mask, "geometry_features": geometry_features}
    if supernode_idx is None:
        if superfluous := [name for name, array in given.items() if array is not None]:
            raise ValueError(f"{', '.join(superfluous)} given without a geometry_position")
        return
    if neighbor_idx is None and neighbor_mask is not None:
        raise ValueError(f"neighbor_mask of shape {list(neighbor_mask.shape)} is given without neighbor_idx")
    if neighbor_idx is not None and neighbor_idx.shape[:2] != supernode_idx.shape:
        expected = [*supernode_idx.shape, "K"]
        raise ValueError(f"neighbor_idx must have the shape {expected}, got {list(neighbor_idx.shape)}")


class _Sequence(NamedTuple):
    """All tokens, branch after branch, in each its anchors and then its queries."""

    specs: tuple[TokenSpec, ...]
    rows: dict[str, slice]
    positions: jax.Array
    freqs: RopeFrequencies
    mask: jax.Array | None


def _lay_out(
    config: AbUptConfig,
    anchors: Mapping[str, jax.Array] | None,
    queries: Mapping[str, jax.Array],
    anchor_masks: Mapping[str, jax.Array],
) -> _Sequence:
    branches = config.branches
    if anchors is not None and set(anchors) != set(branches):
        raise ValueError(f"anchors must name the branches {list(branches)!r}, got {sorted(anchors)!r}")
    if anchors is None and anchor_masks:
        raise ValueError(f"anchor_masks {sorted(anchor_masks)!r} are given but the anchors are read from the cache")
    for what, names in (("queries", queries), ("anchor_masks", anchor_masks)):
        if unknown := sorted(set(names) - set(branches)):
            raise ValueError(f"{what} name the unknown branches {unknown!r}; the branches are {list(branches)!r}")
    groups = {
        f"{branch}{suffix}": given.get(branch)
        for branch in branches
        for suffix, given in ((ANCHORS, anchors or {}), (QUERIES, queries))
        if suffix == ANCHORS or branch in queries
    }
    arrays = {name: array for name, array in groups.items() if array is not None}
    if not arrays:
        raise ValueError("there is nothing to compute: neither anchors nor queries are given")
    batch = next(iter(arrays.values())).shape[0]
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[0] != batch or array.shape[2] != config.num_position_axes:
            expected = f"[{batch}, tokens, {config.num_position_axes}]"
            raise ValueError(f"the positions of {name!r} must have the shape {expected}, got {list(array.shape)}")
    specs = tuple(TokenSpec(name, None if array is None else array.shape[1]) for name, array in groups.items())
    slices, rows, start = token_slices(specs), {}, 0
    for branch in branches:
        stop = max([s.stop for name, s in slices.items() if owning_branch(name, branches) == branch], default=start)
        rows[branch] = slice(start, stop)
        start = stop
    positions = jnp.concatenate(list(arrays.values()), axis=1)
    mask = None
    if anchor_masks:
        mask = jnp.ones(positions.shape[:2], bool)
        for branch, anchor_mask in anchor_masks.items():
            here = slices[f"{branch}{ANCHORS}"]
            if anchor_mask.dtype != bool or anchor_mask.shape != (batch, here.stop - here.start):
                raise ValueError(
                    f"the anchor mask of {branch!r} must be bool of shape {[batch, here.stop - here.start]}, "
                    f"got {anchor_mask.dtype} of shape {list(anchor_mask.shape)}"
                )
            mask = mask.at[:, here].set(anchor_mask)
    return _Sequence(specs, rows, positions, rope_frequencies(positions, config.head_dim, config.max_wavelength), mask)
