"""The members of an exported file, read with checks."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .draws import Array
from .manifest import MANIFEST, Entry

_MAX_NPY_HEADER = 2**16
_BITS = {"bfloat16": np.dtype("<u2")}
"""How dtypes that `.npy` does not know are stored."""
_KINDS = "fiub"


class Program(NamedTuple):
    """A program of the file, ready to be called."""

    function: str
    anchors: dict[str, int] | None
    num_queries: int | None
    kernel: str
    run: Callable[..., Any]

    @property
    def title(self) -> str:
        """Function and sizes in words."""
        sizes = "any number of points" if self.anchors is None else f"{sum(self.anchors.values())} anchors"
        return f"{self.function}, {sizes}" + ("" if self.num_queries is None else f", {self.num_queries} queries")


class Members:
    """The members of a file, read one by one after checks."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self._file = path, file
        self._left: dict[str, zipfile.ZipInfo] = {}
        size, total = path.stat().st_size, 0
        for info in file.infolist():
            # Without compression all members together are no larger than the file, whatever they declare.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise self.error(f"member {info.filename!r:.80} is compressed or encrypted")
            total += info.file_size
            if total > size:
                raise self.error(
                    f"member {info.filename!r:.80} declares {info.file_size} bytes, beyond the file's {size}"
                )
            if info.filename in self._left:
                raise self.error(f"member {info.filename!r:.80} occurs twice")
            self._left[info.filename] = info

    def error(self, reason: str) -> ValueError:
        """Returns the error that says what is wrong with the file."""
        return ValueError(f"{self.path}: not an exported model, or a damaged one: {reason}")

    def read(self, name: str) -> bytes:
        """Reads a member; each can be read once."""
        if name not in self._left:
            raise self.error(f"member {name!r} is missing")
        try:
            return self._file.read(self._left.pop(name))
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
            raise self.error(f"member {name!r} cannot be read: {error}") from None

    def skip(self, name: str) -> None:
        """Leaves out a member that must be there."""
        if self._left.pop(name, None) is None:
            raise self.error(f"member {name!r} is missing")

    def manifest_size(self) -> int:
        """Returns the size of the manifest in bytes."""
        return self._left[MANIFEST].file_size if MANIFEST in self._left else 0

    def finish(self) -> None:
        """Refuses members that the manifest does not name."""
        if self._left:
            raise self.error(f"member {min(self._left)!r:.80} is not in its manifest")


def read_npy(members: Members, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Reads an array after comparing its header with the manifest; an object array is refused, never unpickled."""
    content = members.read(name)
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("expected version 1.0")
        found, is_fortran, stored = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_NPY_HEADER)
        expected = _BITS.get(dtype) or np.dtype(dtype)
    except (ValueError, TypeError) as error:
        raise members.error(f"{name}: {str(error).splitlines()[0]:.80}") from None
    num_bytes = len(content) - file.tell()
    if found != shape or is_fortran or stored != expected or stored.kind not in _KINDS:
        raise members.error(f"{name} holds {stored} {list(found)}, the manifest says {expected} {list(shape)}")
    if num_bytes != math.prod(shape) * stored.itemsize:
        raise members.error(f"{name} has {num_bytes} bytes, expected {math.prod(shape) * stored.itemsize}")
    array = np.frombuffer(content, stored, offset=file.tell()).reshape(shape)
    return array if dtype not in _BITS else array.view(jnp.dtype(dtype))


def read_program(members: Members, name: str, entry: Entry) -> Program:
    """Reads a program; it is compiled when it is first called."""
    content = members.read(name)
    try:
        exported = jax.export.deserialize(bytearray(content))
    except ImportError as error:
        raise ImportError(f"{error}: pip install flatbuffers") from None
    except Exception as error:
        # JAX has no error of its own for bytes that are no program.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise members.error(f"{name} is no program of this jax ({jax.__version__}): {reason:.80}") from None
    return Program(entry.function, entry.anchors, entry.num_queries, entry.kernel, jax.jit(exported.call))
