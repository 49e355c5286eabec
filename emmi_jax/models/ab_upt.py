"""AB-UPT: a transformer over anchors and queries of several branches, beside a geometry branch."""

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
from emmi_jax.layers.supernode_pooling import Geometry, SupernodePooling, supernodes
from emmi_jax.layers.transformer_block import TransformerBlock, UntiedTransformerBlock
from emmi_jax.models.inputs import ANCHORS, Arrays, Sequence, check_inputs, lay_out
from emmi_jax.models.vector_potentials import predict_with_curls
from emmi_jax.ops.rope import RopeFrequencies, rope_frequencies
from emmi_jax.ops.sincos import sincos_embedding
from emmi_jax.tokens import owning_branch, token_slices

ATTENTION = {"self": SelfAnchorAttention, "cross": CrossAnchorAttention, "joint": JointAnchorAttention}


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
        geometry: Geometry | None = None,
        condition: jax.Array | None = None,
        anchor_masks: Mapping[str, jax.Array] | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """Predicts the fields at anchors and queries.

        With ``mutable=["cache"]`` the keys and values of anchors and geometry are stored in the ``cache`` collection;
        a later call without anchors and geometry reads them, for any subset of branches. Positions are float32 and
        scaled to about 0 … 1000.

        Args:
            anchors: Positions [B, T, n] of each branch; None reads them from the cache.
            queries: Positions [B, T, n] of any of the branches.
            geometry: Points and supernodes, if a physics block is a perceiver; None reads them from the cache.
            condition: Array [B, condition_dim], if the configuration has one.
            anchor_masks: Booleans [B, T] of any of the branches, True = real anchor. No token attends to the other
                anchors, and their positions do not matter.
            deterministic: Whether drop path is off; if not, an rng named ``dropout`` is needed.

        Returns:
            ``{branch}_{field}`` at anchors and ``query_{branch}_{field}`` at queries, each [B, T, channels].

        Raises:
            ValueError: Inputs do not fit the configuration or each other; the message names the argument.
        """
        config, queries, anchor_masks = self.config, queries or {}, anchor_masks or {}
        check_inputs(config, anchors, queries, geometry, condition, anchor_masks)
        # A gradient through NaN stays NaN, even behind a mask.
        real = {branch: jnp.where(mask[..., None], (anchors or {})[branch], 0) for branch, mask in anchor_masks.items()}
        anchors = None if anchors is None else {**anchors, **real}
        network = _Network(dataclasses.replace(config, vector_potentials={}))
        encoded: dict[str, Any] = {"anchors": anchors, "geometry": geometry, "anchor_masks": anchor_masks}
        options: dict[str, Any] = {"condition": condition, "deterministic": deterministic}
        if not config.vector_potentials or self.is_initializing():
            nn.share_scope(self, network)
            return network(**encoded, queries=queries, **options)
        if self.has_rng("dropout"):
            options["rngs"] = {"dropout": self.make_rng("dropout")}
        predictions, cache = predict_with_curls(
            network.clone(parent=None), self.variables, config, encoded=encoded, queries=queries, options=options
        )
        if self.is_mutable_collection("cache"):
            for name, entry in cache.items():
                self.put_variable("cache", name, entry)
        return predictions


class _GeometryTokens(NamedTuple):
    """What a perceiver attends to; all None where it is cached.

    Attributes:
        tokens: Array [B, M, C].
        freqs: Their rotations.
        mask: Booleans [B, 1, 1, M], True = real supernode.
    """

    tokens: jax.Array | None = None
    freqs: RopeFrequencies | None = None
    mask: jax.Array | None = None


class _Network(nn.Module):
    """The network, whose fields are its channels; its inputs are checked."""

    config: AbUptConfig

    @nn.compact
    def __call__(
        self,
        *,
        anchors: Arrays | None = None,
        queries: Arrays,
        geometry: Geometry | None = None,
        anchor_masks: Arrays | None = None,
        condition: jax.Array | None = None,
        deterministic: bool = True,
    ) -> dict[str, jax.Array]:
        """Predicts as `AnchoredBranchedUPT` does."""
        config = self.config
        step = functools.partial(self._run, condition=condition, deterministic=deterministic)
        sequence = lay_out(config, anchors, queries, anchor_masks or {})
        x = self._embed(sequence)
        encoded = _GeometryTokens() if geometry is None else self._encode_geometry(step, geometry)
        for i, kind in enumerate(config.physics_blocks):
            name = f"physics_blocks_{i}"
            if kind.startswith("perceiver"):
                block = self._perceiver_block(kind, name)
                specs = sequence.specs if kind.endswith("_untied") else None
                x = step(block, x, encoded.tokens, sequence.freqs, encoded.freqs, mask=encoded.mask, token_specs=specs)
            else:
                block = self._transformer_block(kind, config.branches, name)
                x = step(block, x, freqs=sequence.freqs, token_specs=sequence.specs, key_padding_mask=sequence.mask)
        predictions: dict[str, jax.Array] = {}
        for branch in config.branches:
            predictions |= self._decode(step, branch, x, sequence)
        return predictions

    def _embed(self, sequence: Sequence) -> jax.Array:
        """Returns the tokens [B, T, C]: position embeddings, through an MLP per branch."""
        config = self.config
        embedded = sincos_embedding(sequence.positions, config.dim, config.max_wavelength)
        embedded = embedded.astype(config.dtype or embedded.dtype)
        tokens = [
            Mlp(config.dim, config.dim, config, names=("mlp_0", "mlp_2"), name=f"{branch}_bias")(embedded[:, rows])
            for branch, rows in sequence.rows.items()
        ]
        return jnp.concatenate(tokens, axis=1)

    def _encode_geometry(self, step: Callable[..., jax.Array], geometry: Geometry) -> _GeometryTokens:
        config = self.config
        pooling = SupernodePooling(config.dim, config.supernode_pooling, config, config.max_wavelength, name="encoder")
        tokens = pooling(geometry)
        position, is_real = supernodes(geometry)
        freqs = rope_frequencies(position, config.head_dim, config.max_wavelength)
        for i in range(config.geometry_depth):
            block = TransformerBlock(config.attention, **self._block_options, name=f"geometry_blocks_{i}")
            tokens = step(block, tokens, freqs=freqs, key_padding_mask=is_real)
        return _GeometryTokens(tokens, freqs, is_real[:, None, None, :])

    def _decode(
        self, step: Callable[..., jax.Array], branch: str, x: jax.Array, sequence: Sequence
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
