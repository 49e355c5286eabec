"""Files of PyTorch weights, read without running what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emmi_jax.files import pt

_SAFETENSORS_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


class TorchFile(NamedTuple):
    """Content of a file of weights.

    Args:
        state_dict: Numpy arrays by name.
        extra: Whatever stands beside the weights, such as ``model_config``; the metadata of a ``.safetensors`` file.
    """

    state_dict: dict[str, np.ndarray]
    extra: dict[str, Any]


def load_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """Reads a file of PyTorch weights.

    Args:
        path: A ``.th``, ``.pt`` or ``.pth`` file, which needs torch, with a state dict at the top or under
            ``"state_dict"``; or a ``.safetensors`` file, which needs safetensors but no torch.

    Returns:
        The weights, and what stands beside them.

    Raises:
        ValueError: The suffix is unknown, the file is empty, truncated or of another format, it could execute code, or
            it holds no state dict.
        ImportError: torch or safetensors is not installed.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".th" | ".pt" | ".pth":
            pt.check_archive(path)
            pt.check_checksums(path)
            return _state_dict_of(path, pt.load_archive(path))
        case ".safetensors":
            return _load_safetensors(path)
    raise ValueError(f"{path}: the suffix must be .th, .pt, .pth or .safetensors, got {path.suffix!r}")


def _state_dict_of(path: Path, content: Any) -> TorchFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict")
    if isinstance(content.get("state_dict"), Mapping):
        state_dict = content["state_dict"]
        extra = {key: value for key, value in content.items() if key != "state_dict"}
    else:
        state_dict, extra = content, {}
    others = [name for name, value in state_dict.items() if not isinstance(name, str) or not pt.is_tensor(value)]
    if others or not state_dict:
        reason = f"no tensors are {others!s:.160}" if others else "it has no entries"
        raise ValueError(f"{path} holds no state dict, at the top or under 'state_dict': {reason}")
    return TorchFile({name: pt.stored_numbers(f"{path}: {name!r}", value) for name, value in state_dict.items()}, extra)


def _load_safetensors(path: Path) -> TorchFile:
    safetensors: Any = pt.import_optional("safetensors", "a .safetensors file")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    arrays = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _SAFETENSORS_DTYPES:
                    raise ValueError(f"{path}: {name!r} is a tensor of {dtype}, expected {pt.EXPECTED_DTYPES}")
                arrays[name] = file.get_tensor(name)
            return TorchFile(arrays, file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, or it is no safetensors file: {error!s:.160}") from error
