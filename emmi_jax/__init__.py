"""Multi-branch anchor attention for JAX/Flax, and the AB-UPT physics transformer on top of it."""

import importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from emmi_jax.config import AbUptConfig as AbUptConfig
    from emmi_jax.config import AnchorAttentionConfig as AnchorAttentionConfig
    from emmi_jax.config import AttentionConfig as AttentionConfig
    from emmi_jax.config import SupernodePoolingConfig as SupernodePoolingConfig
    from emmi_jax.inference.streaming import encode as encode
    from emmi_jax.inference.streaming import predict as predict
    from emmi_jax.inference.streaming import stream as stream
    from emmi_jax.inference.surrogate import Surrogate as Surrogate
    from emmi_jax.layers.anchor_attention import CrossAnchorAttention as CrossAnchorAttention
    from emmi_jax.layers.anchor_attention import JointAnchorAttention as JointAnchorAttention
    from emmi_jax.layers.anchor_attention import MissingAnchorTokenError as MissingAnchorTokenError
    from emmi_jax.layers.anchor_attention import MissingBranchTokensError as MissingBranchTokensError
    from emmi_jax.layers.anchor_attention import MultiBranchAnchorAttention as MultiBranchAnchorAttention
    from emmi_jax.layers.anchor_attention import SelfAnchorAttention as SelfAnchorAttention
    from emmi_jax.layers.anchor_attention import UnexpectedTokenError as UnexpectedTokenError
    from emmi_jax.layers.dot_product_attention import DotProductAttention as DotProductAttention
    from emmi_jax.layers.mixed_attention import MixedAttention as MixedAttention
    from emmi_jax.layers.perceiver_attention import PerceiverAttention as PerceiverAttention
    from emmi_jax.layers.perceiver_block import PerceiverBlock as PerceiverBlock
    from emmi_jax.layers.supernode_pooling import Geometry as Geometry
    from emmi_jax.layers.supernode_pooling import SupernodePooling as SupernodePooling
    from emmi_jax.layers.transformer_block import TransformerBlock as TransformerBlock
    from emmi_jax.models.ab_upt import AnchoredBranchedUPT as AnchoredBranchedUPT
    from emmi_jax.ops.rope import RopeFrequencies as RopeFrequencies
    from emmi_jax.ops.rope import apply_rope as apply_rope
    from emmi_jax.ops.rope import rope_frequencies as rope_frequencies
    from emmi_jax.runs.load import load_run as load_run
    from emmi_jax.tokens import AttentionPattern as AttentionPattern
    from emmi_jax.tokens import TokenSpec as TokenSpec

__version__ = "0.1.0"

# Imported on first use: `emmi_jax.deploy` must not need Flax, nor a model what a run takes, orbax among it.
_LAZY = {
    "AbUptConfig": "emmi_jax.config",
    "AnchorAttentionConfig": "emmi_jax.config",
    "AnchoredBranchedUPT": "emmi_jax.models.ab_upt",
    "AttentionConfig": "emmi_jax.config",
    "AttentionPattern": "emmi_jax.tokens",
    "CrossAnchorAttention": "emmi_jax.layers.anchor_attention",
    "DotProductAttention": "emmi_jax.layers.dot_product_attention",
    "Geometry": "emmi_jax.layers.supernode_pooling",
    "JointAnchorAttention": "emmi_jax.layers.anchor_attention",
    "MissingAnchorTokenError": "emmi_jax.layers.anchor_attention",
    "MissingBranchTokensError": "emmi_jax.layers.anchor_attention",
    "MixedAttention": "emmi_jax.layers.mixed_attention",
    "MultiBranchAnchorAttention": "emmi_jax.layers.anchor_attention",
    "PerceiverAttention": "emmi_jax.layers.perceiver_attention",
    "PerceiverBlock": "emmi_jax.layers.perceiver_block",
    "RopeFrequencies": "emmi_jax.ops.rope",
    "SelfAnchorAttention": "emmi_jax.layers.anchor_attention",
    "SupernodePooling": "emmi_jax.layers.supernode_pooling",
    "SupernodePoolingConfig": "emmi_jax.config",
    "Surrogate": "emmi_jax.inference.surrogate",
    "TokenSpec": "emmi_jax.tokens",
    "TransformerBlock": "emmi_jax.layers.transformer_block",
    "UnexpectedTokenError": "emmi_jax.layers.anchor_attention",
    "apply_rope": "emmi_jax.ops.rope",
    "encode": "emmi_jax.inference.streaming",
    "load_run": "emmi_jax.runs.load",
    "predict": "emmi_jax.inference.streaming",
    "rope_frequencies": "emmi_jax.ops.rope",
    "stream": "emmi_jax.inference.streaming",
}
__all__ = sorted(set(_LAZY) - {"load_run"})  # what `import *` brings must not need an extra


def __getattr__(name: str) -> _Any:
    if name == "deploy":
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"emmi_jax.{name} needs more packages ({error}): pip install 'emmi-jax[train]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
