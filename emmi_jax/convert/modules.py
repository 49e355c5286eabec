"""Weights of single modules, recognised by their names and shapes alone."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from emmi_jax.convert.entries import read_entries
from emmi_jax.convert.names import torch_names
from emmi_jax.convert.tables import (
    Dim,
    Shape,
    Table,
    Target,
    flatten_params,
    flax_problems,
    to_params,
    to_state_dict,
    torch_problems,
)

_BOTH = (True, False)


class _Module(NamedTuple):
    kind: str
    split_qkv: bool
    table: Table


def params_from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the weights of one module, which its names and shapes tell.

    Known are MixedAttention, the anchor attentions, DotProductAttention, PerceiverAttention, TransformerBlock,
    PerceiverBlock and SupernodePooling; query, key and value projections may be fused or split, queries and keys may
    have norms, and biases may be missing. A bare split attention (``q``, ``k``, ``v``, ``proj``) is read as self
    attention, unless keys and queries differ in their input channels: names cannot tell it from a PerceiverAttention
    with equal ones, so concatenate ``k`` and ``v`` of that to ``kv`` first. An empty state dict is that of a pooling
    without weights.

    Args:
        state_dict: Torch tensors or numpy arrays by name, or a checkpoint that holds them under ``"state_dict"``.
            Constants (``omega``, ``padding_tensor``) are ignored.

    Returns:
        The Flax parameters, new numpy arrays of the same dtypes and bits.

    Raises:
        ValueError: It belongs to no module known here, or entries are unknown, missing, misshapen, of different dtypes
            where they have to be fused, or not floating point; the message lists them all.
    """
    entries = read_entries(state_dict)
    module, problems = _nearest(entries, torch_problems, _names_in_torch)
    _raise_for("state dict", module, problems)
    return to_params(entries, module.table)


def params_to_torch(params: Mapping[str, Any], *, split_qkv: bool = False) -> dict[str, Any]:
    """Converts the weights of one module to PyTorch, the inverse of `params_from_torch`.

    Args:
        params: The Flax parameters of a module that `params_from_torch` knows.
        split_qkv: Whether to split query, key and value projections, as release 2026.4 does.

    Returns:
        Torch tensors by name, copies of the same dtypes and bits; constants are left to the PyTorch module.

    Raises:
        ValueError: It belongs to no module known here, or parameters are unknown, missing, misshapen or not floating
            point; the message lists them all.
    """
    arrays = flatten_params(params)
    module, problems = _nearest(arrays, flax_problems, set, split_qkv=split_qkv)
    _raise_for("parameter tree", module, problems)
    return to_state_dict(arrays, module.table)


def _names_in_torch(table: Table) -> set[str]:
    return {name for target in table.values() for name in target.names}


def _nearest(
    arrays: Mapping[str, Any],
    find_problems: Callable[[Mapping[str, Any], Table], list[str]],
    names: Callable[[Table], set[str]],
    split_qkv: bool | None = None,
) -> tuple[_Module, list[str]]:
    """Returns the module that knows most of the names, of such the one with fewest names missing; and its problems."""
    modules = [m for m in _modules() if split_qkv in (None, m.split_qkv)]
    if all(names(m.table).isdisjoint(arrays) for m in modules) and arrays:
        kinds = ", ".join(dict.fromkeys(module.kind for module in _modules()))
        raise ValueError(f"these names belong to no module known here ({kinds}): {list(arrays)}")

    def distance(module: _Module) -> tuple[int, int]:
        known = names(module.table)
        return len(arrays.keys() - known), len(known - arrays.keys())

    distances = [distance(module) for module in modules]
    nearest = [m for m, far in zip(modules, distances, strict=True) if far == min(distances)]
    return min(((module, find_problems(arrays, module.table)) for module in nearest), key=lambda pair: len(pair[1]))


def _raise_for(what: str, module: _Module, problems: list[str]) -> None:
    if problems:
        raise ValueError("\n  ".join([f"the {what} comes nearest to a {module.kind}, but it has", *problems]))


@functools.cache
def _modules() -> tuple[_Module, ...]:
    """All modules in all variants; the more usual variant first."""
    modules = []
    for (kind, place, shapes), split_qkv in itertools.product(_variants(), _BOTH[::-1]):
        # Alone, a module's names are those it has inside the model, without what leads there. Norms of queries and keys
        # are only in main, but fused projections would not keep them from being named.
        prefix = re.sub(r"_(\d+)", r".\1", place).replace("/", ".")
        table = {}
        for path, shape in shapes.items():
            layout = "main" if split_qkv or "_norm/" in path else "1.x"
            names = torch_names(place + path, layout)
            table[path] = Target(tuple(name.removeprefix(prefix) for name in names), shape)
        modules.append(_Module(kind, split_qkv, table))
    return tuple(modules)


def _variants() -> Iterator[tuple[str, str, dict[str, Shape]]]:
    """Yields a module's kind, its place in the AB-UPT tree and the shapes of its parameters."""
    for bias, normed in itertools.product(_BOTH, _BOTH[::-1]):
        yield "self attention", "geometry_blocks_0/attention_block/", _self_attention("", bias, normed)
        yield (
            "anchor attention",
            "geometry_blocks_0/attention_block/",
            _self_attention("mixed_attention/", bias, normed),
        )
        yield "PerceiverAttention", "geometry_blocks_0/attn/", _perceiver_attention("", "D", bias, normed)
    for bias, normed, scaled in itertools.product(_BOTH, _BOTH[::-1], _BOTH):
        # Biases of norms and MLP beside attention without biases are those of runs before `bias` took them as well.
        for norm_bias, mlp_bias in ((True, True), (False, True), (False, False), (None, True), (None, False)):
            yield from _blocks(bias, normed, scaled, norm_bias, mlp_bias)
    for (message_dim, features_dim), readd, bias in itertools.product(_POOLING_DIMS, _BOTH, _BOTH):
        for message_mode in ("mlp", "linear", "identity"):
            pooling = _pooling(message_dim, features_dim, readd, bias, message_mode)
            yield "SupernodePooling", "encoder/", pooling


def _blocks(
    bias: bool, normed: bool, scaled: bool, norm_bias: bool | None, mlp_bias: bool
) -> Iterator[tuple[str, str, dict[str, Shape]]]:
    """Yields the blocks; `norm_bias` is None where a condition leaves the norms without parameters."""
    conditioned = norm_bias is None
    mlp = _linear("mlp/fc1", "C", "E", mlp_bias) | _linear("mlp/fc2", "E", "C", mlp_bias)
    if scaled:
        mlp |= {"ls1/gamma": _shape("C"), "ls2/gamma": _shape("C")}

    def norms(**dims: str) -> dict[str, Shape]:
        return (
            {} if conditioned else {k: v for name, dim in dims.items() for k, v in _norm(name, dim, norm_bias).items()}
        )

    modulation = _linear("modulation", "K", "6C") if conditioned else {}
    for inner in ("", "mixed_attention/"):
        attention = _self_attention(f"attention_block/{inner}", bias, normed)
        yield "TransformerBlock", "geometry_blocks_0/", norms(norm1="C", norm2="C") | attention | mlp | modulation
    if conditioned:
        wide = Dim(6, "C", (2, "D"))
        modulation = {"modulation/kernel": (Dim(1, "K"), wide), "modulation/bias": (wide,)}
    attention = _perceiver_attention("attn/", "D", bias, normed)
    norm_shapes = norms(norm1q="C", norm1kv="D", norm2="C")
    yield "PerceiverBlock", "geometry_blocks_0/", norm_shapes | attention | mlp | modulation


# Input channels of the first message layer and, with point features, of `feature_down_projection`, for relpos, abspos
# and absrelpos.
_POOLING_DIMS = (("C", None), ("2C", None), ("3C", None), ("C", "3C"), ("2C", "2C"))


def _pooling(
    message_dim: str, features_dim: str | None, readd: bool, bias: bool, message_mode: str
) -> dict[str, Shape]:
    shapes = _linear("proj", "2C", "C", bias) if readd else {}
    if message_mode == "mlp":
        shapes |= _linear("message_0", message_dim, "C", bias) | _linear("message_2", "C", "C", bias)
    elif message_mode == "linear":
        shapes |= _linear("message", message_dim, "C", bias)
    if features_dim is not None:
        shapes |= _linear("feature_projection", "F", "C", bias)
        shapes |= _linear("feature_down_projection", features_dim, "C", bias)
    return shapes


def _self_attention(prefix: str, bias: bool, normed: bool) -> dict[str, Shape]:
    projections = _linear(f"{prefix}qkv", "C", "3C", bias) | _linear(f"{prefix}proj", "C", "C", bias)
    return projections | _head_norms(prefix, normed)


def _perceiver_attention(prefix: str, kv_dim: str, bias: bool, normed: bool) -> dict[str, Shape]:
    query, key_value = _linear(f"{prefix}q", "C", "C", bias), _linear(f"{prefix}kv", kv_dim, "2C", bias)
    return query | key_value | _linear(f"{prefix}proj", "C", "C", bias) | _head_norms(prefix, normed)


def _head_norms(prefix: str, normed: bool) -> dict[str, Shape]:
    return {f"{prefix}{name}/scale": _shape("H") for name in ("q_norm", "k_norm")} if normed else {}


def _linear(path: str, in_dim: str, out_dim: str, bias: bool = True) -> dict[str, Shape]:
    kernel = {f"{path}/kernel": _shape(in_dim, out_dim)}
    return kernel | {f"{path}/bias": _shape(out_dim)} if bias else kernel


def _norm(path: str, dim: str, bias: bool | None) -> dict[str, Shape]:
    scale = {f"{path}/scale": _shape(dim)}
    return scale | {f"{path}/bias": _shape(dim)} if bias else scale


def _shape(*dims: str) -> Shape:
    return tuple(Dim(int(dim[:-1] or 1), dim[-1]) for dim in dims)
