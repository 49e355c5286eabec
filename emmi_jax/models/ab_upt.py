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
from emmi_jax.layers.conditioner import Conditioner
from emmi_jax.layers.dropout import Flag
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.mlp import Mlp
from emmi_jax.layers.perceiver_block import PerceiverBlock, UntiedPerceiverBlock
from emmi_jax.layers.readout import Readout
from emmi_jax.layers.supernode_pooling import Geometry, SupernodePooling, supernodes
from emmi_jax.layers.transformer_block import TransformerBlock, UntiedTransformerBlock
from emmi_jax.models.inputs import ANCHORS, Arrays, Condition, Tokens, TokenSequence, build_token_sequence, check_inputs
from emmi_jax.models.vector_potentials import predict_with_curls
from emmi_jax.ops.rope import RopeFrequencies, rope_frequencies
from emmi_jax.ops.rows import concat_tokens, split_tokens
from emmi_jax.ops.sincos import sincos_embedding
from emmi_jax.tokens import owning_branch, specs_of_branch, token_slices

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
        condition: Condition | None = None,
        anchor_masks: Mapping[str, jax.Array] | None = None,
        anchor_features: Mapping[str, jax.Array] | None = None,
        query_features: Mapping[str, jax.Array] | None = None,
        deterministic: Flag = True,
    ) -> dict[str, jax.Array]:
        """Predicts the fields at anchors and queries.

        With ``mutable=["cache"]`` the keys and values of anchors and geometry are stored in the ``cache`` collection;
        a later call without anchors and geometry reads them, for any subset of branches. Positions are float32 and
        scaled to about 0 … 1000.

        Args:
            anchors: Positions [B, T, n] of each branch; None reads them from the cache.
            queries: Positions [B, T, n] of any of the branches.
            geometry: Points and supernodes, if a physics block is a perceiver; None reads them from the cache.
            condition: Array [B, condition_dim], if the configuration has one; with named conditions, an array
                [B, channels] for each.
            anchor_masks: Booleans [B, T] of any of the branches, True = real anchor. No token attends to the other
                anchors, and neither their positions nor their features matter.
            anchor_features: Features [B, T, channels] of the anchors of any branch in `feature_dims`. Tokens without
                features get nothing added, not the same as features of 0.
            query_features: Features of the queries, likewise.
            deterministic: Whether drop path is off; if not, an rng named ``dropout`` is needed.

        Returns:
            ``{branch}_{field}`` at anchors and ``query_{branch}_{field}`` at queries, each [B, T, channels].

        Raises:
            ValueError: Inputs do not fit the configuration or each other; the message names the argument.
        """
        config, anchor_masks = self.config, anchor_masks or {}
        tokens = Tokens(anchors, queries or {}, anchor_features or {}, query_features or {})
        check_inputs(config, tokens, geometry, condition, anchor_masks)
        tokens = tokens.silenced(anchor_masks)
        network = _Network(dataclasses.replace(config, vector_potentials={}))
        encoded: dict[str, Any] = {"geometry": geometry, "anchor_masks": anchor_masks}
        options: dict[str, Any] = {"condition": condition, "deterministic": deterministic}
        if not config.vector_potentials or self.is_initializing():
            nn.share_scope(self, network)
            return network(tokens, **encoded, **options)
        if self.has_rng("dropout"):
            options["rngs"] = {"dropout": self.make_rng("dropout")}
        predictions, cache = predict_with_curls(
            network.clone(parent=None), self.variables, config, tokens, encoded=encoded, options=options
        )
        if self.is_mutable_collection("cache"):
            for name, entry in cache.items():
                self.put_variable("cache", name, entry)
        return predictions


class _GeometryTokens(NamedTuple):
    """Keys of a perceiver; all None where it is cached.

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
        tokens: Tokens,
        *,
        geometry: Geometry | None = None,
        anchor_masks: Arrays | None = None,
        condition: Condition | None = None,
        deterministic: Flag = True,
    ) -> dict[str, jax.Array]:
        """Predicts as `AnchoredBranchedUPT` does."""
        config = self.config
        sequence = build_token_sequence(config, tokens, anchor_masks or {})
        x = self._embed(sequence)
        conditions = self._conditions(condition)
        step = functools.partial(self._run, condition=conditions[0], deterministic=deterministic)
        encoded = _GeometryTokens()
        if geometry is not None:
            of_geometry = functools.partial(self._run, condition=conditions[1], deterministic=deterministic)
            encoded = self._encode_geometry(of_geometry, geometry)
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
            predictions |= self._decode(step, branch, x, sequence, conditions[0])
        return predictions

    def _conditions(self, condition: Condition | None) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns the condition [B, condition_dim] of all blocks, and that of the geometry blocks."""
        config = self.config
        if not isinstance(condition, Mapping):
            return condition, condition

        def embed(name: str, dims: Mapping[str, int]) -> jax.Array:
            return Conditioner(dims, config.condition_dim or config.dim, config.others, name=name)(condition)

        of_all = embed("conditioner", config.conditioning_dims or {})
        if config.geometry_conditioning_dims is None:
            return of_all, of_all
        # The geometry is cached where only queries are computed.
        if not config.geometry_conditioning_dims or not config.has_geometry:
            return of_all, None
        return of_all, embed("geometry_conditioner", config.geometry_conditioning_dims)

    def _embed(self, sequence: TokenSequence) -> jax.Array:
        """Returns the tokens [B, T, C]: position embeddings and features, each through an MLP per branch."""
        config = self.config
        embedded = sincos_embedding(sequence.positions, config.dim, config.max_wavelength)
        embedded = embedded.astype(config.dtype or embedded.dtype)
        mlp = functools.partial(
            Mlp, config.dim, config.dim, config.others, ("mlp_0", "mlp_2"), use_bias=self._has_outer_biases
        )
        tokens = []
        for branch, rows in sequence.rows.items():
            x = mlp(name=f"{branch}_bias")(embedded[:, rows])
            if branch in config.feature_dims:
                x = self._add_features(mlp(name=f"{branch}_features"), x, branch, sequence)
            tokens.append(x)
        return jnp.concatenate(tokens, axis=1)

    def _add_features(self, mlp: Mlp, x: jax.Array, branch: str, sequence: TokenSequence) -> jax.Array:
        """Adds features, through their MLP, to those groups of a branch's tokens x [B, T, C] that have them."""
        if self.is_initializing():
            mlp(jnp.zeros((1, 1, self.config.feature_dims[branch]), x.dtype))
        specs = specs_of_branch(sequence.specs, branch, self.config.branches)
        groups = split_tokens(x, {spec.name: spec.size for spec in specs if spec.size is not None})
        if not groups:
            return x
        return concat_tokens(
            part + mlp(sequence.features[name].astype(x.dtype)) if name in sequence.features else part
            for name, part in groups.items()
        )

    def _encode_geometry(self, step: Callable[..., jax.Array], geometry: Geometry) -> _GeometryTokens:
        config = self.config
        tokens = SupernodePooling(config.dim, config.supernode_pooling, config.others, name="encoder")(geometry)
        position, is_real = supernodes(geometry)
        freqs = rope_frequencies(position, config.head_dim, config.max_wavelength)
        options = self._block_options
        if config.geometry_conditioning_dims is not None and not config.geometry_conditioning_dims:
            options |= {"condition_dim": None}
        attention = dataclasses.replace(config.attention, qk_norm=bool(config.qk_norm))
        for i in range(config.geometry_depth):
            block = TransformerBlock(attention, **options, name=f"geometry_blocks_{i}")
            tokens = step(block, tokens, freqs=freqs, key_padding_mask=is_real)
        return _GeometryTokens(tokens, freqs, is_real[:, None, None, :])

    def _decode(
        self,
        step: Callable[..., jax.Array],
        branch: str,
        x: jax.Array,
        sequence: TokenSequence,
        condition: jax.Array | None,
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
        options: dict[str, Any] = {"use_bias": self._has_outer_biases, "name": f"{branch}_decoder"}
        if config.readout_norm:
            y = Readout(sum(fields.values()), config.others, config.condition_dim, **options)(x, condition)
        else:
            y = Linear(sum(fields.values()), config.others, axes=("embed", "fields"), **options)(x)
        predictions = {}
        for spec_name, tokens in token_slices(specs).items():
            prefix = branch if spec_name == f"{branch}{ANCHORS}" else f"query_{branch}"
            start = 0
            for name, channels in fields.items():
                predictions[f"{prefix}_{name}"] = y[:, tokens, start : start + channels]
                start += channels
        return predictions

    @property
    def _has_outer_biases(self) -> bool:
        """Whether linear layers outside blocks have biases."""
        return self.config.bias or self.config.bias_scope != "all"

    @property
    def _block_options(self) -> dict[str, Any]:
        """Options of all blocks but perceivers."""
        config = self.config
        return self._common_options | {
            "layer_scale": config.layer_scale,
            "drop_path_rate": config.drop_path_rate,
            "mlp_hidden_dim": config.mlp_hidden_dim,
            "eps": config.eps,
        }

    @property
    def _common_options(self) -> dict[str, Any]:
        config = self.config
        bias = True if config.bias_scope == "attention" else None
        return {
            "mlp_ratio": config.mlp_ratio,
            "condition_dim": config.condition_dim,
            "norm": config.norm,
            "norm_bias": bias,
            "mlp_bias": bias,
        }

    def _transformer_block(self, kind: str, branches: tuple[str, ...], name: str) -> nn.Module:
        attention_config = dataclasses.replace(self.config.attention, branches=branches, anchor_suffix=ANCHORS)
        options = {"attention": ATTENTION[kind.removesuffix("_untied")], **self._block_options}
        if kind.endswith("_untied"):
            options["mlp_bias"] = True
            return UntiedTransformerBlock(TransformerBlock(attention_config, **options, parent=None), name=name)
        return TransformerBlock(attention_config, **options, name=name)

    def _perceiver_block(self, kind: str, name: str) -> nn.Module:
        config = self.config
        options = self._block_options if config.option_scope == "all" else self._common_options
        if kind.endswith("_untied"):
            block = PerceiverBlock(config.others, **options | {"mlp_bias": True}, parent=None)
            return UntiedPerceiverBlock(block, config.branches, name=name)
        return PerceiverBlock(config.others, **options, name=name)

    def _run(self, block: nn.Module, *args: Any, token_specs: Any = None, deterministic: Flag, **kwargs: Any) -> Any:
        """Calls a block, under rematerialisation if the configuration says so."""
        static = {"deterministic": deterministic} | ({} if token_specs is None else {"token_specs": token_specs})

        def call(block: Any, *args: Any, **kwargs: Any) -> Any:
            return block(*args, **kwargs, **static)

        return (nn.remat(call) if self.config.remat else call)(block, *args, **kwargs)
