"""Arrays in `.npy` files that need not fit in memory: mapped for reading, written row by row."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.files.atomic import whole_file

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
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not an .npy file of numbers, or a damaged one: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise ValueError(f"{path}: holds {getattr(array, 'dtype', 'no single array')}, expected real numbers")
    return array


def array_file_size(shape: tuple[int, ...]) -> int:
    """Returns how many bytes `new_array` writes for an array of this shape."""
    return _HEADER_SIZE + np.dtype(np.float32).itemsize * math.prod(shape)


@contextmanager
def new_array(path: Path, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """Yields a memory-map of a new float32 array, which is written atomically.

    Args:
        path: The `.npy` file.
        shape: Shape of the array.

    Raises:
        UnwritableFileError: The disk is full, for instance.
    """
    with whole_file(path) as partial:
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
