"""Entries of a state dict as numpy arrays, and back to torch tensors: the same dtypes, the same bits."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emmi_jax.convert.names import CONSTANTS
from emmi_jax.files.pt import BFLOAT16, to_numpy

_COUNTER = "n_averaged"
"""Of `AveragedModel`."""


def read_entries(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a state dict; torch is not needed for one of numpy arrays.

    Args:
        state_dict: Torch tensors or arrays by name, or a checkpoint that holds them under ``"state_dict"``.

    Returns:
        Numpy arrays by name, without constants, and without what `torch.compile`, `DataParallel` and `AveragedModel`
        add to names; a value that is no readable array comes back as it is.

    Raises:
        ValueError: This is no mapping, a name is no string, or two names differ by such additions alone.
    """
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"expected a state dict, a mapping of names to tensors, got {type(state_dict).__name__}")
    if isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    for name in state_dict:
        if not isinstance(name, str):
            raise ValueError(f"the names in a state dict are strings, got {name!r}")
    names = [name for name in state_dict if name.rpartition(".")[2] not in (*CONSTANTS, _COUNTER)]
    plain = dict(zip(names, _without_wrappers(names), strict=True))
    counts = Counter(plain.values())
    if twice := [name for name, short in plain.items() if counts[short] > 1]:
        raise ValueError(f"the state dict has several entries for one parameter: {twice}")
    return {short: to_numpy(state_dict[name]) for name, short in plain.items()}


def _without_wrappers(names: Sequence[str]) -> list[str]:
    plain = [re.sub(r"(^|\.)_orig_mod\.", r"\1", name) for name in names]
    while plain and all(name.startswith("module.") for name in plain):
        plain = [name.removeprefix("module.") for name in plain]
    return plain


def to_tensor(array: np.ndarray) -> Any:
    """Returns a torch tensor with its own copy of the array, of the same dtype and bits."""
    torch: Any = importlib.import_module("torch")
    array = np.array(array, order="C")
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
