"""Statistics of the arrays in files, measured in one pass with one chunk in memory: `emmi-jax stats`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from emmi_jax.data.moments import Moments
from emmi_jax.meshes.mesh import read_mesh
from emmi_jax.points import CHUNK_ROWS, row_chunks

NamedChunks = Iterator[tuple[str, Iterator[NDArray[Any]]]]


def file_statistics(paths: Sequence[Path]) -> dict[str, Moments]:
    """Measures every array of numbers in files; arrays of the same name in several files count as one.

    Args:
        paths: `.npz`, `.npy` or mesh files. The array of an `.npy` file is called as the file; a mesh has `position`
            and its arrays, where that of the points is marked if the cells have one of the same name.

    Returns:
        Statistics by name of the array.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged or unknown, has no numbers, or two arrays of a name differ in their channels.
    """
    found: dict[str, Moments] = {}
    for path in paths:
        num_arrays = 0
        for name, chunks in _arrays(path):
            num_arrays += 1
            try:
                here = Moments.of_chunks(chunks)
                found[name] = found[name].merge(here) if name in found else here
            except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path}: array {name!r}: {error}") from None
        if not num_arrays:
            raise ValueError(f"{path}: holds no array")
    return found


def statistics_json(statistics: Mapping[str, Moments]) -> dict[str, Any]:
    """Returns statistics as JSON values; where no row is finite there are none."""
    return {
        name: {
            "count": m.count,
            "num_not_finite": m.num_not_finite,
            **(
                {"min": m.minimum.tolist(), "max": m.maximum.tolist(), "mean": m.mean.tolist(), "std": m.std.tolist()}
                if m.count
                else {}
            ),
        }
        for name, m in statistics.items()
    }


def statistics_table(statistics: Mapping[str, Moments], title: str) -> Table:
    """Lays out statistics, a row a channel, in 80 columns."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("array", overflow="fold")
    for column in ("count", "min", "max", "mean", "std"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, m in statistics.items():
        for channel in range(len(m.mean)):
            label = name if len(m.mean) == 1 else f"{name}[{channel}]"
            numbers = (m.minimum, m.maximum, m.mean, m.std)
            table.add_row(label, f"{m.count:,}", *(f"{x[channel]:.4g}" if m.count else "–" for x in numbers))
    return table


def _arrays(path: Path) -> NamedChunks:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    match path.suffix.lower():
        case ".npz":
            yield from _npz_arrays(path)
        case ".npy":
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path}: not an .npy file of numbers, or a damaged one: {error}") from None
            yield path.stem, _numbers(array)
        case _:
            dataset = read_mesh(path).dataset
            yield "position", row_chunks(np.asarray(dataset.points))
            for name in dataset.cell_data:
                yield name, _numbers(np.asarray(dataset.cell_data[name]))
            for name in dataset.point_data:
                label = f"{name} (points)" if name in dataset.cell_data else name
                yield label, _numbers(np.asarray(dataset.point_data[name]))


def _npz_arrays(path: Path) -> NamedChunks:
    """Reads the members of the archive as they are decompressed, never one whole."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an .npz file, or a truncated one")
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            yield member.removesuffix(".npy"), _member_chunks(archive, member)


def _member_chunks(archive: zipfile.ZipFile, member: str) -> Iterator[NDArray[Any]]:
    with archive.open(member) as file:
        yield from _npy_chunks(file)


def _npy_chunks(file: IO[bytes]) -> Iterator[NDArray[Any]]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    _check_kind(dtype)
    num_rows = shape[0] if shape else 1
    row_shape = shape[1:]
    if is_fortran and row_shape:
        # Columns follow one another, so a row is complete at the end only.
        whole = np.frombuffer(file.read(), dtype)
        yield from row_chunks(whole.reshape(shape[::-1]).T)
        return
    row_bytes = dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
    for start in range(0, max(num_rows, 1), CHUNK_ROWS):
        rows = min(CHUNK_ROWS, num_rows - start)
        content = file.read(rows * row_bytes)
        if len(content) < rows * row_bytes:
            raise ValueError("it is truncated")
        yield np.frombuffer(content, dtype).reshape(rows, *row_shape)


def _numbers(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    _check_kind(array.dtype)
    yield from row_chunks(np.atleast_1d(array))


def _check_kind(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {dtype}, expected real numbers")
