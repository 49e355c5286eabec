"""Weights of the whole AB-UPT model, in the layouts of the reference's releases and of its main."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax

from emmi_jax.config import AbUptConfig
from emmi_jax.convert.entries import read_entries
from emmi_jax.convert.names import LAYOUTS, torch_names
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
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import init_params


def ab_upt_from_torch(
    state_dict: Mapping[str, Any], config: AbUptConfig, *, layout: str | None = None
) -> dict[str, Any]:
    """Converts the weights of an AB-UPT model.

    Args:
        state_dict: Torch tensors or numpy arrays by name, or a checkpoint that holds them under ``"state_dict"``, in
            one of the layouts ``"1.x"``, ``"2026.4"``, ``"tutorial"`` and ``"main"``. Constants (``omega``,
            ``padding_tensor``) are ignored.
        config: Configuration of the model.
        layout: How the names are read; by default the layout whose names occur most.

    Returns:
        The Flax parameters of `AnchoredBranchedUPT(config)`, new numpy arrays of the same dtypes and bits.

    Raises:
        ValueError: The layout is unknown, no layout has names for such a model, or entries are unknown, missing,
            misshapen, of different dtypes where they have to be fused, or not floating point; the message lists them
            all.
    """
    if layout is not None:
        _check_layout(layout)
    entries = read_entries(state_dict)
    tables, refusals = {}, []
    for name in LAYOUTS if layout is None else (layout,):
        try:
            tables[name] = _table(config, name)
        except ValueError as error:
            refusals.append(str(error))
    if not tables:
        raise ValueError("\n".join(refusals))
    layout = max(tables, key=lambda name: sum(n in entries for t in tables[name].values() for n in t.names))
    problems = torch_problems(entries, tables[layout])
    if problems:
        title = f"this state dict, read in the layout {layout}, does not fit the configuration; it has"
        raise ValueError("\n  ".join([title, *problems]))
    return to_params(entries, tables[layout])


def ab_upt_to_torch(params: Mapping[str, Any], config: AbUptConfig, *, layout: str) -> dict[str, Any]:
    """Converts the weights of an AB-UPT model to PyTorch, the inverse of `ab_upt_from_torch`.

    Args:
        params: Parameters of `AnchoredBranchedUPT(config)`.
        config: Configuration of the model.
        layout: ``"1.x"``, ``"2026.4"``, ``"tutorial"`` or ``"main"``.

    Returns:
        Torch tensors by name, copies of the same dtypes and bits. Constants are left to the PyTorch module, so load
        them with ``strict=False`` where it keeps constants in its state dict.

    Raises:
        ValueError: The layout is unknown or has no names for some parameters of such a model (blocks with untied
            weights in ``"1.x"`` and ``"tutorial"``, which also lacks conditions, layer scales and point features; what
            is new in ``"main"``), computes other norms, or parameters are unknown, missing, misshapen, not floating
            point, or not equal although branches share them; the message lists them all.
    """
    _check_layout(layout)
    table = _table(config, layout)
    arrays = flatten_params(params)
    problems = flax_problems(arrays, table)
    if problems:
        raise ValueError("\n  ".join(["these parameters do not fit the configuration; the tree has", *problems]))
    return to_state_dict(arrays, table)


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


@functools.lru_cache(maxsize=16)
def _table(config: AbUptConfig, layout: str) -> Table:
    if config.norm == "rms" and layout != "main":
        raise ValueError(f"layout {layout} is that of models with norm='layer', the configuration has norm='rms'")
    if config.norm == "layer" and config.readout_norm and layout == "main":
        raise ValueError("layout main is that of models with norm='rms', the configuration has norm='layer'")
    table = {
        path: Target(torch_names(path, layout, _untied_branches(path, config)), shape)
        for path, shape in _shapes(config).items()
    }
    nameless = [path for path, target in table.items() if not target.names]
    if nameless:
        raise ValueError("\n  ".join([f"layout {layout} has no names for these parameters:", *nameless]))
    # Branches of an untied block share entries; a name that several other parameters have is ambiguous.
    owners = {(name, _without_branch(path, config)) for path, target in table.items() for name in target.names}
    counts = Counter(name for name, _ in owners)
    if ambiguous := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"in layout {layout} several parameters would share a name, rename the branches: {ambiguous}")
    return table


def _untied_branches(path: str, config: AbUptConfig) -> tuple[str, ...]:
    """Returns the branches below which the weights of a path's block lie; none if the branches share them."""
    block = re.match(r"physics_blocks_(\d+)/", path)
    return config.branches if block and config.physics_blocks[int(block[1])].endswith("_untied") else ()


def _without_branch(path: str, config: AbUptConfig) -> str:
    if not _untied_branches(path, config):
        return path
    block, _, rest = path.split("/", 2)
    return f"{block}/{rest}"


@functools.lru_cache(maxsize=16)
def _shapes(config: AbUptConfig) -> dict[str, Shape]:
    """Returns the shapes of all parameters by path, from the model itself."""
    # The tree is the same for every implementation, and this one runs everywhere.
    model = AnchoredBranchedUPT(dataclasses.replace(config, implementation="masked"))
    flat = flatten_params(jax.eval_shape(functools.partial(init_params, model)))
    return {path: tuple(Dim(size) for size in leaf.shape) for path, leaf in flat.items()}
