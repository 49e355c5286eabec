"""`emmi-jax predict --write-openfoam`: predicted fields of all cells, from which a solver starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.data.readers.openfoam import KNOWN_ARRAYS
from emmi_jax.files.atomic import atomic_path, check_space, naming_the_file
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.encoded_set import EncodedSet
from emmi_jax.inference.meshes import geometry_points
from emmi_jax.inference.surrogate import Encoded, Surrogate
from emmi_jax.jobs.progress import ProgressBar, print_left_out, print_paths, say, warn_few_anchors
from emmi_jax.meshes.branch_mesh import geometry_mesh
from emmi_jax.meshes.foam_to_vtk import is_time
from emmi_jax.meshes.openfoam import read_foam
from emmi_jax.meshes.openfoam_fields import (
    KINEMATIC_PRESSURE,
    FieldFile,
    FieldWriter,
    field_writer,
    largest_field_file,
    read_field_file,
)
from emmi_jax.meshes.openfoam_times import case_roots
from emmi_jax.points import Array

VOLUME = "volume"
START, ORIGINAL = "0", "0.orig"

_POSITIVE = ("k", "omega", "epsilon", "nut", "nuTilda")
_SMALLEST = 1e-3
"""Least value of what must not be negative, as a share of its uniform value in the file before."""


@dataclass(frozen=True, kw_only=True)
class FoamJob:
    """Options of writing fields into a case.

    Args:
        case: Folder of the case, decomposed or not.
        geometry: A surface that shows the geometry to the model; by default the run's context, or the patches.
        foam: The patches of the surface.
        time: The folder of the case that receives the fields.
        overwrite: Whether to replace fields that are there.
        chunk_size: Points per call of the model.
    """

    case: Path
    geometry: Path | None = None
    foam: FoamSelection = DEFAULT_SELECTION
    time: str = START
    overwrite: bool = False
    chunk_size: ChunkSize = "auto"


class _SolverArray(NamedTuple):
    """The name of a field in the solver, and the factor from the solver's unit to that of the field."""

    array: str
    scale: float


class _Part(NamedTuple):
    """The case or one of its processors: centres of its cells, and the files by field to take the boundaries from."""

    root: Path
    position: Array
    templates: dict[str, FieldFile]


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
    names = _arrays(surrogate, sources)
    parts = _read_parts(job, names)
    _check(job, parts, surrogate.model.config.fields[VOLUME])
    if lacking := [f"{names[field].array} ({field})" for field in names if field not in parts[0].templates]:
        say(console, f"not written, as no file has boundary conditions for it: {', '.join(lacking)}")
    encoded = _encode(job, surrogate, parts, console)
    outputs = {part.root: {name: _target(job, part, names[name].array) for name in part.templates} for part in parts}
    sizes = [largest_field_file(file, len(part.position)) for part in parts for file in part.templates.values()]
    check_space(job.case, sum(sizes))
    with ExitStack() as files:
        for part in parts:
            partial = {name: files.enter_context(atomic_path(path)) for name, path in outputs[part.root].items()}
            _write_part(job, part, partial, names, encoded, console)
        _keep_others(job, parts, console)
    print_paths([path for written in outputs.values() for path in written.values()], console)


def _arrays(surrogate: Surrogate, sources: Sources) -> dict[str, _SolverArray]:
    """Returns the solver's array of each field; a mean in time starts the field itself."""
    fields = surrogate.model.config.fields
    if VOLUME not in fields:
        raise ValueError(f"a solver starts from fields of the volume; the model has the branches {list(fields)}")
    found = {}
    for field in fields[VOLUME]:
        source = sources.get(VOLUME, {}).get(field)
        known = KNOWN_ARRAYS[VOLUME].get(field, field)
        array = source.array if source is not None and isinstance(source.array, str) else known
        scale = 1.0 if source is None else source.scale
        found[field] = _SolverArray(array.removesuffix("Trim").removesuffix("Mean"), scale)
    return found


def _read_parts(job: FoamJob, names: Mapping[str, _SolverArray]) -> list[_Part]:
    roots = case_roots(job.case)
    if not roots:
        raise ValueError(f"{job.case}: no OpenFOAM case: it has no constant/polyMesh")
    parts = []
    for root in roots:
        files = {field: _template(root, source.array) for field, source in names.items()}
        templates = {field: read_field_file(file) for field, file in files.items() if file is not None}
        if not templates:
            arrays = ", ".join(source.array for source in names.values())
            raise ValueError(f"{root / START}: no file of the predicted fields {arrays}, to take boundaries from")
        position = read_foam(root, [VOLUME], arrays={VOLUME: ()})[VOLUME].position("cells")
        parts.append(_Part(root, position, templates))
    return parts


def _template(root: Path, array: str) -> Path | None:
    if compressed := [path for folder in (ORIGINAL, START) if (path := root / folder / f"{array}.gz").is_file()]:
        raise ValueError(f"{compressed[0]}: is compressed, which would hide what is written beside it: gunzip it first")
    return next((path for folder in (ORIGINAL, START) if (path := root / folder / array).is_file()), None)


def _target(job: FoamJob, part: _Part, array: str) -> Path:
    folder = part.root / job.time
    if folder.resolve() != part.root.resolve() / job.time:
        raise ValueError(f"{folder} is a link to {folder.resolve()}, whose files would be replaced: remove the link")
    return folder / array


def _check(job: FoamJob, parts: Sequence[_Part], channels: Mapping[str, int]) -> None:
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


def _encode(job: FoamJob, surrogate: Surrogate, parts: Sequence[_Part], console: Console) -> Encoded | EncodedSet:
    """Shows the case to the model; anchors are drawn inside the box of the training data."""
    position = np.concatenate([part.position for part in parts])
    is_outside = surrogate.normalizer.is_outside(position)
    points = {VOLUME: position[~is_outside]}
    if not len(points[VOLUME]):
        raise ValueError(f"{job.case}: all cells are outside the box of the training data: check unit and origin")
    config, geometry = surrogate.model.config, None
    if GEOMETRY_BRANCH in config.fields and surrogate.context is None:
        mesh = read_foam(job.case, [GEOMETRY_BRANCH], job.foam, {GEOMETRY_BRANCH: ()})[GEOMETRY_BRANCH]
        points[GEOMETRY_BRANCH] = mesh.position("cells")
    if job.geometry is not None or (config.has_geometry and surrogate.context is None):
        mesh = geometry_mesh(job.geometry or job.case, job.foam)
        print_left_out(mesh.left_out, console, mesh.path)
        geometry = geometry_points(mesh)
    if surrogate.context is None:
        warn_few_anchors(surrogate.sampling, points, console)
    if num := np.count_nonzero(is_outside):
        kept = (
            "keep the value in 0" if all(f.uniform is not None for f in parts[0].templates.values()) else "are guesses"
        )
        text = f"{num} of {len(position)} cells are outside the box of the training data: they {kept}"
        say(console, f"{job.case}: {text}")
    return surrogate.encode(points=points, geometry=geometry)


def _write_part(
    job: FoamJob,
    part: _Part,
    paths: Mapping[str, Path],
    names: Mapping[str, _SolverArray],
    encoded: Encoded | EncodedSet,
    console: Console,
) -> None:
    is_outside = encoded.normalizer.is_outside(part.position)
    num_cells = len(part.position)
    with ExitStack() as files:
        for path in paths.values():
            files.enter_context(naming_the_file(path))
        writers: dict[str, FieldWriter] = {
            name: files.enter_context(field_writer(path, part.templates[name], num_cells))
            for name, path in paths.items()
        }
        progress = files.enter_context(ProgressBar(console, num_cells, unit="cells"))
        for chunk in encoded.stream({VOLUME: part.position}, chunk_size=job.chunk_size):
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


def _keep_others(job: FoamJob, parts: Sequence[_Part], console: Console) -> None:
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
