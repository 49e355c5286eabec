"""`emmi-jax stats`: statistics of the arrays in files, measured in one pass with one chunk in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.config.jobs import StatsJob
from emmi_jax.data.case_conditions import BESIDE_CASES
from emmi_jax.data.cases import ReadOptions
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.moments import Moments
from emmi_jax.data.notes import VOLUME, Box, box_warnings
from emmi_jax.data.open import OpenFolders, check_selection, open_cases
from emmi_jax.data.statistics import merge
from emmi_jax.data.store import Store
from emmi_jax.data.stored_case import is_store
from emmi_jax.deploy.parsing import refusing_damage
from emmi_jax.files.atomic import write_json
from emmi_jax.files.npy import map_array
from emmi_jax.files.npz import open_arrays
from emmi_jax.jobs.progress import add_row, new_table, print_left_out, print_sides, print_warnings, say
from emmi_jax.meshes.mesh import Mesh, read_mesh
from emmi_jax.meshes.openfoam import case_folder
from emmi_jax.meshes.surfaces import is_surface, surface_elements
from emmi_jax.points import row_chunks

_NUMERIC = "fiub"

NamedChunks = Iterator[tuple[str, Iterator[NDArray[Any]]]]


class Notes:
    """Notes on meshes beside their statistics.

    Attributes:
        sides: How the outward side of each surface is told, by path.
        left_out: What was not read, by path and branch.
        boxes: Boxes by path and branch, those of each case together, and those of files together.
    """

    def __init__(self) -> None:
        self.sides: dict[str, str] = {}
        self.left_out: dict[str, Sequence[str]] = {}
        self.boxes: dict[str, dict[str, Box]] = {}

    def add_side(self, path: Path, mesh: Mesh) -> None:
        """Notes the outward side if the mesh is a surface."""
        if is_surface(mesh):
            self.sides[str(path)] = surface_elements(mesh, require_closed=False).side

    def add_mesh(self, name: str, mesh: Mesh) -> None:
        """Notes what was left out of a mesh, and its box."""
        self.left_out[name] = mesh.left_out
        case = name.rpartition(": ")[0]
        self.boxes.setdefault(case if Path(case).is_dir() else "", {})[name] = Box.of(mesh.dataset.points)


def run_job(job: StatsJob, *, console: Console) -> None:
    """Runs `emmi-jax stats`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is unusable, or options for OpenFOAM cases are given for others.
    """
    notes = Notes()
    if len(job.files) == 1 and is_store(job.files[0]):
        check_selection(job.files[0], job.foam)
        statistics = store_statistics(job.files[0]) | condition_statistics(job.files[0], job.foam)
    else:
        statistics = file_statistics([case_folder(Path(file)) for file in job.files], job.foam, notes)
        statistics |= condition_statistics(job.files[0], job.foam) if len(job.files) == 1 else {}
    console.print(statistics_table(statistics, ", ".join(job.files)), highlight=False)
    for name, moments in statistics.items():
        if moments.num_not_finite:
            say(console, f"{name}: {moments.num_not_finite} rows with NaN or infinite values are left out")
    print_sides(notes.sides, console)
    for name, lines in notes.left_out.items():
        print_left_out(lines, console, name)
    for together in notes.boxes.values():
        print_warnings(box_warnings(together), console)
    if job.out is not None:
        write_json(job.out, statistics_json(statistics))


def file_statistics(
    paths: Sequence[Path], foam: FoamSelection = DEFAULT_SELECTION, notes: Notes | None = None
) -> dict[str, Moments]:
    """Measures every numeric array in files; arrays with the same name in several files count as one.

    Args:
        paths: `.npz`, `.npy` or mesh files. An `.npy` array is named after its file. A mesh has `position` and its
            arrays; an array on points is marked if there is one of the same name in cells. The folder of a case has
            those of its surface, `surface/p`, and of its volume, `volume/p`; a folder of cases those of all of them.
        foam: The patches and the time of OpenFOAM cases.
        notes: Gets what is to be said of the meshes.

    Returns:
        Statistics by array.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is damaged or of unknown kind, an array is not numeric, arrays with the same name have
            different numbers of channels, or patches or a time are chosen for what is no OpenFOAM case.
    """
    for path in paths:
        check_selection(path, foam)
    notes = Notes() if notes is None else notes
    moments: dict[str, Moments] = {}
    for path in paths:
        num_arrays = 0
        for name, chunks in _arrays(path, foam, notes):
            num_arrays += 1
            with refusing_damage(f"{path}: array {name!r}"):
                here = Moments.of_chunks(chunks)
                moments[name] = moments[name].merge(here) if name in moments else here
        if not num_arrays:
            raise ValueError(f"{path}: holds no array")
    return moments


def store_statistics(location: str) -> dict[str, Moments]:
    """Returns the statistics of positions and fields that a store holds, those of all its cases together.

    Raises:
        ValueError: It is no store, or a damaged one.
    """
    store = Store(location)
    position, fields = merge(map(store.measure, store.names))
    of_fields = {f"{branch}/{name}": pair[0] for branch, names in fields.items() for name, pair in names.items()}
    return {"position": position} | of_fields


def condition_statistics(data: str, foam: FoamSelection = DEFAULT_SELECTION) -> dict[str, Moments]:
    """Returns the statistics of the conditions of several cases, by "condition <name>" and unit.

    Raises:
        ValueError: The conditions of a case are unusable.
    """
    if (opened := open_cases(data, foam=foam)) is None:
        return {}
    conditions = opened.conditions(BESIDE_CASES)
    for name, problem in conditions.problems.items():
        raise ValueError(f"{data}: {name}: {problem}")
    first = next(iter(conditions.by_case.values()), {})
    units = {name: "" if c.unit is None else f" [{c.unit}]" for name, c in first.items()}
    return {
        f"condition {name}{unit}": Moments.of([of_case[name].value for of_case in conditions.by_case.values()])
        for name, unit in units.items()
    }


def statistics_json(statistics: Mapping[str, Moments]) -> dict[str, Any]:
    """Returns statistics as JSON values; an array without finite rows has none."""
    return {
        name: {"count": m.count, "num_not_finite": m.num_not_finite}
        | {key: values.tolist() for key, values in _numbers_of(m).items() if m.count}
        for name, m in statistics.items()
    }


def statistics_table(statistics: Mapping[str, Moments], title: str) -> Table:
    """Returns a table of statistics, one row per channel."""
    table = new_table(title, ["array", "count", "min", "max", "mean", "std"])
    for name, m in statistics.items():
        for channel in range(len(m.mean)):
            label = name if len(m.mean) == 1 else f"{name}[{channel}]"
            numbers = _numbers_of(m).values()
            add_row(table, label, f"{m.count:,}", *(f"{x[channel]:.4g}" if m.count else "–" for x in numbers))
    return table


def _numbers_of(moments: Moments) -> dict[str, NDArray[np.float64]]:
    return {"min": moments.minimum, "max": moments.maximum, "mean": moments.mean, "std": moments.std}


def _arrays(path: Path, foam: FoamSelection, notes: Notes) -> NamedChunks:
    if path.is_dir():
        yield from _case_arrays(path, foam, notes)
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    match path.suffix.lower():
        case ".npz":
            yield from ((name, rows) for name, _, rows in open_arrays(path))
        case ".npy":
            yield path.stem, _numbers(map_array(path))
        case _:
            mesh = read_mesh(path, selection=foam)
            notes.add_side(path, mesh)
            yield "position", row_chunks(np.asarray(mesh.dataset.points))
            yield from _mesh_arrays(f"{path}: {'surface' if is_surface(mesh) else VOLUME}", mesh, notes)


def _case_arrays(path: Path, foam: FoamSelection, notes: Notes) -> NamedChunks:
    """Yields the arrays of a case, or of all cases in a folder."""
    has_mesh = False
    for folder in OpenFolders(path, ReadOptions(), foam).cases.folders.values():
        meshes = folder.reader.read_meshes(folder.path)
        notes.left_out[str(folder.path)] = folder.left_out({}, with_arrays=False)
        if (geometry := meshes.pop("geometry", None)) is not None:
            notes.add_mesh(f"{folder.path}: geometry", geometry)
        for branch, mesh in meshes.items():
            has_mesh = True
            if branch == GEOMETRY_BRANCH:
                notes.add_side(folder.path, mesh)
            yield f"{branch}/position", row_chunks(mesh.position(folder.reader.location))
            for name, chunks in _mesh_arrays(f"{folder.path}: {branch}", mesh, notes):
                yield f"{branch}/{name}", chunks
    if not has_mesh:
        raise ValueError(f"{path}: neither a case with meshes nor a folder of such cases")


def _mesh_arrays(what: str, mesh: Mesh, notes: Notes) -> NamedChunks:
    """Yields the numeric arrays of a mesh."""
    cells, points = mesh.dataset.cell_data, mesh.dataset.point_data
    arrays = {name: np.asarray(cells[name]) for name in cells}
    arrays |= {f"{name} (points)" if name in cells else name: np.asarray(points[name]) for name in points}
    texts = [f"the array {label}, which holds {a.dtype}" for label, a in arrays.items() if a.dtype.kind not in _NUMERIC]
    notes.add_mesh(what, replace(mesh, left_out=(*mesh.left_out, *texts)))
    for label, array in arrays.items():
        if array.dtype.kind in _NUMERIC:
            yield label, _numbers(array)


def _numbers(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    if array.dtype.kind not in _NUMERIC:
        raise ValueError(f"it holds {array.dtype}, expected real numbers")
    yield from row_chunks(np.atleast_1d(array))
