"""`emmi-jax predict --write-openfoam`: predicted fields of all cells, from which a solver starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.deploy.surrogate import Encoded
from emmi_jax.files.atomic import atomic_path, check_space, naming_the_file
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.openfoam_case import (
    ORIGINAL,
    START,
    VOLUME,
    FoamJob,
    FoamPart,
    SolverArray,
    encode_case,
    read_parts,
    solver_arrays,
)
from emmi_jax.jobs.progress import ProgressBar, print_paths, say
from emmi_jax.meshes.foam_to_vtk import is_time
from emmi_jax.meshes.openfoam_fields import KINEMATIC_PRESSURE, FieldFile, FieldWriter, field_writer, largest_field_file
from emmi_jax.points import Array

_POSITIVE = ("k", "omega", "epsilon", "nut", "nuTilda")
_SMALLEST = 1e-3
"""Least value of what must not be negative, as a share of its uniform value in the file before."""


def write_openfoam(job: FoamJob, surrogate: Surrogate, sources: Sources, *, console: Console) -> None:
    """Predicts at the centres of all cells of a case and writes its field files.

    Boundary conditions, dimensions and format are those of the files in `0.orig`, or else `0`. If files in `0` would be
    replaced, that folder is kept as `0.orig` first. Cells outside the box of the training data keep a uniform value.

    Args:
        job: What to write.
        surrogate: What predicts.
        sources: The arrays that the run was trained on, by branch and field.
        console: Where progress, warnings and paths are printed.

    Raises:
        ValueError: The case is unusable, no predicted field has a file, or fields are there already.
        UnwritableFileError: The disk is full, or too small for the output.
    """
    names = solver_arrays(surrogate, sources)
    parts, shown = read_parts(job, surrogate, names, sources)
    _check(job, parts, surrogate.model.config.fields[VOLUME])
    if lacking := [f"{names[field].array} ({field})" for field in names if field not in parts[0].templates]:
        say(console, f"not written, as no file has boundary conditions for it: {', '.join(lacking)}")
    encoded = encode_case(job, surrogate, sources, parts, shown, console)
    outputs = {part.root: {name: _target(job, part, names[name].array) for name in part.templates} for part in parts}
    sizes = [largest_field_file(file, len(part.position)) for part in parts for file in part.templates.values()]
    check_space(job.case, sum(sizes))
    with ExitStack() as files:
        for part in parts:
            partial = {name: files.enter_context(atomic_path(path)) for name, path in outputs[part.root].items()}
            _write_part(job, part, partial, names, surrogate, encoded, console)
        _keep_others(job, parts, console)
    print_paths([path for written in outputs.values() for path in written.values()], console)


def _target(job: FoamJob, part: FoamPart, array: str) -> Path:
    folder = part.root / job.time
    if folder.resolve() != part.root.resolve() / job.time:
        raise ValueError(f"{folder} is a link to {folder.resolve()}, whose files would be replaced: remove the link")
    return folder / array


def _check(job: FoamJob, parts: Sequence[FoamPart], channels: Mapping[str, int]) -> None:
    """Refuses what would harm the case or cannot start a solver, before predicting."""
    if not is_time(job.time):
        raise ValueError(f"the time to write must be a number, got {job.time!r}")
    for root, _, templates in parts:
        if set(templates) != set(parts[0].templates):
            raise ValueError(
                f"{root}: has files of {sorted(templates)}, {parts[0].root} of {sorted(parts[0].templates)}"
            )
        for name, file in templates.items():
            target = root / job.time / file.path.name
            if target.exists() and target != file.path and not job.overwrite:
                raise ValueError(f"{target} exists: --overwrite replaces it, --write-time names another folder")
            if file.path.name == "p" and file.dimensions.exponents != KINEMATIC_PRESSURE:
                raise ValueError(
                    f"{file.path}: expected pressure over density, with dimensions [0 2 -2 0 0 0 0], got "
                    f"{file.dimensions.written}"
                )
            if file.num_channels != channels[name]:
                raise ValueError(f"{file.path}: has {file.num_channels} channels, {name} has {channels[name]}")


def _write_part(
    job: FoamJob,
    part: FoamPart,
    paths: Mapping[str, Path],
    names: Mapping[str, SolverArray],
    surrogate: Surrogate,
    encoded: Encoded,
    console: Console,
) -> None:
    is_outside = surrogate.normalizer.is_outside(part.position)
    num_cells = len(part.position)
    with ExitStack() as files:
        for path in paths.values():
            files.enter_context(naming_the_file(path))
        writers: dict[str, FieldWriter] = {
            name: files.enter_context(field_writer(path, part.templates[name], num_cells))
            for name, path in paths.items()
        }
        progress = files.enter_context(ProgressBar(console, num_cells, unit="cells"))
        features = {} if part.cells.features is None else {VOLUME: part.cells.features}
        queries = {VOLUME: part.position}
        for chunk in encoded.stream(queries, query_features=features, chunk_size=job.chunk_size):
            rows = slice(chunk.start, chunk.start + chunk.num_points)
            for name, writer in writers.items():
                values = chunk.fields[name] / names[name].scale
                writer.write(_started(values, part.templates[name], is_outside[rows]))
            progress.advance(chunk.num_points)


def _started(values: Array, file: FieldFile, is_outside: Any) -> Array:
    """Returns values [n, F] that a solver can start from."""
    if not np.isfinite(values).all():
        raise ValueError(f"{file.path.name}: the model predicts NaN or infinite values")
    if file.uniform is None:
        return np.maximum(values, 0) if file.path.name in _POSITIVE else values
    if file.path.name in _POSITIVE:
        values = np.maximum(values, _SMALLEST * max(0.0, float(file.uniform[0])))
    return np.where(is_outside[:, None], file.uniform, values)


def _keep_others(job: FoamJob, parts: Sequence[FoamPart], console: Console) -> None:
    """Keeps what will be replaced, and copies the files of the fields that are not predicted."""
    for part in parts:
        start, original, target = part.root / START, part.root / ORIGINAL, part.root / job.time
        if job.time == START and not original.exists():
            partial = part.root / f".{ORIGINAL}.partial"
            with naming_the_file(original):
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(start, partial, ignore=shutil.ignore_patterns(".*.partial"))
                partial.rename(original)
            say(console, f"{start} is kept as {original}")
        predicted = {file.path.name for file in part.templates.values()}
        for folder in (start, original):
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                is_other = file.is_file() and file.name not in predicted and not file.name.startswith(".")
                if is_other and not (target / file.name).exists():
                    with atomic_path(target / file.name) as copy:
                        shutil.copyfile(file, copy)
