"""Files of PyTorch tensors, read without running what is in them."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emmi_jax.deploy.parsing import Archive, refusing_damage

EXPECTED_DTYPES = "16, 32 or 64 bit floats, or integers"
BFLOAT16 = np.dtype(jnp.bfloat16)

_READ_BYTES = 1 << 20
_KINDS = "fiubV"  # V is bfloat16


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
    check_archive(path)
    content = load_archive(path, use_mmap=True)
    if not is_tensor(content):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a tensor")
    return stored_numbers(str(path), content)


def check_archive(path: Path) -> None:
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


def check_checksums(path: Path) -> None:
    """Refuses flipped bits, which torch does not look for."""
    with _open_archive(path) as archive:
        for name in archive.members:
            with refusing_damage(f"{path} is damaged"), archive.open(name) as member:
                while member.read(_READ_BYTES):
                    pass


@lru_cache(4096)
def _check_unchanged(path: Path, time: int, size: int) -> None:
    """Checks a file of training data once, until it changes."""
    check_checksums(path)


def load_archive(path: Path, *, use_mmap: bool = False) -> Any:
    """Returns the content of a file that was checked, with its tensors on the CPU."""
    torch: Any = import_optional("torch", "a file of this kind")
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


def is_tensor(value: Any) -> bool:
    """Returns whether a value is a torch tensor."""
    return isinstance(value, import_optional("torch", "a file of this kind").Tensor)


def stored_numbers(place: str, tensor: Any) -> np.ndarray:
    """Returns a tensor as an array after checking that it is no larger than what is stored of it."""
    array = to_numpy(tensor)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        kind = str(tensor.dtype).removeprefix("torch.") + ("" if "strided" in str(tensor.layout) else ", sparse")
        raise ValueError(f"{place} is a tensor of {kind}, expected {EXPECTED_DTYPES}")
    if array.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{place} claims {list(array.shape)} numbers, more than are stored: save a copy that is .contiguous()"
        )
    return array


def import_optional(name: str, what: str) -> ModuleType:
    """Imports a package that reading a kind of file needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"reading {what} needs the package {name}") from error


def to_numpy(value: Any) -> Any:
    """Returns a torch tensor or JAX array as a numpy array of the same dtype and bits, anything else as it is."""
    # A tensor can only come from a torch that is loaded already; users of numpy never load it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        try:
            tensor = value.detach().cpu()
            if tensor.dtype == torch.bfloat16:
                return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
            return tensor.numpy()
        except (RuntimeError, TypeError):
            return value
    return np.asarray(value) if isinstance(value, jax.Array) else value
