"""The rules: what a parameter of the Flax tree is called in each PyTorch layout."""

from __future__ import annotations

import re

LAYOUTS = ("1.x", "2026.4", "tutorial")

# Buffers that PyTorch modules compute themselves.
CONSTANTS = ("omega", "padding_tensor")

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "gamma": "gamma"}

# One row a module: its place in the Flax tree, then its name in each of `LAYOUTS`. {i} is a number, {branch} a branch's
# name. [qkv] stands for several modules that share the output channels, in this order. None: the layout has no such
# module. A row that ends in "/" is a block, and a row of `_IN_A_BLOCK` goes on from there.
_Row = tuple[str, str | None, str | None, str | None]
_PLACES: tuple[_Row, ...] = (
    ("encoder/message_{i}", "encoder.message.{i}.project", "encoder.message.{i}.project", "encoder.message.{i}"),
    ("encoder/proj", "encoder.proj.project", "encoder.proj.project", "encoder.proj"),
    # No file with point features has been seen: the wrapper `project` is assumed, as everywhere else in the pooling.
    ("encoder/feature_projection", "encoder.feature_projection.project", "encoder.feature_projection.project", None),
    (
        "encoder/feature_down_projection",
        "encoder.feature_down_projection.project",
        "encoder.feature_down_projection.project",
        None,
    ),
    ("geometry_blocks_{i}/", "geometry_blocks.{i}.", "geometry_blocks.{i}.", "geometry_blocks.{i}."),
    ("{branch}_bias/mlp_{i}", "{branch}_bias.mlp.{i}", "domain_biases.{branch}.mlp.{i}", "{branch}_bias.{i}"),
    ("physics_blocks_{i}/", "physics_blocks.{i}.", "physics_blocks.{i}.", "blocks.{i}."),
    (
        "{branch}_decoder_blocks_{i}/",
        "{branch}_decoder_blocks.{i}.",
        "domain_decoder_blocks.{branch}.{i}.",
        "{branch}_blocks.{i}.",
    ),
    (
        "{branch}_decoder",
        "{branch}_decoder.project",
        "domain_decoder_projections.{branch}.project",
        "{branch}_decoder",
    ),
)
_IN_A_BLOCK: tuple[_Row, ...] = (
    (
        "attention_block/mixed_attention/qkv",
        "attention_block.mixed_attention.qkv",
        "attention_block.mixed_attention.[qkv]",
        "attn.qkv",
    ),
    (
        "attention_block/mixed_attention/proj",
        "attention_block.mixed_attention.proj",
        "attention_block.mixed_attention.proj",
        "attn.proj",
    ),
    ("attention_block/qkv", "attention_block.qkv", "attention_block.[qkv]", "attn.qkv"),
    ("attention_block/proj", "attention_block.proj", "attention_block.proj", "attn.proj"),
    ("attn/q", "attn.q", "attn.q", "attn.q"),
    ("attn/kv", "attn.kv", "attn.[kv]", "attn.kv"),
    ("attn/proj", "attn.proj", "attn.proj", "attn.proj"),
    ("norm1", "norm1", "norm1", "norm1"),
    ("norm1q", "norm1q", "norm1q", "norm1q"),
    ("norm1kv", "norm1kv", "norm1kv", "norm1kv"),
    ("norm2", "norm2", "norm2", "norm2"),
    ("mlp/fc1", "mlp.fc1", "mlp.fc1", "mlp.fc1"),
    ("mlp/fc2", "mlp.fc2", "mlp.fc2", "mlp.fc2"),
    ("ls1", "ls1", "ls1", None),
    ("ls2", "ls2", "ls2", None),
    ("modulation", "modulation.project", "modulation.project", None),
)


def torch_names(path: str, layout: str) -> tuple[str, ...]:
    """Names a parameter.

    Args:
        path: Place of the parameter in AB-UPT's Flax tree, such as ``"physics_blocks_0/attn/kv/kernel"``.
        layout: One of `LAYOUTS`.

    Returns:
        The names of the state-dict entries that hold it, whose output channels follow one another: one, or two or three
        where the layout splits a projection; none if the layout has no such parameter.
    """
    module, _, leaf = path.rpartition("/")
    name = _module_name(module, LAYOUTS.index(layout) + 1)
    if name is None or leaf not in _LEAVES:
        return ()
    stem, _, parts = name.removesuffix("]").partition("[")
    return tuple(f"{stem}{part}.{_LEAVES[leaf]}" for part in parts or ("",))


def _module_name(module: str, column: int) -> str | None:
    for row in _PLACES:
        place, name = row[0], row[column]
        match = re.match(_pattern(place), module)
        if match is None:
            continue
        if name is not None:
            name = name.format(**match.groupdict())
        if not place.endswith("/"):
            return name
        inner = next((row[column] for row in _IN_A_BLOCK if row[0] == module[match.end() :]), None)
        return None if name is None or inner is None else name + inner
    return None


def _pattern(place: str) -> str:
    pattern = place.replace("{i}", r"(?P<i>\d+)").replace("{branch}", r"(?P<branch>[^/]+)")
    return pattern if place.endswith("/") else pattern + "$"
