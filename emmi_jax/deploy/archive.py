"""The members of an exported file, read with checks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .draws import Array
from .manifest import Entry
from .parsing import Archive, Header, read_header, refusing_damage

_NOT_A_MODEL = "not an exported model, or a damaged one"
_BITS = {"bfloat16": np.dtype("<u2")}
"""Storage of dtypes that `.npy` does not know."""


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

    def __init__(self, path: Path) -> None:
        self.path, self._archive = path, Archive(path, f"{path}: {_NOT_A_MODEL}")
        self._left = {name: info.file_size for name, info in self._archive.members.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.__exit__()

    def error(self, reason: str) -> ValueError:
        """Returns the error that says what is wrong with the file."""
        return ValueError(f"{self.path}: {_NOT_A_MODEL}: {reason}")

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a member; each can be opened once, and a ValueError says what is wrong with it."""
        self.skip(name)
        with refusing_damage(f"{self.path}: {_NOT_A_MODEL}: {name}"), self._archive.open(name) as file:
            yield file

    def size(self, name: str) -> int:
        """Returns the size of a member in bytes; 0 if there is none."""
        return self._left.get(name, 0)

    def skip(self, name: str) -> None:
        """Leaves out a member that must be there."""
        if self._left.pop(name, None) is None:
            raise self.error(f"member {name!r} is missing")

    def finish(self) -> None:
        """Refuses members that the manifest does not name."""
        if self._left:
            raise self.error(f"member {min(self._left)!r:.80} is not in its manifest")


def read_npy(members: Members, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Reads an array after comparing its header with the manifest; an object array is refused, never unpickled."""
    size = members.size(name)
    with members.open(name) as file:
        header = read_header(file, size)
        expected = Header(shape, _BITS.get(dtype) or np.dtype(dtype), False)
        if header != expected:
            held, named = (f"{x.dtype} {list(x.shape)}" for x in (header, expected))
            raise ValueError(f"it holds {held}, the manifest says {named}")
        array = np.frombuffer(file.read(), header.dtype).reshape(shape)
        return array if dtype not in _BITS else array.view(jnp.dtype(dtype))


def read_program(members: Members, name: str, entry: Entry, jax_version: str) -> Program:
    """Reads a program; it is compiled when it is first called."""
    with members.open(name) as file:
        content = file.read()
    try:
        exported = jax.export.deserialize(bytearray(content))
    except ImportError as error:
        raise ImportError(f"{error}: pip install flatbuffers") from None
    except Exception as error:
        # JAX has no error of its own for bytes that are no program.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        versions = f"exported by jax {jax_version}, read by {jax.__version__}"
        raise members.error(f"{name} is no program of this jax ({versions}): {reason:.80}") from None
    return Program(entry.function, entry.anchors, entry.num_queries, entry.kernel, jax.jit(exported.call))
