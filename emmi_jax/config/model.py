"""Configuration of the whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emmi_jax.config.base import Config, FrozenMapping, as_mapping
from emmi_jax.config.checks import (
    as_names,
    check_count,
    check_finite,
    check_heads,
    check_mlp,
    check_name,
    check_not_negative,
    check_positive,
    check_rate,
)
from emmi_jax.config.layers import NORMS, AnchorAttentionConfig, NumericsConfig, SupernodePoolingConfig
from emmi_jax.config.setting import setting

MOST_BLOCKS = 1000
PHYSICS_BLOCKS = ("perceiver", "self", "cross", "joint")
BIAS_SCOPES = ("all", "transformer_blocks", "attention")
OPTION_SCOPES = ("transformer_blocks", "all")


def _check_qk_norm(name: str, value: Any) -> None:
    if not isinstance(value, bool) and value != "geometry":
        raise ValueError(f"{name} must be True, False or 'geometry', got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LayoutConfig(NumericsConfig):
    """Blocks of a model and their widths."""

    dim: int = setting(dataclasses.MISSING, "Channels C of the model.", low=1, option="--dim")
    num_heads: int = setting(dataclasses.MISSING, "Number of heads N; must divide `dim`.", low=1)
    physics_blocks: tuple[str, ...] = setting(
        ("perceiver", "self", "cross", "self", "cross", "self"),
        "``perceiver``, ``self`` (also spelled ``shared``), ``cross`` and ``joint``, each also with the suffix "
        "``_untied``: one set of weights per branch.",
    )
    decoder_depths: Mapping[str, int] = setting(
        lambda: {"surface": 6, "volume": 6}, "Number of decoder blocks of each branch; branches left out have 0."
    )
    geometry_depth: int = setting(1, "Number of transformer blocks after supernode pooling.", low=0, high=MOST_BLOCKS)
    supernode_pooling: SupernodePoolingConfig = setting(SupernodePoolingConfig, "Configuration of the pooling.")


@dataclass(frozen=True, kw_only=True)
class BlockConfig(LayoutConfig):
    """Contents of blocks, and the parts of a model that they reach."""

    mlp_hidden_dim: int | None = setting(
        None, "Hidden channels of the MLPs in all blocks but perceivers, instead of `mlp_ratio`.", low=1
    )
    eps: float = setting(
        1e-6,
        "What norms in all blocks but perceivers, where it is 1e-6, add to the variance or mean square.",
        check=check_not_negative,
    )
    norm: str = setting(
        "layer", "Norms of all blocks: ``layer``, or ``rms`` as in the reference since May 2026.", choices=NORMS
    )
    qk_norm: str | bool = setting(
        False,
        "Whether queries and keys are RMS-normed: everywhere, or in the ``geometry`` blocks alone.",
        check=_check_qk_norm,
    )
    bias_scope: str = setting(
        "all",
        "What `bias` reaches: ``all`` but modulations, conditioners, MLPs of untied blocks and the pooling, which has "
        "a `bias` of its own; ``transformer_blocks``, as in release 2026.4: all blocks but perceivers; or "
        "``attention``: attention layers alone, as in runs before there was a choice.",
        choices=BIAS_SCOPES,
    )
    option_scope: str = setting(
        "transformer_blocks",
        "What `layer_scale`, `drop_path_rate`, `mlp_hidden_dim`, `eps` and `init_weights` reach: "
        "``transformer_blocks``, as in the reference: all blocks but perceivers, and all else starts from "
        "``truncnormal002``; or ``all``: perceivers as well, and `init_weights` also what is no block.",
        choices=OPTION_SCOPES,
    )
    readout_norm: bool = setting(
        False,
        "Whether an RMSNorm stands before each decoder's linear layer, modulated by the condition if there is one.",
    )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(BlockConfig):
    """Choices of people about a model; the rest follows from the data."""

    mlp_ratio: int | None = setting(
        4,
        "Hidden channels of an MLP over C; none where `mlp_hidden_dim` is given and no block is a perceiver.",
        low=1,
    )
    layer_scale: float | None = setting(None, "Initial layer scale; none for no layer scale.", check=check_finite)
    drop_path_rate: float = setting(
        0.0, "Rate at which a sample skips a residual branch in training, in [0, 1).", check=check_rate
    )
    max_wavelength: float = setting(
        10_000,
        "Largest wavelength over 2 pi of the embeddings of all positions but those that are pooled, which "
        "`supernode_pooling` says.",
        check=check_positive,
    )
    remat: bool = setting(False, "Whether the backward pass recomputes each block instead of storing its activations.")


@dataclass(frozen=True, kw_only=True)
class InputConfig(Config):
    """Inputs beside positions."""

    condition_dim: int | None = setting(
        None,
        "Channels of the condition; none for an unconditioned model. With `conditioning_dims`, the channels that they "
        "are embedded to, C by default.",
        low=1,
    )
    conditioning_dims: Mapping[str, int] | None = setting(
        None,
        "Named conditions and their numbers of channels, each in [-1, 1]. They are embedded to one condition of "
        "`condition_dim` channels.",
    )
    geometry_conditioning_dims: Mapping[str, int] | None = setting(
        None,
        "Named conditions of the geometry blocks, embedded for them alone; an empty mapping for unconditioned geometry "
        "blocks; none for the condition of all blocks.",
    )
    feature_dims: Mapping[str, int] = setting(
        dict, "For any branch, the number of channels of features that may come with its tokens."
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(InputConfig):
    """Options that follow from the data."""

    fields: Mapping[str, Mapping[str, int]] = setting(
        lambda: {"surface": {"pressure": 1, "friction": 3}, "volume": {"velocity": 3, "pressure": 1}},
        "For each branch, in order, its output fields and their numbers of channels.",
    )
    num_position_axes: int = setting(3, "Number of position axes.", low=1)
    vector_potentials: Mapping[str, tuple[str, ...]] = setting(
        dict,
        "For any branch, fields of three channels for which the network predicts a vector potential and the model "
        "returns its curl with respect to the position of the token, so that the field has no divergence. In other "
        "units it keeps none only if one factor scales all channels and constants are added: see `FieldScale.of`. "
        "``cudnn`` and ``splash`` cannot serve them: they have no forward-mode derivative.",
    )


@dataclass(frozen=True, kw_only=True)
class AbUptConfig(DataConfig, ModelOptions):
    """Configuration of an `AnchoredBranchedUPT`; `NumericsConfig` describes the remaining arguments.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.dim, self.num_heads)
        check_mlp(self.mlp_ratio, self.mlp_hidden_dim)
        self._check_conditions()
        self._check_fields()
        self._check_blocks()
        self._check_pooling()
        self._check_vector_potentials()
        self._check_features()
        if self.head_dim < 2 * self.num_position_axes:
            raise ValueError(
                f"rotary embedding of {self.num_position_axes} position axes needs a head_dim of at least "
                f"{2 * self.num_position_axes}, got {self.head_dim} ({self.dim=}, {self.num_heads=})"
            )
        if self.has_geometry and self.mlp_ratio is None and self.option_scope != "all":
            raise ValueError("perceiver blocks need mlp_ratio, got mlp_ratio=None")
        self.attention  # noqa: B018 - checks what the model shares with its attention layers

    def _check_conditions(self) -> None:
        for name in ("conditioning_dims", "geometry_conditioning_dims"):
            if getattr(self, name) is not None:
                self._set(**{name: as_mapping(name, getattr(self, name))})
                for condition, channels in getattr(self, name).items():
                    check_name("a condition's name", condition)
                    check_count(f"the number of channels of condition {condition!r}", channels)
        if not self.conditioning_dims:
            self._set(conditioning_dims=None)
            if self.geometry_conditioning_dims is not None:
                raise ValueError(
                    f"geometry_conditioning_dims needs conditioning_dims, got {self.geometry_conditioning_dims!r}"
                )
        elif self.condition_dim is None:
            self._set(condition_dim=self.dim)
        if self.condition_dim is not None:
            check_count("condition_dim", self.condition_dim)
        for name, channels in self.named_conditions.items():
            if (other := (self.conditioning_dims or {}).get(name, channels)) != channels:
                raise ValueError(f"condition {name!r} cannot have both {other} and {channels} channels")
            if (self.condition_dim or 0) < 2 * channels:
                raise ValueError(
                    f"embedding condition {name!r} of {channels} channels needs a condition_dim of at least "
                    f"{2 * channels}, got {self.condition_dim}"
                )

    def _check_features(self) -> None:
        self._set(feature_dims=as_mapping("feature_dims", self.feature_dims))
        for branch, channels in self.feature_dims.items():
            if branch not in self.fields:
                raise ValueError(f"feature_dims names branch {branch!r}, which is not in fields {list(self.fields)!r}")
            check_count(f"the number of features of {branch!r}", channels)

    def _check_fields(self) -> None:
        self._set(fields=as_mapping("fields", self.fields))
        if not self.fields:
            raise ValueError("fields must name at least one branch, got none")
        for branch, fields in self.fields.items():
            # The model appends ":anchors" and ":queries" to the names of branches.
            check_name("a branch name", branch, "/:")
            if not isinstance(fields, Mapping) or not fields:
                raise ValueError(f"branch {branch!r} needs at least one field {{name: channels}}, got {fields!r}")
            for name, channels in fields.items():
                check_name(f"a field name of branch {branch!r}", name)
                check_count(f"the number of channels of {branch}/{name}", channels)
        outputs = [
            f"{prefix}{b}_{name}" for b, names in self.fields.items() for name in names for prefix in ("", "query_")
        ]
        if twice := sorted({name for name in outputs if outputs.count(name) > 1}):
            raise ValueError(f"several fields would share an output name, rename a branch or a field: {twice!r}")

    def _check_blocks(self) -> None:
        blocks = as_names("physics_blocks", self.physics_blocks)
        self._set(
            physics_blocks=tuple("self" if block == "shared" else block for block in blocks),
            decoder_depths=as_mapping("decoder_depths", self.decoder_depths),
        )
        for block in self.physics_blocks:
            kind = block.removesuffix("_untied") if isinstance(block, str) else block
            if kind not in PHYSICS_BLOCKS:
                choices = ", ".join(PHYSICS_BLOCKS)
                raise ValueError(f"a physics block must be one of {choices}, or one of them + '_untied', got {block!r}")
            if kind in ("cross", "joint") and len(self.branches) < 2:
                raise ValueError(f"physics block {block!r} needs at least two branches, got {list(self.branches)!r}")
        for branch, depth in self.decoder_depths.items():
            if branch not in self.fields:
                raise ValueError(
                    f"decoder_depths names branch {branch!r}, which is not in fields {list(self.fields)!r}"
                )
            check_count(f"the decoder depth of {branch!r}", depth, 0, MOST_BLOCKS)

    def _check_pooling(self) -> None:
        pooling = self.supernode_pooling
        if self.has_geometry and pooling.out_dim(1) != 1:
            raise ValueError(
                f"geometry tokens have C channels, but pooling of mode {pooling.mode!r} with message_mode 'identity' "
                f"gives {pooling.out_dim(1)}C; use mode 'relpos'"
            )
        # A relative message embeds the distance beside the offset.
        num_axes = self.num_position_axes + (pooling.mode != "abspos")
        if self.has_geometry and self.dim < 2 * num_axes:
            raise ValueError(
                f"supernode pooling of mode {pooling.mode!r} needs a dim of at least {2 * num_axes}, got {self.dim}"
            )

    def _check_vector_potentials(self) -> None:
        potentials = {
            branch: as_names(f"vector_potentials[{branch!r}]", names)
            for branch, names in as_mapping("vector_potentials", self.vector_potentials).items()
        }
        for branch, names in potentials.items():
            fields = self.fields.get(branch, {})
            for name in names:
                if name not in fields:
                    raise ValueError(f"vector_potentials names {branch}/{name}, which is not in fields {self.fields!r}")
                if fields[name] != 3 or self.num_position_axes != 3:
                    raise ValueError(
                        f"the curl of a potential needs three channels and three position axes, but {branch}/{name} "
                        f"has {fields[name]} channels and num_position_axes={self.num_position_axes}"
                    )
        self._set(vector_potentials=FrozenMapping({branch: names for branch, names in potentials.items() if names}))

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, in order."""
        return tuple(self.fields)

    @property
    def head_dim(self) -> int:
        """Channels per head, H."""
        return self.dim // self.num_heads

    @property
    def has_geometry(self) -> bool:
        """Whether there is a geometry branch: only perceiver blocks read it."""
        return any(block.startswith("perceiver") for block in self.physics_blocks)

    @property
    def named_conditions(self) -> dict[str, int]:
        """Channels of all named conditions, of all blocks and of the geometry blocks alone."""
        return {**(self.conditioning_dims or {}), **(self.geometry_conditioning_dims or {})}

    @property
    def input_features(self) -> dict[str, int]:
        """Channels of the features of tokens by branch, and of those of geometry points as ``geometry``."""
        geometry = self.supernode_pooling.input_features_dim if self.has_geometry else None
        return {**self.feature_dims, **({} if geometry is None else {"geometry": geometry})}

    @property
    def attention(self) -> AnchorAttentionConfig:
        """Configuration of the attention layers over all branches, in all blocks but perceivers."""
        return AnchorAttentionConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            use_rope=True,
            branches=self.branches,
            qk_norm=self.qk_norm is True,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(NumericsConfig)},
        )

    @property
    def others(self) -> AnchorAttentionConfig:
        """Configuration of perceivers, and of the linear layers that are in no block."""
        init_weights = self.init_weights if self.option_scope == "all" else "truncnormal002"
        bias = self.bias or self.bias_scope == "transformer_blocks"
        return dataclasses.replace(self.attention, init_weights=init_weights, bias=bias)
