"""The folder of a simulated case: meshes, or tensors made of them; its branches, files and fields."""

from __future__ import annotations

import re
from pathlib import Path

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.drivaernet import (
    design_branches,
    design_files,
    design_names,
    is_drivaernet,
)
from emmi_jax.data.field_sources import DRIVAERML, FIELDS_FILE, Sources, published_sources, read_sources
from emmi_jax.data.mesh_files import (
    MESHES,
    SUFFIXES,
    all_arrays,
    geometry_mesh_file,
    mesh_files,
)
from emmi_jax.data.openfoam import proposed_sources
from emmi_jax.data.shapenet_car import BRANCHES, shapenet_car_files
from emmi_jax.data.tensors import (
    geometry_file,
    tensor_files,
)
from emmi_jax.files.fingerprint import fingerprint
from emmi_jax.meshes.cells import POSITIONS
from emmi_jax.meshes.openfoam import foam_arrays, foam_branches, foam_files, is_foam


def case_names(path: Path) -> list[str]:
    """Returns the names of the folders in a folder that hold cases, in the order of their numbers.

    Where there are none, the folders in those folders are looked at: `param1/1dc58be2`.
    """
    if not path.is_dir():
        return []
    if is_drivaernet(path):
        return design_names(path)
    for pattern in ("*/", "*/*/"):
        found = [folder.relative_to(path).as_posix() for folder in path.glob(pattern) if _is_case(folder)]
        if found:
            return sorted(found, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])
    return []


def case_branches(path: Path, foam: FoamSelection = DEFAULT_SELECTION) -> tuple[str, ...]:
    """Returns the branches that a folder has positions of; none if it is not a folder.

    A design of DrivAerNet++ counts as a folder of this name in that of the data set.
    """
    if is_drivaernet(path.parent):
        return design_branches(path.parent, path.name)
    if found := tensor_files(path):
        return tuple(found)
    if any((path / name).is_file() for name in BRANCHES.values()):
        return tuple(branch for branch, name in BRANCHES.items() if (path / name).is_file())
    return tuple(branch for branch in MESHES if mesh_files(path, branch)) or foam_branches(path, foam)


def _is_case(path: Path) -> bool:
    try:
        return bool(case_branches(path))
    except ValueError:  # of an unusable case; its check says what is wrong
        return True


def is_foam_case(path: Path) -> bool:
    """Returns whether a folder is read as OpenFOAM's; files of another layout come first."""
    others = tensor_files(path) or shapenet_car_files(path) or any(mesh_files(path, branch) for branch in MESHES)
    return not is_drivaernet(path.parent) and not others and is_foam(path)


def case_files(path: Path, foam: FoamSelection = DEFAULT_SELECTION) -> list[Path]:
    """Returns the files of a case folder that `read_case_folder` reads."""
    if is_drivaernet(path.parent):
        return sorted(design_files(path.parent, path.name).values())
    found = [path / name for files in tensor_files(path).values() for name in (files.position, *files.fields.values())]
    found = [file for file in [*found, geometry_file(path)] if file is not None and file.is_file()]
    if not found and not (found := shapenet_car_files(path)):
        found = foam_files(path, foam) if is_foam_case(path) else []
        found += [file for branch in MESHES for file in mesh_files(path, branch)]
        found += [file for folder in (path, path.parent) if (file := folder / FIELDS_FILE).is_file()]
    geometry = None if is_foam_case(path) else geometry_mesh_file(path)
    return sorted(found if geometry is None else [*found, geometry])


def case_fingerprint(
    path: Path, root: Path, foam: FoamSelection = DEFAULT_SELECTION, *, with_times: bool = False
) -> str:
    """Returns the fingerprint of the files of a case folder, of what is read of them, and of how cells are measured."""
    selected = POSITIONS + (repr(foam) if foam != DEFAULT_SELECTION and is_foam_case(path) else "")
    return fingerprint(case_files(path, foam), root, with_times=with_times, selected=selected)


def find_sources(path: Path, default: Sources | None = None, foam: FoamSelection = DEFAULT_SELECTION) -> Sources:
    """Returns the arrays that hold the fields of a case folder.

    They come from `fields.json` in the folder or in the one above; else they are the default, or those of the published
    data set, DrivAerML or AhmedML, whose arrays a mesh has, or those that OpenFOAM names so.
    """
    if (file := fields_file(path)) is not None:
        return read_sources(file)
    if default is not None:
        return default
    if is_foam_case(path):
        return proposed_sources(foam_arrays(path, foam))
    for branch in MESHES:
        if (files := mesh_files(path, branch)) and files[0].suffix.lower() in SUFFIXES:
            return published_sources(branch, all_arrays(files[0]))
    return DRIVAERML


def fields_file(path: Path) -> Path | None:
    """Returns the `fields.json` in a case folder or in the one above, if there is one."""
    return next((file for folder in (path, path.parent) if (file := folder / FIELDS_FILE).is_file()), None)
