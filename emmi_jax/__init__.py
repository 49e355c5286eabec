"""Multi-branch anchor attention for JAX/Flax, and the AB-UPT physics transformer on top of it."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

from emmi_jax.lazy import lazy_names as _lazy_names

# Imported on first use: `emmi_jax.deploy` must not need Flax, nor a model what a run takes, orbax among it.
if _TYPE_CHECKING:
    from emmi_jax import deploy as deploy
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

__getattr__, __dir__, __all__ = _lazy_names(__name__)
__all__ = [name for name in __all__ if name not in ("deploy", "load_run")]  # `import *` must not need an extra
