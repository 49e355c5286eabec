"""Arrays in `.npy` files that need not fit in memory: mapped or read chunk by chunk, written row by row."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.deploy.parsing import Header, read_header
from emmi_jax.files.atomic import atomic_path, naming_the_file
from emmi_jax.points import CHUNK_ROWS, row_chunks

_HEADER_SIZE = 128


def map_array(path: Path) -> NDArray[Any]:
    """Maps an array of real numbers; nothing is read yet.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no `.npy` file, a truncated one, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            header = read_header(file, path.stat().st_size)
            offset = file.tell()
    except ValueError as error:
        raise ValueError(f"{path}: not an .npy file of numbers, or a damaged one: {error}") from None
    if header.dtype.kind == "b":
        raise ValueError(f"{path}: holds {header.dtype}, expected real numbers")
    order: Any = "F" if header.is_fortran else "C"
    if not header.num_bytes:
        return np.empty(header.shape, header.dtype, order)
    return np.memmap(path, header.dtype, "r", offset, header.shape, order)


def read_chunks(file: IO[bytes], header: Header) -> Iterator[NDArray[Any]]:
    """Yields the rows of an array whose header has been read, a number without rows as one."""
    shape, dtype, is_fortran = header
    if is_fortran and len(shape) > 1:
        # Columns are stored one after another, so no row is complete before the end.
        yield from row_chunks(np.frombuffer(file.read(), dtype).reshape(shape[::-1]).T)
        return
    num_rows = shape[0] if shape else 1
    for start in range(0, max(num_rows, 1), CHUNK_ROWS):
        rows = min(CHUNK_ROWS, num_rows - start)
        content = file.read(rows * dtype.itemsize * math.prod(shape[1:]))
        yield np.frombuffer(content, dtype).reshape(rows, *shape[1:])


def array_file_size(shape: tuple[int, ...]) -> int:
    """Returns how many bytes `new_array` writes for an array of this shape."""
    return _HEADER_SIZE + np.dtype(np.float32).itemsize * math.prod(shape)


@contextmanager
def scratch_array(folder: Path, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """Yields a memory-map of a new float32 array on the disk of a folder, which has no name and is gone afterwards.

    Raises:
        UnwritableFileError: The disk is full, for instance.
    """
    with naming_the_file(folder), tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, max(1, np.dtype(np.float32).itemsize * math.prod(shape)))
        yield np.memmap(file, np.float32, "r+", shape=shape)


@contextmanager
def new_array(path: Path, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """Yields a memory-map of a new float32 array, which is written atomically.

    Args:
        path: The `.npy` file.
        shape: Shape of the array.

    Raises:
        UnwritableFileError: The disk is full, for instance.
    """
    with atomic_path(path) as partial:
        with partial.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            # The whole file is reserved at once: a write through a map to a full disk would kill the process.
            os.posix_fallocate(file.fileno(), 0, array_file_size(shape))
        if not math.prod(shape):
            yield np.empty(shape, np.float32)
            return
        array = np.load(partial, mmap_mode="r+", allow_pickle=False)
        yield array
        array.flush()
