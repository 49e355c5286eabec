"""Configurations of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emmi_jax.config.base import Config
from emmi_jax.config.checks import (
    as_names,
    check_choice,
    check_count,
    check_heads,
    check_name,
    check_not_negative,
    check_positive,
    check_rate,
)
from emmi_jax.config.implementations import IMPLEMENTATIONS

DTYPES = ("float32", "bfloat16", "float16")
"""Softmax, rotations and norms are computed in float32, so a wider dtype would not be more accurate."""

NORMS = ("layer", "rms")

INIT_WEIGHTS = ("truncnormal002", "truncnormal", "truncnormal002-identity", "torch", "zeros")


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
    """Initial weights and arithmetic of the layers of a module.

    Args:
        bias: Whether the attention projections have biases, and in a block its norms and MLP as well.
        init_weights: One of ``truncnormal002`` (Normal(0, 0.02) cut at an absolute value of 2, zero biases; also
            spelled ``truncnormal``), ``truncnormal002-identity`` (the same, but output projections and second layers of
            MLPs in blocks are zero, so that a block starts as the identity), ``torch`` (weights and biases uniform in
            ±1/sqrt(fan_in)) and ``zeros``.
        implementation: How attention runs: ``auto``, ``masked``, ``xla``, ``blockwise``, ``cudnn`` and ``flash``
            (NVIDIA GPU, half precision) or ``splash`` (TPU); see `emmi_jax.ops.attention.dot_product_attention`.
        dtype: Dtype of the computation: ``float32``, ``bfloat16`` or ``float16``; None takes that of inputs and
            parameters.
        param_dtype: Dtype of the parameters, one of the same three.
        precision: Precision of the matrix products: None, ``default``, ``high`` or ``highest``.
        token_axis: Axis of `jax.shard_map` over which the tokens of every group are sharded: each device attends from
            its own tokens to the keys and values of all. None where a device holds whole sequences.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    bias: bool = True
    init_weights: str = "truncnormal002"
    implementation: str = "auto"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: str | None = None
    token_axis: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init_weights", self.init_weights, INIT_WEIGHTS)
        check_choice("implementation", self.implementation, ("auto", *IMPLEMENTATIONS))
        self._set(
            dtype=None if self.dtype is None else _dtype("dtype", self.dtype),
            param_dtype=_dtype("param_dtype", self.param_dtype),
            precision=_precision(self.precision),
        )
        if self.token_axis is not None:
            check_name("token_axis", self.token_axis)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(NumericsConfig):
    """Configuration of one attention layer; `NumericsConfig` describes the remaining arguments.

    Args:
        dim: Number of channels C.
        num_heads: Number of heads N; must divide `dim`.
        use_rope: Whether queries and keys are rotated by position; if so, every call needs `freqs`.
        dropout: Rate of the attention dropout in [0, 1).
        qk_norm: Whether queries and keys of each head are RMS-normed before they are rotated.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    dim: int
    num_heads: int
    use_rope: bool = False
    dropout: float = 0.0
    qk_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.dim, self.num_heads)
        if self.use_rope and self.head_dim % 2:
            raise ValueError(
                f"rotary embedding needs an even head_dim, got {self.head_dim} ({self.dim=}, {self.num_heads=})"
            )
        check_rate("dropout", self.dropout)

    @property
    def head_dim(self) -> int:
        """Channels per head, H."""
        return self.dim // self.num_heads


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
        self._set(branches=as_names("branches", self.branches))
        if not self.branches:
            raise ValueError("branches must name at least one branch, got none")
        for branch in self.branches:
            check_name("a branch name", branch)
        if len(set(self.branches)) != len(self.branches):
            raise ValueError(f"branches names a branch twice: {self.branches!r}")
        if not isinstance(self.anchor_suffix, str):
            raise ValueError(f"anchor_suffix must be a string, got {self.anchor_suffix!r}")


@dataclass(frozen=True, kw_only=True)
class SupernodePoolingConfig(Config):
    """Configuration of the pooling of points into supernodes; exactly one of `radius` and `k` is set.

    Args:
        radius: Neighbours are the points within this distance, in the units of the geometry positions; 0 for copies of
            the supernode alone.
        k: Neighbours are the k nearest points.
        max_degree: Most neighbours of a supernode within the radius; the lowest indices come first.
        mode: What a message holds: ``abspos``, ``relpos`` or ``absrelpos``.
        aggregation: ``mean`` or ``sum`` over the neighbours.
        readd_supernode_pos: Whether the supernode's own position (and features) is added again after pooling.
        input_features_dim: Channels of the point features, if there are any.
        message_mode: What becomes of a message: ``mlp``, ``linear`` (one layer) or ``identity``: messages are pooled as
            they are, with 2C channels in the mode ``abspos`` and 3C in ``absrelpos``.
        bias: Whether the linear layers have biases.
        max_wavelength: Largest wavelength over 2 pi of the position embeddings.

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
    message_mode: str = "mlp"
    bias: bool = True
    max_wavelength: float = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("max_wavelength", self.max_wavelength)
        check_choice("message_mode", self.message_mode, ("mlp", "linear", "identity"))
        if (self.radius is None) == (self.k is None):
            raise ValueError(f"exactly one of radius and k must be set, got radius={self.radius!r} and k={self.k!r}")
        if self.radius is not None:
            check_not_negative("radius", self.radius)
        if self.k is not None:
            check_count("k", self.k)
        check_count("max_degree", self.max_degree)
        check_choice("mode", self.mode, ("abspos", "relpos", "absrelpos"))
        check_choice("aggregation", self.aggregation, ("mean", "sum"))
        if self.input_features_dim is not None:
            check_count("input_features_dim", self.input_features_dim)
            if self.mode == "absrelpos":
                raise ValueError("input_features_dim is defined for the modes 'abspos' and 'relpos', not 'absrelpos'")
        if self.readd_supernode_pos and self.out_dim(1) != 1:
            raise ValueError(
                f"messages of mode {self.mode!r} are too wide to add the supernode's position again after "
                f"message_mode 'identity', which needs mode 'relpos', got readd_supernode_pos=True"
            )

    def out_dim(self, dim: int) -> int:
        """Returns the number of channels of pooled supernodes, for C = `dim`."""
        if self.message_mode != "identity" or self.mode == "relpos":
            return dim
        return {"abspos": 2, "absrelpos": 3}[self.mode] * dim
