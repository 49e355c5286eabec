"""Statistics of the arrays in files, and scales from data in pieces: one pass, one piece in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.cfd.cases import Fields, PointSet, take_points
from emmi_jax.cfd.mesh_files import read_mesh
from emmi_jax.cfd.moments import CHUNK_ROWS, Moments, row_chunks
from emmi_jax.cfd.normalization import LOG_SCALED_FIELDS, FieldScale, Normalizer, compress

if TYPE_CHECKING:
    from rich.table import Table

NamedChunks = Iterator[tuple[str, Iterator[NDArray[Any]]]]


class DataMoments(NamedTuple):
    """Statistics of positions, and of fields by branch and name; log-scaled fields have those of the logarithm too."""

    position: Moments
    fields: dict[str, dict[str, tuple[Moments, Moments | None]]]

    @property
    def means(self) -> Fields:
        """Mean [F] by branch and field."""
        return {branch: {name: m.mean for name, (m, _) in fields.items()} for branch, fields in self.fields.items()}

    def normalizer(self, *, position_range: float, divergence_free: Collection[str] = ()) -> Normalizer:
        """Returns the scales.

        Args:
            position_range: The longest side of the box of all points, in model units.
            divergence_free: Fields whose scales keep the divergence zero; no logarithm is taken of them.

        Raises:
            ValueError: A value is not finite, or all positions coincide.
        """
        if self.position.num_not_finite:
            raise ValueError(f"{self.position.num_not_finite} positions are not finite")
        scales = {
            branch: {
                name: FieldScale.of(plain, common_std=True)
                if name in divergence_free
                else FieldScale.of(plain, compressed)
                for name, (plain, compressed) in fields.items()
            }
            for branch, fields in self.fields.items()
        }
        return Normalizer.from_box(
            self.position.minimum, self.position.maximum, position_range=position_range, fields=scales
        )


def measure(chunks: Iterable[tuple[str, PointSet]]) -> DataMoments:
    """Measures data that come in pieces, in one pass; `vorticity` is log-scaled.

    Args:
        chunks: Points and the branch they belong to, as many pieces as there are.

    Raises:
        ValueError: There is no piece.
    """
    box: Moments | None = None
    fields: dict[str, dict[str, tuple[Moments, Moments | None]]] = {}
    for branch, points in chunks:
        here = Moments.of(points.position)
        box = here if box is None else box.merge(here)
        known = fields.setdefault(branch, {})
        for name, values in points.fields.items():
            parts = Moments.of(values), Moments.of(compress(values)) if name in LOG_SCALED_FIELDS else None
            known[name] = _merge(known[name], parts) if name in known else parts
    if box is None:
        raise ValueError("there is nothing to measure: no points came")
    return DataMoments(box, fields)


def row_pieces(points: Mapping[str, PointSet]) -> Iterator[tuple[str, PointSet]]:
    """Cuts points into pieces for `measure`."""
    for branch, part in points.items():
        for start in range(0, len(part.position), CHUNK_ROWS):
            yield branch, take_points(part, slice(start, start + CHUNK_ROWS))


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
    from rich.table import Table

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


def _merge(
    known: tuple[Moments, Moments | None], parts: tuple[Moments, Moments | None]
) -> tuple[Moments, Moments | None]:
    compressed = None if known[1] is None or parts[1] is None else known[1].merge(parts[1])
    return known[0].merge(parts[0]), compressed


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
