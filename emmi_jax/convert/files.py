"""Files of PyTorch weights, read without running what is in them."""

from __future__ import annotations

import importlib
import os
import pickle
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from emmi_jax.convert.entries import to_numpy
from emmi_jax.deploy.parsing import Archive, refusing_damage

_READ_BYTES = 1 << 20
_KINDS = "fiubV"  # V is bfloat16
_SAFETENSORS_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
_EXPECTED = "16, 32 or 64 bit floats, or integers"


class TorchFile(NamedTuple):
    """What a file of weights holds.

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
            _check_archive(path)
            _check_checksums(path)
            return _state_dict_of(path, _load_archive(path))
        case ".safetensors":
            return _load_safetensors(path)
    raise ValueError(f"{path}: the suffix must be .th, .pt, .pth or .safetensors, got {path.suffix!r}")


def load_torch_tensor(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a file that holds a single tensor as `map_torch_tensor` does; a flipped bit is a ValueError, too."""
    path = Path(path)
    array = map_torch_tensor(path)
    status = path.stat()
    _check_unchanged(path, status.st_mtime_ns, status.st_size)
    return array


def map_torch_tensor(path: str | os.PathLike[str]) -> np.ndarray:
    """Maps a file that holds a single tensor into memory; its numbers are not read yet.

    Args:
        path: A ``.th``, ``.pt`` or ``.pth`` file, which needs torch.

    Returns:
        The array.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, truncated or of another format, it could execute code, or it holds no tensor.
        ImportError: torch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    _check_archive(path)
    content = _load_archive(path, use_mmap=True)
    if not _is_tensor(content):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a tensor")
    return _numbers(str(path), content)


def _check_archive(path: Path) -> None:
    """Refuses what torch reads carelessly: pickles, programs, compressed or overlapping members."""
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        raise ValueError(f"{path} is empty")
    if start[:1] == b"\x80":
        raise ValueError(f"{path} is refused: it is a bare pickle, not a zip of tensors, and may execute code")
    with _open_archive(path) as archive:
        names = list(archive.members)
        if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
            raise ValueError(
                f"{path} is refused: it is a TorchScript archive, which executes code; save its state_dict()"
            )
        if not any(name.endswith("/data.pkl") for name in names):
            raise ValueError(f"{path} is a zip, but not one of tensors as torch.save writes it")


def _open_archive(path: Path) -> Archive:
    return Archive(path, f"{path} is damaged or truncated, or it is no zip of tensors as torch.save writes it")


def _check_checksums(path: Path) -> None:
    """Refuses flipped bits, which torch does not look for."""
    with _open_archive(path) as archive:
        for name in archive.members:
            with refusing_damage(f"{path} is damaged"), archive.open(name) as member:
                while member.read(_READ_BYTES):
                    pass


@lru_cache(4096)
def _check_unchanged(path: Path, time: int, size: int) -> None:
    """Checks a file of training data once, until it changes."""
    _check_checksums(path)


def _load_archive(path: Path, *, use_mmap: bool = False) -> Any:
    torch: Any = _import("torch", "a file of this kind")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=use_mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        wants = f"it asks for {wanted[1]}" if wanted else "it holds more than tensors and plain values"
        raise ValueError(f"{path} is refused, because loading it could execute code: {wants}") from error
    except Exception as error:
        # Damaged archives make torch raise almost anything.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be read, it is probably damaged: {reason:.160}") from error


def _state_dict_of(path: Path, content: Any) -> TorchFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a state dict")
    if isinstance(content.get("state_dict"), Mapping):
        state_dict = content["state_dict"]
        extra = {key: value for key, value in content.items() if key != "state_dict"}
    else:
        state_dict, extra = content, {}
    others = [name for name, value in state_dict.items() if not isinstance(name, str) or not _is_tensor(value)]
    if others or not state_dict:
        found = f"no tensors are {others!s:.160}" if others else "it has no entries"
        raise ValueError(f"{path} holds no state dict, at the top or under 'state_dict': {found}")
    return TorchFile({name: _numbers(f"{path}: {name!r}", value) for name, value in state_dict.items()}, extra)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _import("torch", "a file of this kind").Tensor)


def _numbers(place: str, tensor: Any) -> np.ndarray:
    """Returns a tensor as an array after checking that it is no larger than what is stored of it."""
    array = to_numpy(tensor)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        kind = str(tensor.dtype).removeprefix("torch.") + ("" if "strided" in str(tensor.layout) else ", sparse")
        raise ValueError(f"{place} is a tensor of {kind}, expected {_EXPECTED}")
    if array.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{place} claims {list(array.shape)} numbers, more than are stored: save a copy that is .contiguous()"
        )
    return array


def _load_safetensors(path: Path) -> TorchFile:
    safetensors: Any = _import("safetensors", "a .safetensors file")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    arrays = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _SAFETENSORS_DTYPES:
                    raise ValueError(f"{path}: {name!r} is a tensor of {dtype}, expected {_EXPECTED}")
                arrays[name] = file.get_tensor(name)
            return TorchFile(arrays, file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated, or it is no safetensors file: {error!s:.160}") from error


def _import(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"reading {what} needs the package {name}") from error
