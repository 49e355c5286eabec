"""The rules: what a parameter of the Flax tree is called in each PyTorch layout."""

from __future__ import annotations

import re
from collections.abc import Sequence

LAYOUTS = ("1.x", "2026.4", "tutorial", "main")

# Buffers that PyTorch modules compute themselves.
CONSTANTS = ("omega", "padding_tensor")

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "gamma": "gamma"}

# One row a module: its place in the Flax tree, then its name in 1.x, 2026.4 and the tutorial. Main has the names of
# 2026.4, but for those in `_PLACES_OF_MAIN`. {i} is a number, {branch} a branch's
# name. [qkv] stands for several modules that share the output channels, in this order. None: the layout has no such
# module. A row that ends in "/" is a block, and a row of `_IN_A_BLOCK` goes on from there.
_Row = tuple[str, str | None, str | None, str | None]
_PLACES: tuple[_Row, ...] = (
    ("encoder/message", "encoder.message.project", "encoder.message.project", "encoder.message"),
    ("encoder/message_{i}", "encoder.message.{i}.project", "encoder.message.{i}.project", "encoder.message.{i}"),
    ("encoder/proj", "encoder.proj.project", "encoder.proj.project", "encoder.proj"),
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
_PLACES_OF_MAIN = (
    ("{branch}_features/mlp_{i}", "domain_feature_projs.{branch}.mlp.{i}"),
    ("{branch}_decoder/norm_final", "domain_decoder_projections.{branch}.norm_final"),
    ("{branch}_decoder/modulation", "domain_decoder_projections.{branch}.modulation.project"),
    ("{branch}_decoder/linear", "domain_decoder_projections.{branch}.linear.project"),
    # Without a norm, which main always has: told apart from 2026.4.
    ("{branch}_decoder", "domain_decoder_projections.{branch}.linear.project"),
    ("{conditioner}/embedder_{branch}", "{conditioner}.embedder.{branch}.1.project"),
    ("{conditioner}/shared_mlp_{i}", "{conditioner}.shared_mlp.{i}.project"),
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
_IN_A_BLOCK_OF_MAIN = tuple(
    (f"{place}/{norm}", f"{place.replace('/', '.')}.{norm}")
    for place in ("attention_block/mixed_attention", "attention_block", "attn")
    for norm in ("q_norm", "k_norm")
)

# In a block of untied weights, these have an entry for each branch; the others are shared by all branches.
_UNTIED = (
    (r"(attention_block/mixed_attention)/qkv", ("{0}.q", "{0}.k", "{0}.v")),
    (r"(attention_block/mixed_attention)/proj", ("{0}.proj",)),
    (r"(attn)/(q|proj)", ("{0}.{1}",)),
    (r"mlp/fc1", ("mlp.layers.0",)),
    (r"mlp/fc2", ("mlp.layers.1",)),
)


def torch_names(path: str, layout: str, branches: Sequence[str] = ()) -> tuple[str, ...]:
    """Names a parameter.

    Args:
        path: Place of the parameter in AB-UPT's Flax tree, such as ``"physics_blocks_0/attn/kv/kernel"``.
        layout: One of `LAYOUTS`.
        branches: The branches of the model, below which the weights of untied blocks lie.

    Returns:
        The names of the state-dict entries that hold it, whose output channels follow one another: one, or two or three
        where the layout splits a projection; none if the layout has no such parameter.
    """
    module, _, leaf = path.rpartition("/")
    if leaf not in _LEAVES:
        return ()
    untied = re.fullmatch(r"(physics_blocks_\d+)/([^/]+)/(.+)", module)
    if untied is None or untied[2] not in branches:
        return tuple(f"{name}.{_LEAVES[leaf]}" for name in _module_names(module, layout))
    if layout not in ("2026.4", "main"):
        return ()
    block, branch, inner = untied.groups()
    for pattern, names in _UNTIED:
        if match := re.fullmatch(pattern, inner):
            place = block.replace("_blocks_", "_blocks.")
            parts = [part.replace("/", ".") for part in match.groups()]
            return tuple(f"{place}.{name.format(*parts)}.{_LEAVES[leaf]}.{branches.index(branch)}" for name in names)
    return tuple(f"{name}.{_LEAVES[leaf]}" for name in _module_names(f"{block}/{inner}", layout))


def _module_names(module: str, layout: str) -> tuple[str, ...]:
    name = _module_name(module, layout)
    if name is None:
        return ()
    stem, _, parts = name.removesuffix("]").partition("[")
    return tuple(f"{stem}{part}" for part in parts or ("",))


def _module_name(module: str, layout: str) -> str | None:
    if layout == "main":
        for place, name in _PLACES_OF_MAIN:
            if match := re.match(_pattern(place), module):
                return name.format(**match.groupdict())
        layout = "2026.4"
        of_main = dict(_IN_A_BLOCK_OF_MAIN)
    else:
        of_main = {}
    column = LAYOUTS.index(layout) + 1
    for row in _PLACES:
        place, outer = row[0], row[column]
        match = re.match(_pattern(place), module)
        if match is None:
            continue
        if outer is not None:
            outer = outer.format(**match.groupdict())
        if not place.endswith("/"):
            return outer
        rest = module[match.end() :]
        inner = of_main.get(rest) or next((row[column] for row in _IN_A_BLOCK if row[0] == rest), None)
        return None if outer is None or inner is None else outer + inner
    return None


def _pattern(place: str) -> str:
    pattern = place.replace("{i}", r"(?P<i>\d+)").replace("{branch}", r"(?P<branch>[^/]+)")
    pattern = pattern.replace("{conditioner}", r"(?P<conditioner>(geometry_)?conditioner)")
    return pattern if place.endswith("/") else pattern + "$"
