"""Files of several meshes: which parts a branch consists of, and these joined into one mesh and cut again."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.meshes.components import ArrayName
from emmi_jax.meshes.content import cell_arrays, cell_dim, cut_out, extracted, main_content
from emmi_jax.meshes.ensight import EnsightCase
from emmi_jax.meshes.hdf_files import CgnsFile, HdfFile, VtkHdfFile
from emmi_jax.meshes.parts_file import Part, PartsFile, chosen_names
from emmi_jax.meshes.vtk import ArrayNames, import_pyvista, vtk_messages
from emmi_jax.meshes.vtk_collections import SUFFIXES as _COLLECTIONS
from emmi_jax.meshes.vtk_collections import CollectionFile
from emmi_jax.points import flat_axis

_FILES: dict[str, type[PartsFile]] = {**dict.fromkeys(_COLLECTIONS, CollectionFile), ".case": EnsightCase}
_FILES |= {".vtkhdf": VtkHdfFile, ".cgns": CgnsFile}
_SURFACE = "surface"
PART_SUFFIXES = tuple(_FILES)
"""Extensions of files that hold or name several meshes."""


class PartsMesh(NamedTuple):
    """Parts in one data set, one after another.

    Args:
        dataset: A `pyvista.DataSet`.
        patches: Names and numbers of cells of the pieces of its parts; none for a single one without a name.
        left_out: What was not read, one line each.
        is_patch: Whether it consists of patches of OpenFOAM.
    """

    dataset: Any
    patches: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...]
    is_patch: bool


def has_parts(path: Path) -> bool:
    """Returns whether a file of this name holds or names several meshes."""
    return parts_suffix(path) is not None


def parts_suffix(path: Path) -> str | None:
    """Returns the extension of a file that holds or names several meshes; None of another one."""
    return next((suffix for suffix in PART_SUFFIXES if path.name.lower().endswith(suffix)), None)


def open_parts(path: Path) -> PartsFile:
    """Opens a file of several meshes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its extension is another.
    """
    if (suffix := parts_suffix(path)) is None:
        raise ValueError(f"{path}: the extension must be one of {', '.join(PART_SUFFIXES)}, got {path.suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return _FILES[suffix](path)


def linked_files(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> list[Path]:
    """Returns the other files that are read with a file of several meshes."""
    file = open_parts(path)
    return file.files(file.time(selection.time))


def part_arrays(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> ArrayNames:
    """Returns the names of the arrays of a file of several meshes, those of all parts together."""
    file = open_parts(path)
    return file.array_names(file.time(selection.time))


def read_parts(
    path: Path,
    branch: str | None = None,
    selection: FoamSelection = DEFAULT_SELECTION,
    arrays: Collection[ArrayName] | None = None,
) -> PartsMesh:
    """Reads the parts of a branch as one mesh.

    Cells of the highest dimension are the volume, those one below it beside them the surface; a file of surfaces alone
    is a surface, unless it is a plane with lines. Of several surfaces beside a volume, those are taken that the file
    calls walls, or that are chosen.

    Args:
        path: The file.
        branch: `surface`, or another name for the cells of the highest dimension.
        selection: The parts by name, and the time.
        arrays: The arrays to read; None for all.

    Raises:
        FileNotFoundError: There is no such file, or one that it names is missing.
        ValueError: A file is damaged, or the selection does not suit it.
    """
    import_pyvista()
    file = open_parts(path)
    time = file.time(selection.time)
    with vtk_messages():
        parts, lines = list[Part](), dict[str, None]()
        for part in file.read(time, arrays):
            dataset, left_out = main_content(part.dataset)
            lines.update(dict.fromkeys(f"{part.name}: {line}" if part.name else line for line in left_out))
            if dataset.n_points:
                parts.append(part._replace(dataset=dataset))
    chosen = _of_branch(path, parts, branch, selection.patches)
    names = {part.name for part in chosen}
    if others := sorted({part.name for part in parts} - names):
        lines[f"the parts {', '.join(name or 'without a name' for name in others)}"] = None
    if len(times := file.times()) > 1:
        lines[f"{len(times) - 1:,} times beside {time:g}"] = None
    joined, lost = join([part.dataset for part in chosen])
    patches = tuple((part.name, part.dataset.n_cells) for part in chosen)
    is_whole = len(patches) == 1 and not patches[0][0]
    left = (*lines, *lost)
    return PartsMesh(joined, () if is_whole else patches, left, all(part.is_patch for part in chosen))


def try_file(path: str, time: float | None) -> None:
    """Reads an HDF5 file at a time, or the latest, in this process, which ends where VTK's reader crashes."""
    file = open_parts(Path(path))
    if isinstance(file, HdfFile):
        latest = next(reversed(file.times_here()), None)
        for part in file.read_here(latest if time is None else time, None):
            main_content(part.dataset)


def _of_branch(path: Path, parts: Sequence[Part], branch: str | None, patterns: Sequence[str]) -> list[Part]:
    """Returns the parts of a branch."""
    if not parts:
        raise ValueError(f"{path}: the mesh is empty")
    dims = [cell_dim(part.dataset) for part in parts]
    highest = max(dims)
    is_flat = highest == 2 and 1 in dims and _is_flat([part.dataset for part in parts])
    is_beside = branch == _SURFACE and (highest == 3 or is_flat)
    here = [part for part, dim in zip(parts, dims, strict=True) if dim == highest - is_beside]
    if not here:
        raise ValueError(f"{path}: has no cells for the branch {branch!r}: its parts are all volumes")
    all_names, chosen = [*dict.fromkeys(part.name for part in parts)], set[str]()
    for pattern in patterns:
        try:
            chosen |= chosen_names(path, all_names, (pattern,))
        except ValueError:
            if branch in (None, _SURFACE):  # patterns are those of the surface, which may lie in another file
                raise
    if of_branch := [part for part in here if part.name in chosen]:
        return of_branch
    if not is_beside:
        return here
    names = [*dict.fromkeys(part.name for part in here)]
    if walls := [part for part in here if part.is_wall] if not patterns else []:
        return walls
    if patterns or len(names) > 1:
        raise ValueError(f"{path}: choose the parts of the surface with --surface-patches from {', '.join(names)}")
    return here


def _is_flat(datasets: Sequence[Any]) -> bool:
    """Returns whether meshes lie in one plane of two axes, so that lines are the surface of its faces."""
    return flat_axis(np.concatenate([np.asarray(dataset.points) for dataset in datasets])) is not None


def join(datasets: Sequence[Any]) -> tuple[Any, list[str]]:
    """Joins meshes one after another; arrays that not all of them have are left out, and named.

    Args:
        datasets: `pyvista.DataSet`s without any cells but those of one dimension.
    """
    datasets = [one if one.IsA("vtkPolyData") else one.cast_to_unstructured_grid() for one in datasets]
    if len(datasets) == 1:
        return datasets[0], []
    datasets = _alike(datasets)
    module = importlib.import_module("vtkmodules.vtkFiltersCore")
    is_flat = all(dataset.IsA("vtkPolyData") for dataset in datasets)
    join = module.vtkAppendPolyData() if is_flat else module.vtkAppendFilter()
    with vtk_messages():
        for dataset in datasets:
            join.AddInputData(dataset)
        join.Update()
    joined, lost = import_pyvista().wrap(join.GetOutput()), set[str]()
    for location in ("cell_data", "point_data"):
        there = {name for dataset in datasets for name in getattr(dataset, location).keys()}  # noqa: SIM118
        lost |= there - {*getattr(joined, location).keys()}
    return joined, [f"the arrays {', '.join(sorted(lost))}, which some parts lack"] if lost else []


def _alike(datasets: Sequence[Any]) -> list[Any]:
    """Returns meshes whose arrays of one name have one type: VTK leaves out others."""
    alike = [dataset.copy(deep=False) for dataset in datasets]
    for location in ("cell_data", "point_data"):
        for name in {name for dataset in alike for name in getattr(dataset, location).keys()}:  # noqa: SIM118
            having = [data for data in (getattr(dataset, location) for dataset in alike) if name in data]
            if len(types := {np.asarray(data[name]).dtype for data in having}) > 1 and all(
                t.kind in "fiu" for t in types
            ):
                for data in having:
                    data[name] = np.asarray(data[name]).astype(np.result_type(*types))
    return alike


def split(dataset: Any, patches: Sequence[tuple[str, int]]) -> Iterator[tuple[str, list[Any]]]:
    """Cuts a joined mesh into its parts, and yields name and pieces of each."""
    ends = np.cumsum([0, *(number for _, number in patches)])
    numbered = zip(patches, ends[:-1], ends[1:], strict=True)
    for name, rows in groupby(numbered, key=lambda row: row[0][0]):
        yield name, [_cut(dataset, int(first), int(end)) for _, first, end in rows]


def _cut(dataset: Any, first: int, end: int) -> Any:
    if not dataset.IsA("vtkPolyData"):
        return extracted(dataset, np.arange(first, end))
    dim = 2 if dataset.GetNumberOfPolys() else 1
    corners, offsets = cell_arrays(dataset.GetPolys() if dim == 2 else dataset.GetLines())
    ends = offsets[first : end + 1]
    return cut_out(dataset, corners[ends[0] : ends[-1]], ends - ends[0], slice(first, end), dim=dim)
