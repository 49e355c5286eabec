"""OpenFOAM's field files: the same file with another internal field, in the format that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.openfoam_dimensions import Dimensions, read_dimensions
from emmi_jax.meshes.openfoam_files import open_foam
from emmi_jax.points import Array

KINEMATIC_PRESSURE = (0, 2, -2, 0, 0, 0, 0)
"""Dimensions of the pressure of incompressible solvers, which is over density."""

_TOKEN = re.compile(rb'//[^\n]*|/\*.*?\*/|"(?:[^"\\]|\\.)*"|[{}]|[^\s{};"/]+|[\s;/"]', re.DOTALL)
_HEADER = re.compile(rb"\bFoamFile\s*\{(.*?)\}", re.DOTALL)
_BINARY_LIST = re.compile(rb"nonuniform\s+List<(?:scalar|vector)>\s+(\d+)\s*\(")
_SAME_AS_INSIDE = re.compile(rb"\$\{?[:./]*internalField\b\}?")
_CHANNELS = {b"volScalarField": 1, b"volVectorField": 3}
_BYTES_PER_VALUE = 24
"""A float32 in text: sign, nine digits, point, exponent and a blank."""


class FieldFile(NamedTuple):
    """A field file without its internal field.

    Args:
        path: The file, for messages.
        head: Content before the value of the internal field.
        tail: Content after it.
        uniform: The value [F] of the internal field if it is uniform, else None.
        num_channels: 1 or 3.
        dtype: Type of numbers in a binary file; None for a text file.
        dimensions: How they are written, and their exponents; see `read_dimensions`.
    """

    path: Path
    head: bytes
    tail: bytes
    uniform: NDArray[np.float64] | None
    num_channels: int
    dtype: np.dtype[np.floating] | None
    dimensions: Dimensions


def read_field_file(path: Path) -> FieldFile:
    """Reads all of a field file but its internal field; `$internalField` of a uniform one is replaced by its value.

    Raises:
        ValueError: It is not a field of cells, or its internal field is computed by a directive.
    """
    with open_foam(path) as file:
        try:
            content = file.read()
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: damaged: {error}") from None
    header = _HEADER.search(content)
    kind = None if header is None else re.search(rb"\bclass\s+(\w+)\s*;", header[1])
    if header is None or kind is None or kind[1] not in _CHANNELS:
        given = "no header" if kind is None else kind[1].decode("latin-1")
        raise ValueError(f"{path}: expected a volScalarField or a volVectorField, got {given}")
    dtype = _binary_dtype(path, header[1])
    start = _start_of_value(path, content, header.end())
    end = _end_of_value(path, content, start, kind[1], dtype)
    value, tail = content[start:end].strip(), content[end:]
    uniform = None
    if value.startswith(b"uniform"):
        tail = _SAME_AS_INSIDE.sub(lambda _: value, tail)
        uniform = _numbers(value.removeprefix(b"uniform").strip(b" ()\t\n"), _CHANNELS[kind[1]])
    dimensions = read_dimensions(content[header.end() : start].decode("latin-1"))
    return FieldFile(path, content[:start], tail, uniform, _CHANNELS[kind[1]], dtype, dimensions)


class FieldWriter:
    """Writes the internal field chunk by chunk; see `field_writer`."""

    def __init__(self, file: IO[bytes], template: FieldFile) -> None:
        self._file, self._template = file, template

    def write(self, values: Array) -> None:
        """Writes the values [n, F] of the next cells."""
        if self._template.dtype is not None:
            self._file.write(np.ascontiguousarray(values, self._template.dtype).tobytes())
            return
        row = "%.9g\n" if values.shape[1] == 1 else "(%.9g %.9g %.9g)\n"
        self._file.write((row * len(values) % tuple(values.ravel().tolist())).encode())


@contextmanager
def field_writer(path: Path, template: FieldFile, num_cells: int) -> Iterator[FieldWriter]:
    """Opens a field file that has another internal field than the template, of as many cells.

    Args:
        path: The file to write.
        template: What it has besides, and the format.
        num_cells: How many rows will be written.
    """
    kind = "scalar" if template.num_channels == 1 else "vector"
    with path.open("wb") as file:
        file.write(template.head + f"nonuniform List<{kind}>\n{num_cells}\n(".encode())
        if template.dtype is None:
            file.write(b"\n")
        yield FieldWriter(file, template)
        file.write(b")" + template.tail)


def largest_field_file(template: FieldFile, num_cells: int) -> int:
    """Returns how many bytes a field file of as many cells has at most."""
    number = _BYTES_PER_VALUE if template.dtype is None else template.dtype.itemsize
    return len(template.head) + len(template.tail) + num_cells * (template.num_channels * number + 4) + 100


def _binary_dtype(path: Path, header: bytes) -> np.dtype[np.floating] | None:
    if re.search(rb"\bformat\s+binary\s*;", header) is None:
        return None
    arch = re.search(rb'\barch\s+"?([^";]+)', header)
    words = b"LSB;label=32;scalar=64".split(b";") if arch is None else re.split(rb"[;\s]+", header[arch.start() + 4 :])
    scalar = next((word.strip(b'"') for word in words if b"scalar=" in word), b"scalar=64")
    if b"MSB" in b" ".join(words) or scalar not in (b"scalar=32", b"scalar=64"):
        raise ValueError(f"{path}: expected little-endian numbers of 32 or 64 bits, got {arch[1] if arch else b''!r}")
    return np.dtype("<f4" if scalar == b"scalar=32" else "<f8")


def _start_of_value(path: Path, content: bytes, position: int) -> int:
    """Returns where the value of the entry `internalField` starts, which is in no comment and no block."""
    depth = 0
    for token in _TOKEN.finditer(content, position):
        depth += (token[0] == b"{") - (token[0] == b"}")
        if token[0] == b"internalField" and depth == 0:
            return token.end() + len(content[token.end() :][:1])
    raise ValueError(f"{path}: has no internalField")


def _end_of_value(path: Path, content: bytes, start: int, kind: bytes, dtype: np.dtype[np.floating] | None) -> int:
    rest = re.compile(rb"\s*").match(content, start)
    start = start if rest is None else rest.end()
    if content[start : start + 1] == b"#" or content[start : start + 1] == b"$":
        raise ValueError(f"{path}: internalField is {content[start : start + 20]!r}, expected its value")
    listed = _BINARY_LIST.match(content, start)
    if listed is not None and dtype is not None:
        start = listed.end() + int(listed[1]) * _CHANNELS[kind] * dtype.itemsize
    end = content.find(b";", start)
    if end < 0:
        raise ValueError(f"{path}: truncated in its internalField")
    return end


def _numbers(text: bytes, count: int) -> NDArray[np.float64] | None:
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        return None
    return values if len(values) == count else None
