"""Frozen, hashable configurations that convert to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

DTYPES = ("float32", "bfloat16", "float16")
"""Softmax, rotations and norms are computed in float32, so a wider dtype would not be more accurate."""

IMPLEMENTATIONS = ("auto", "masked", "xla", "blockwise", "cudnn", "splash")
"""How attention can run; `emmi_jax.ops.attention` says what each of them serves."""

INIT_WEIGHTS = ("truncnormal002", "truncnormal", "truncnormal002-identity", "torch", "zeros")
PHYSICS_BLOCKS = ("perceiver", "self", "cross", "joint")
_V = TypeVar("_V")


class FrozenMapping(Mapping[str, _V], Generic[_V]):
    """A hashable mapping whose order matters: the order of branches is part of a model."""

    def __init__(self, items: Mapping[str, _V]) -> None:
        self._items: dict[str, Any] = {
            key: FrozenMapping(value) if isinstance(value, Mapping) else _plain(value) for key, value in items.items()
        }

    def __getitem__(self, key: str) -> _V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations: conversion to and from plain JSON values.

    Raises:
        ValueError: A flag is not a boolean.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _plain(getattr(self, field.name))
            if field.type in ("bool", bool) and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be True or False, got {value!r}")
            self._set(**{field.name: value})

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON values: dtypes by name, nested configurations as dicts."""
        return {field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a configuration from the output of `to_dict`.

        Raises:
            ValueError: A key is unknown; the message names the closest known key.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        for key in values:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown key {key!r} for {cls.__name__}; did you mean {nearest!r}?")
        return cls(**values)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _plain(value: Any) -> Any:
    """Returns a NumPy scalar as the Python number that it holds."""
    return value.item() if isinstance(value, np.generic) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, jnp.dtype):
        return value.name
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Refuses all but integers >= `minimum`, with a ValueError that names the setting."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")


def _check_rate(name: str, value: Any) -> None:
    if not _is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")


def _check_positive(name: str, value: Any) -> None:
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_name(what: str, value: Any, forbidden: str = "/") -> None:
    if not isinstance(value, str) or not value or set(forbidden) & set(value):
        characters = " or ".join(repr(character) for character in forbidden)
        raise ValueError(f"{what} must be a non-empty string without {characters}, got {value!r}")


def _names(what: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{what} must be a sequence of names, got {value!r}")
    return tuple(value)


def _mapping(what: str, value: Any) -> FrozenMapping[Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a mapping, got {value!r}")
    return FrozenMapping(value)


def _dtype(name: str, value: Any) -> jnp.dtype:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    # NumPy reads None as float64.
    if value is None or dtype is None or dtype.name not in DTYPES:
        raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {value!r}")
    return dtype


def _precision(value: Any) -> str | None:
    names = [precision.name.lower() for precision in jax.lax.Precision]
    name = value.name if isinstance(value, jax.lax.Precision) else value
    if name is None:
        return None
    if not isinstance(name, str) or name.lower() not in names:
        raise ValueError(f"precision must be None or one of {names}, got {value!r}")
    return name.lower()


@dataclass(frozen=True, kw_only=True)
class NumericsConfig(Config):
    """How the layers of a module start and compute.

    Args:
        bias: Whether the attention projections have biases.
        init_weights: One of ``truncnormal002`` (Normal(0, 0.02) cut at an absolute value of 2, zero biases; also
            spelled ``truncnormal``), ``truncnormal002-identity`` (the same with a zero output projection), ``torch``
            (weights and biases uniform in ±1/sqrt(fan_in)) and ``zeros``.
        implementation: How attention runs: ``auto``, ``masked``, ``xla``, ``blockwise``, ``cudnn`` (NVIDIA GPU, half
            precision) or ``splash`` (TPU); see the table in `emmi_jax.ops.attention.dot_product_attention`.
        dtype: Dtype of the computation: ``float32``, ``bfloat16`` or ``float16``; None takes that of inputs and
            parameters.
        param_dtype: Dtype of the parameters, one of the same three.
        precision: Precision of the matrix products: None, ``default``, ``high`` or ``highest``.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    bias: bool = True
    init_weights: str = "truncnormal002"
    implementation: str = "auto"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_choice("init_weights", self.init_weights, INIT_WEIGHTS)
        _check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        self._set(
            dtype=None if self.dtype is None else _dtype("dtype", self.dtype),
            param_dtype=_dtype("param_dtype", self.param_dtype),
            precision=_precision(self.precision),
        )


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(NumericsConfig):
    """Configuration of one attention layer; `NumericsConfig` describes the remaining arguments.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads N; must divide `dim`.
        use_rope: Whether queries and keys are rotated by position; if so, every call needs `freqs`.
        dropout: Rate of the attention dropout in [0, 1).

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    dim: int
    num_heads: int
    use_rope: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.dim, self.num_heads)
        if self.use_rope and self.head_dim % 2:
            raise ValueError(
                f"rotary embedding needs an even head_dim, got {self.head_dim} ({self.dim=}, {self.num_heads=})"
            )
        _check_rate("dropout", self.dropout)

    @property
    def head_dim(self) -> int:
        """Channels per head, H."""
        return self.dim // self.num_heads


def _check_heads(dim: Any, num_heads: Any) -> None:
    check_count("dim", dim)
    check_count("num_heads", num_heads)
    if dim % num_heads:
        raise ValueError(f"dim must be divisible by num_heads, got dim={dim} and num_heads={num_heads}")


@dataclass(frozen=True, kw_only=True)
class AnchorAttentionConfig(AttentionConfig):
    """Configuration of multi-branch anchor attention; `AttentionConfig` describes the remaining arguments.

    Args:
        branches: Names of all participating branches (modalities), at least one.
        anchor_suffix: The anchors of branch ``b`` are the group ``b + anchor_suffix``.

    Raises:
        ValueError: There are no branches, a branch appears twice, or a name is empty or has a slash.
    """

    branches: tuple[str, ...]
    anchor_suffix: str = "_anchors"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(branches=_names("branches", self.branches))
        if not self.branches:
            raise ValueError("branches must name at least one branch, got none")
        for branch in self.branches:
            _check_name("a branch name", branch)
        if len(set(self.branches)) != len(self.branches):
            raise ValueError(f"branches names a branch twice: {self.branches!r}")
        if not isinstance(self.anchor_suffix, str):
            raise ValueError(f"anchor_suffix must be a string, got {self.anchor_suffix!r}")


@dataclass(frozen=True, kw_only=True)
class SupernodePoolingConfig(Config):
    """Configuration of the pooling of points into supernodes; exactly one of `radius` and `k` is set.

    Args:
        radius: Neighbours are the points within this distance, in the units of the geometry positions.
        k: Neighbours are the k nearest points.
        max_degree: Most neighbours of a supernode within the radius; the lowest indices come first.
        mode: What a message holds: ``abspos``, ``relpos`` or ``absrelpos``.
        aggregation: ``mean`` or ``sum`` over the neighbours.
        readd_supernode_pos: Whether the supernode's own position is added again after pooling.
        input_features_dim: Channels of the point features, if there are any.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    radius: float | None = 0.25
    k: int | None = None
    max_degree: int = 32
    mode: str = "relpos"
    aggregation: str = "mean"
    readd_supernode_pos: bool = True
    input_features_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.radius is None) == (self.k is None):
            raise ValueError(f"exactly one of radius and k must be set, got radius={self.radius!r} and k={self.k!r}")
        if self.radius is not None:
            _check_positive("radius", self.radius)
        if self.k is not None:
            check_count("k", self.k)
        check_count("max_degree", self.max_degree)
        _check_choice("mode", self.mode, ("abspos", "relpos", "absrelpos"))
        _check_choice("aggregation", self.aggregation, ("mean", "sum"))
        if self.input_features_dim is not None:
            check_count("input_features_dim", self.input_features_dim)
            if self.mode == "absrelpos":
                raise ValueError("input_features_dim is defined for the modes 'abspos' and 'relpos', not 'absrelpos'")


@dataclass(frozen=True, kw_only=True)
class AbUptConfig(NumericsConfig):
    """Configuration of an `AnchoredBranchedUPT`; `NumericsConfig` describes the remaining arguments.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads N; must divide `dim`.
        fields: For each branch, in order, its output fields and their numbers of channels.
        physics_blocks: ``perceiver``, ``self`` (also spelled ``shared``), ``cross`` and ``joint``, each also with the
            suffix ``_untied``: one set of weights per branch.
        decoder_depths: Number of decoder blocks of each branch; branches left out have 0.
        geometry_depth: Number of transformer blocks after supernode pooling.
        supernode_pooling: Configuration of the pooling.
        condition_dim: Channels of the condition; None means unconditioned.
        mlp_ratio: Hidden channels of an MLP over C.
        layer_scale: Initial layer scale; None means no layer scale.
        drop_path_rate: Rate at which a sample skips a residual branch in training.
        max_wavelength: Largest wavelength over 2 pi of the position embeddings.
        num_position_axes: Number of position axes.
        remat: Whether the backward pass recomputes each block instead of storing its activations.
        vector_potentials: For any branch, fields of three channels for which the network predicts a vector potential
            and the model returns its curl with respect to the position of the token, so that the field has no
            divergence. In other units it keeps none only if one factor scales all channels and constants are added:
            see `FieldScale.fit`. ``cudnn`` and ``splash`` cannot serve them: they have no forward-mode derivative.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    dim: int
    num_heads: int
    fields: Mapping[str, Mapping[str, int]] = dataclasses.field(
        default_factory=lambda: {"surface": {"pressure": 1, "friction": 3}, "volume": {"velocity": 3, "pressure": 1}}
    )
    physics_blocks: tuple[str, ...] = ("perceiver", "self", "cross", "self", "cross", "self")
    decoder_depths: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"surface": 6, "volume": 6})
    geometry_depth: int = 1
    supernode_pooling: SupernodePoolingConfig = dataclasses.field(default_factory=SupernodePoolingConfig)
    condition_dim: int | None = None
    mlp_ratio: int = 4
    layer_scale: float | None = None
    drop_path_rate: float = 0.0
    max_wavelength: float = 10_000
    num_position_axes: int = 3
    remat: bool = False
    vector_potentials: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self.dim, self.num_heads)
        check_count("geometry_depth", self.geometry_depth, 0)
        check_count("mlp_ratio", self.mlp_ratio)
        check_count("num_position_axes", self.num_position_axes)
        _check_rate("drop_path_rate", self.drop_path_rate)
        _check_positive("max_wavelength", self.max_wavelength)
        if self.condition_dim is not None:
            check_count("condition_dim", self.condition_dim)
        if self.layer_scale is not None and not _is_number(self.layer_scale):
            raise ValueError(f"layer_scale must be a finite number or None, got {self.layer_scale!r}")
        self._check_fields()
        self._check_blocks()
        self._check_pooling()
        self._check_vector_potentials()
        if self.head_dim < 2 * self.num_position_axes:
            raise ValueError(
                f"rotary embedding of {self.num_position_axes} position axes needs a head_dim of at least "
                f"{2 * self.num_position_axes}, got {self.head_dim} ({self.dim=}, {self.num_heads=})"
            )
        self.attention  # noqa: B018 - checks what the model shares with its attention layers

    def _check_fields(self) -> None:
        self._set(fields=_mapping("fields", self.fields))
        if not self.fields:
            raise ValueError("fields must name at least one branch, got none")
        for branch, fields in self.fields.items():
            # The model appends ":anchors" and ":queries" to the names of branches.
            _check_name("a branch name", branch, "/:")
            if not isinstance(fields, Mapping) or not fields:
                raise ValueError(f"branch {branch!r} needs at least one field {{name: channels}}, got {fields!r}")
            for name, channels in fields.items():
                _check_name(f"a field name of branch {branch!r}", name)
                check_count(f"the number of channels of {branch}/{name}", channels)
        outputs = [
            f"{prefix}{b}_{name}" for b, names in self.fields.items() for name in names for prefix in ("", "query_")
        ]
        if twice := sorted({name for name in outputs if outputs.count(name) > 1}):
            raise ValueError(f"several fields would share an output name, rename a branch or a field: {twice!r}")

    def _check_blocks(self) -> None:
        blocks = _names("physics_blocks", self.physics_blocks)
        self._set(
            physics_blocks=tuple("self" if block == "shared" else block for block in blocks),
            decoder_depths=_mapping("decoder_depths", self.decoder_depths),
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
            check_count(f"the decoder depth of {branch!r}", depth, 0)

    def _check_pooling(self) -> None:
        pooling = self.supernode_pooling
        if isinstance(pooling, Mapping):
            pooling = SupernodePoolingConfig.from_dict(pooling)
        if not isinstance(pooling, SupernodePoolingConfig):
            raise ValueError(f"supernode_pooling must be a SupernodePoolingConfig, got {pooling!r}")
        self._set(supernode_pooling=pooling)
        # A relative message embeds the distance beside the offset.
        num_axes = self.num_position_axes + (pooling.mode != "abspos")
        if self.has_geometry and self.dim < 2 * num_axes:
            raise ValueError(
                f"supernode pooling of mode {pooling.mode!r} needs a dim of at least {2 * num_axes}, got {self.dim}"
            )

    def _check_vector_potentials(self) -> None:
        potentials = {
            branch: _names(f"vector_potentials[{branch!r}]", names)
            for branch, names in _mapping("vector_potentials", self.vector_potentials).items()
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
    def attention(self) -> AnchorAttentionConfig:
        """Configuration of the attention layers over all branches."""
        return AnchorAttentionConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            use_rope=True,
            branches=self.branches,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(NumericsConfig)},
        )
