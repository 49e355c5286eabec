"""The whole of `emmi-jax predict` on points: arrays in, arrays out, mapped where they need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import SampleSizes
from emmi_jax.files.atomic import check_space, make_folder
from emmi_jax.files.npy import array_file_size, map_array, new_array
from emmi_jax.files.npz import checked_positions, read_arrays, write_arrays
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.predict import field_name, field_shapes, iter_fields, point_names, predict_fields, query_name
from emmi_jax.inference.streaming import StreamedChunk
from emmi_jax.jobs.box_warning import warn_outside
from emmi_jax.jobs.progress import PredictionProgress
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.points import Array


@dataclass(frozen=True, kw_only=True)
class PointJob:
    """What to predict on.

    Args:
        points: An `.npz` file with arrays that `iter_fields` takes; or a folder with such arrays in `.npy` files of
            their names, or one of these files, which are mapped.
        out: An `.npz` file, made in memory; or else a folder, which gets an `.npy` file a field, row by row.
        chunk_size: Points in one call of the model.
    """

    points: Path
    out: Path
    chunk_size: ChunkSize = "auto"


def run_point_job(
    job: PointJob,
    model: AnchoredBranchedUPT,
    params: Any,
    normalizer: Normalizer,
    fixed_points: Mapping[str, Array],
    *,
    sizes: SampleSizes,
    console: Console,
) -> None:
    """Predicts at points and leaves the fields in files.

    Args:
        job: What to predict on.
        model: The model.
        params: Its parameters.
        normalizer: Its scales.
        fixed_points: Anchors and geometry that the run keeps, by the names of `iter_fields`.
        sizes: How many anchors, geometry points and supernodes to draw.
        console: Where progress and the names of the fields go.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: The points are unusable, or do not suit the model.
        UnwritableFileError: The disk is full, or too small for what would be written.
    """
    _check_out(job.out)
    branches = list(model.config.fields)
    read = _read_points(job.points, point_names(branches))
    positions: dict[str, Any] = {**fixed_points, **{name: array for name, (_, array) in read.items()}}
    shapes = field_shapes(model.config, positions)
    check_space(job.out, sum(array_file_size(shape) for shape in shapes.values()))
    for name, (path, array) in read.items():
        warn_outside(normalizer, f"{path}: {name}", array, console)
    queries = {query_name(branch, branches) for branch in branches}
    num_points = sum(len(array) for name, array in positions.items() if name in queries)
    arguments = (model, params, normalizer, positions)
    with PredictionProgress(console, num_points) as progress:
        if job.out.suffix.lower() == ".npz":
            fields = predict_fields(*arguments, sizes=sizes, chunk_size=job.chunk_size, advance=progress.advance)
            write_arrays(job.out, fields)
        else:
            make_folder(job.out)
            chunks = iter_fields(*arguments, sizes=sizes, chunk_size=job.chunk_size)
            _write_folder(job.out, shapes, chunks, branches, progress.advance)
    console.print(
        f"{job.out}: " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()),
        highlight=False,
        soft_wrap=True,
    )


def _write_folder(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    chunks: Iterable[StreamedChunk],
    branches: Sequence[str],
    advance: Callable[[int], object],
) -> None:
    """Appends each chunk to the files of its fields, so that no more than a chunk is held."""
    with ExitStack() as stack:
        append = {name: stack.enter_context(new_array(folder / f"{name}.npy", shape)) for name, shape in shapes.items()}
        for chunk in chunks:
            for field, values in chunk.fields.items():
                append[field_name(chunk.branch, field, branches)](values)
            advance(chunk.num_points)


def _check_out(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    is_archive = path.suffix.lower() == ".npz"
    if path.suffix.lower() == ".npy" or (path.exists() and path.is_dir() == is_archive):
        raise ValueError(f"{path}: fields go to a file .npz, or to a folder as .npy files")


def _read_points(path: Path, names: Sequence[str]) -> dict[str, tuple[Path, NDArray[Any]]]:
    """Returns the arrays with these names, and the files they are in."""
    if path.suffix.lower() != ".npy" and not path.is_dir():
        return {name: (path, checked_positions(path, name, array)) for name, array in read_arrays(path, names).items()}
    files = [path / f"{name}.npy" for name in names] if path.is_dir() else [path]
    found = {file.stem: (file, map_array(file)) for file in files if file.is_file() or file == path}
    if not set(found) <= set(names) or not found:
        raise ValueError(f"{path}: expected .npy files called as one of {', '.join(names)}, got {list(found)}")
    for name, (file, array) in found.items():
        checked_positions(file, name, array)
    return found
