"""Multi-branch anchor attention for JAX/Flax, and the AB-UPT physics transformer on top of it."""

from emmi_jax.config import AbUptConfig as AbUptConfig
from emmi_jax.config import AnchorAttentionConfig as AnchorAttentionConfig
from emmi_jax.config import AttentionConfig as AttentionConfig
from emmi_jax.config import SupernodePoolingConfig as SupernodePoolingConfig
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
from emmi_jax.tokens import AttentionPattern as AttentionPattern
from emmi_jax.tokens import TokenSpec as TokenSpec

__version__ = "0.1.0"
