"""Small transformer and perceiver blocks, tied and untied, and their inputs."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from emmi_jax import (
    AnchorAttentionConfig,
    AttentionConfig,
    PerceiverBlock,
    TransformerBlock,
)
from emmi_jax.layers.transformer_block import UntiedTransformerBlock
from tests.cases import ANCHOR_ATTENTIONS, random_array, specs
from tests.tolerances import TOLERANCES

FORWARD = TOLERANCES["float32"].forward
CONFIG = AttentionConfig(dim=12, num_heads=2)
BLOCKS = {"transformer": TransformerBlock, "perceiver": PerceiverBlock}
CONDITION_DIM = 5
BRANCHES = ("surface", "volume")
TOKEN_SPECS = specs(surface_anchors=4, surface_queries=2, volume_anchors=3, volume_queries=3)


@functools.partial(jax.jit, static_argnames=("block", "token_specs", "deterministic", "mutable"))
def run(block: Any, variables: Any, *args: Any, **kwargs: Any) -> Any:
    return block.apply(variables, *args, **kwargs)


def make(kind: str, config: AttentionConfig = CONFIG, **options: Any) -> Any:
    return BLOCKS[kind](config, **options)


def tokens(kind: str, batch: int = 2, num_tokens: int = 5) -> tuple[jax.Array, ...]:
    """The tokens that go through the block and, in a perceiver block, those that it attends to."""
    rng = np.random.default_rng(0)
    return tuple(random_array(rng, (batch, num_tokens + i, 12)) for i in range(1 if kind == "transformer" else 2))


def condition(batch: int = 2) -> jax.Array:
    return random_array(np.random.default_rng(1), (batch, CONDITION_DIM))


def anchor_block(kind: str, branches: tuple[str, ...] = BRANCHES, **options: Any) -> TransformerBlock:
    config = AnchorAttentionConfig(dim=12, num_heads=2, branches=branches, implementation="masked")
    return TransformerBlock(config, attention=ANCHOR_ATTENTIONS[kind], **options)


def untied(kind: str, **options: Any) -> UntiedTransformerBlock:
    return UntiedTransformerBlock(anchor_block(kind, **options, parent=None))


UNTIED_INPUTS = {"x": tokens("transformer", num_tokens=12)[0], "condition": condition()}
