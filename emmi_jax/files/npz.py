"""Points and fields in `.npz` files: read with checks, written atomically."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from emmi_jax.deploy.parsing import Archive, Header, read_header, refusing_damage
from emmi_jax.files.atomic import atomic_path, check_memory
from emmi_jax.files.npy import read_chunks
from emmi_jax.points import Array, PointSet, check_range

_Scalar = TypeVar("_Scalar", bound=np.generic)

POSITION = "position"


def read_case(path: Path, *, mask_nan: bool = False) -> PointSet:
    """Reads one case: the array `position` [N, 3], in any unit, and every other array as a field.

    Args:
        path: An `.npz` file of numeric arrays; fields are (N,) or (N, F).
        mask_nan: Whether a field may have NaN at some points.

    Returns:
        Positions [N, 3] and fields [N, F], float64.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an `.npz` file, it has no `position`, no points or no field, or an array has the wrong
            shape, is not numeric or not finite; the message names the array.
    """
    arrays = read_arrays(path)
    if POSITION not in arrays:
        raise ValueError(f"{path}: no array {POSITION!r}; the file holds {sorted(arrays)}")
    position = checked_positions(path, POSITION, arrays.pop(POSITION))
    if not len(position):
        raise ValueError(f"{path}: {POSITION!r} holds no points")
    if not arrays:
        raise ValueError(f"{path}: no field beside {POSITION!r}: expected at least one array of {len(position)} rows")
    fields: dict[str, Array] = {
        name: _checked_field(path, name, array, len(position), mask_nan) for name, array in arrays.items()
    }
    return PointSet(position, fields)


def read_arrays(path: Path, names: Container[str] | None = None) -> dict[str, NDArray[np.float64]]:
    """Reads arrays of an `.npz` file as float64.

    Args:
        path: The file.
        names: Arrays to read, if the file holds them; None means all.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an `.npz` file, it is damaged, or an array is not numeric.
    """
    arrays, num_bytes = {}, 0
    for name, header, chunks in open_arrays(path, names):
        if header.dtype.kind == "b":
            raise ValueError(f"{path}: array {name!r} holds {header.dtype}, expected real numbers")
        num_bytes += math.prod(header.shape) * np.dtype(np.float64).itemsize
        check_memory(path, num_bytes)
        array, start = np.empty(header.shape or (1,)), 0
        with refusing_damage(f"{path}: array {name!r} cannot be read"), np.errstate(over="ignore"):
            for rows in chunks:
                array[start : start + len(rows)] = rows
                start += len(rows)
        arrays[name] = array.reshape(header.shape)
    return arrays


def open_arrays(
    path: Path, names: Container[str] | None = None
) -> Iterator[tuple[str, Header, Iterator[NDArray[Any]]]]:
    """Yields name, header and rows of the arrays of an `.npz` file; rows are decompressed, and checked, as they
    are asked for.

    Args:
        path: The file.
        names: Arrays to read, if the file holds them; None means all.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an `.npz` file, it is damaged, or an array does not hold numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    methods = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    with Archive(path, f"{path}: not an .npz file, or a truncated one", methods) as archive:
        for member, info in archive.members.items():
            name = member.removesuffix(".npy")
            if names is None or name in names:
                with refusing_damage(f"{path}: array {name!r} cannot be read"), archive.open(member) as file:
                    header = read_header(file, info.file_size)
                    yield name, header, read_chunks(file, header)


def checked_positions(path: Path, name: str, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Returns positions [N, 3] after checking shape and values; a memory map is read chunk by chunk.

    Raises:
        ValueError: The shape is not (N, 3), or a value is not finite.
    """
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"{path}: array {name!r} has shape {array.shape}, expected (N, 3)")
    check_range(path, name, array)
    return array


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.floating[Any]]]) -> None:
    """Writes an `.npz` file atomically.

    Raises:
        UnwritableFileError: The disk is full, for instance.
    """
    # Not by `np.savez`, which takes arrays as arguments: one of its own names would be lost.
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _checked_field(
    path: Path, name: str, array: NDArray[np.float64], num_points: int, mask_nan: bool
) -> NDArray[np.float64]:
    if array.ndim not in (1, 2) or len(array) != num_points or array.size == 0:
        raise ValueError(
            f"{path}: field {name!r} has shape {array.shape}, expected ({num_points},) or ({num_points}, F)"
        )
    check_range(path, name, array, mask_nan=mask_nan)
    return array.reshape(num_points, -1)
