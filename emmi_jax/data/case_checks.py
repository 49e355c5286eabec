"""What is wrong with the folder of a case, as far as its headers tell, and what of it is not read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.case_folder import case_branches, case_files, fields_file, find_sources, is_foam_case
from emmi_jax.data.drivaernet import (
    design_problem,
    is_drivaernet,
)
from emmi_jax.data.field_sources import Sources, read_sources
from emmi_jax.data.mesh_files import (
    MESHES,
    SUFFIXES,
    all_arrays,
    check_parts,
    mesh_files,
    only_file,
    other_kinds,
    unread_files,
)
from emmi_jax.data.openfoam import foam_problem
from emmi_jax.data.shapenet_car import shapenet_car_files
from emmi_jax.data.tensors import (
    LoadTensor,
    tensor_files,
    tensor_problem,
)
from emmi_jax.meshes.components import all_found, found_arrays, quoted
from emmi_jax.meshes.openfoam import foam_arrays
from emmi_jax.meshes.openfoam_times import passed_over
from emmi_jax.meshes.vtk import GHOSTS


def case_problem(
    path: Path,
    load_tensor: LoadTensor,
    branches: Collection[str],
    sources: Sources | None = None,
    foam: FoamSelection = DEFAULT_SELECTION,
) -> str | None:
    """Says why a case cannot be read, as far as names, sizes and headers of its files tell; None if nothing is wrong.

    Args:
        path: The folder.
        load_tensor: Reads a `.pt` file of one tensor, or maps it.
        branches: The branches that it must have.
        sources: See `read_case_folder`.
        foam: See `read_case_folder`.
    """
    try:
        if missing := sorted(set(branches) - set(case_branches(path, foam))):
            return f"no {' and no '.join(missing)}"
        check_named_branches(path, foam)
        if empty := [file.name for file in case_files(path, foam) if not file.stat().st_size]:
            return f"{', '.join(empty)}: empty"
        if is_foam_case(path):
            return foam_problem(path, find_sources(path, sources, foam), foam)
    except (OSError, ValueError) as error:
        return str(error)
    if tensor_files(path):
        return tensor_problem(path, load_tensor)
    if len(shapenet_car_files(path)) < 3 and shapenet_car_files(path):
        return f"expected 3 files, found {', '.join(file.name for file in shapenet_car_files(path))}"
    if is_drivaernet(path.parent):
        return design_problem(path.parent, path.name)
    try:
        _check_meshes(path, find_sources(path, sources))
    except (OSError, ValueError) as error:
        return str(error)
    return None


def case_left_out(
    path: Path, sources: Sources, foam: FoamSelection = DEFAULT_SELECTION, *, with_arrays: bool = True
) -> list[str]:
    """Returns what a case folder has and `read_case_folder` leaves out, one line each: files, and arrays of meshes."""
    if is_drivaernet(path.parent) or not path.is_dir():
        return []
    lines = list(unread_files(path, case_files(path, foam)))
    lines += passed_over(path, foam) if is_foam_case(path) else []
    if not with_arrays:
        return lines
    if is_foam_case(path):
        found = foam_arrays(path, foam)
        names = {branch: (f"the {branch}", arrays) for branch, arrays in found.items()}
    else:
        files = {branch: files[0] for branch in MESHES if (files := mesh_files(path, branch))}
        names = {b: (file.name, all_arrays(file)) for b, file in files.items() if file.suffix.lower() in SUFFIXES}
    for branch, (what, arrays) in names.items():
        used = all_found((source.array for source in sources.get(branch, {}).values()), arrays) or set()
        if unused := sorted(arrays - used - {GHOSTS}):
            lines.append(f"{what}: the arrays {', '.join(unused)}")
    return lines


def check_named_branches(path: Path, foam: FoamSelection) -> None:
    """Refuses a case that lacks a branch of its `fields.json`."""
    if tensor_files(path) or shapenet_car_files(path) or is_drivaernet(path.parent):
        return
    file, there = fields_file(path), case_branches(path, foam)
    if file is None or not there:
        return
    for branch in read_sources(file):
        if branch not in there:
            stem = MESHES.get(branch)
            wanted = f"the branches {', '.join(MESHES)}" if stem is None else f"{stem}* with {', '.join(SUFFIXES)}"
            others = (
                f", found {', '.join(found)}"
                if (found := [n for n in other_kinds(path) if stem and stem in n.lower()])
                else ""
            )
            raise ValueError(
                f"{path}: {file.name} names the branch {branch!r}, which no file has: expected {wanted}{others}"
            )


def _check_meshes(path: Path, sources: Sources) -> None:
    """Checks what can be known of the meshes before they are read."""
    for branch in MESHES:
        files = mesh_files(path, branch)
        if files and files[0].suffix.lower() == ".part":
            check_parts(path, files)
        elif files:
            file = only_file(path, files)
            there = set() if file is None else all_arrays(file)
            wanted = [source.array for source in sources.get(branch, {}).values()]
            if absent := [quoted(name) for name in wanted if not found_arrays(name, there)]:
                raise ValueError(f"{files[0].name}: no array {', '.join(sorted(absent))}")
