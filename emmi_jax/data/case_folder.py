"""A simulated case in a folder: meshes, or tensors made of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from emmi_jax.config import LATEST_WALLS, FoamSelection
from emmi_jax.data.cases import Case
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.drivaernet import (
    design_branches,
    design_files,
    design_names,
    design_problem,
    is_drivaernet,
    read_design,
)
from emmi_jax.data.field_sources import DRIVAERML, FIELDS_FILE, Sources, published_sources, read_sources
from emmi_jax.data.mesh_files import (
    MESHES,
    SUFFIXES,
    all_arrays,
    check_parts,
    geometry_mesh_file,
    joined,
    mesh_files,
    only_file,
    other_kinds,
    unread_files,
)
from emmi_jax.data.openfoam import foam_problem, proposed_sources, read_foam_case
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.data.shapenet_car import BRANCHES, read_shapenet_car, shapenet_car_files
from emmi_jax.data.tensors import (
    LoadTensor,
    geometry_file,
    read_positions,
    read_tensors,
    tensor_files,
    tensor_problem,
)
from emmi_jax.files.fingerprint import fingerprint
from emmi_jax.meshes.cells import POSITIONS
from emmi_jax.meshes.components import all_found, found_arrays, quoted
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.openfoam import foam_arrays, foam_branches, foam_files, is_foam
from emmi_jax.meshes.openfoam_times import passed_over
from emmi_jax.meshes.surfaces import area_vectors, is_surface, surface_triangles
from emmi_jax.meshes.vtk import GHOSTS
from emmi_jax.points import PointSet

NUM_GEOMETRY_POINTS = 65_536
"""Points drawn on the triangles of an `.stl` file."""


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


def case_branches(path: Path, foam: FoamSelection = LATEST_WALLS) -> tuple[str, ...]:
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


def case_files(path: Path, foam: FoamSelection = LATEST_WALLS) -> list[Path]:
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


def case_problem(
    path: Path,
    load_tensor: LoadTensor,
    branches: Collection[str],
    sources: Sources | None = None,
    foam: FoamSelection = LATEST_WALLS,
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
        _check_named_branches(path, foam)
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


def read_case_folder(
    path: Path,
    load_tensor: LoadTensor,
    *,
    with_cell_sizes: bool | None = False,
    with_area_vectors: bool = False,
    sources: Sources | None = None,
    foam: FoamSelection = LATEST_WALLS,
) -> Case:
    """Reads a case with a surface, a volume or both.

    Args:
        path: A folder with `boundary*.vtp`, `volume*.vtu` or both, and perhaps an `.stl` file of the geometry; see
            `find_sources` for the fields. Or a folder with the tensors of a published data set, or with the three files
            of ShapeNet-Car; or an OpenFOAM case.
        load_tensor: Reads a `.pt` file of one tensor.
        with_cell_sizes: Whether to measure the cells of the meshes; None: those of meshes that have sizes.
        with_area_vectors: Whether to measure the area vectors of a surface mesh of polygons with fields in its cells.
        sources: The arrays that hold the fields, unless a `fields.json` names them; None for those of DrivAerML or
            AhmedML, or those of OpenFOAM.
        foam: The patches and the time of an OpenFOAM case.

    Returns:
        The case; fields are [N, F], float32 or float64 as in the files.

    Raises:
        FileNotFoundError: There is no such folder, or a tensor of a branch is missing.
        ValueError: The folder holds no case or several, or a file is unusable; or cell sizes are needed but there are
            none.
    """
    if is_drivaernet(path.parent):
        if with_cell_sizes:
            raise ValueError(f"{path}: points have no cell sizes to weight them")
        return Case(read_design(path.parent, path.name), None)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    if is_foam_case(path):
        found = find_sources(path, sources, foam)
        return read_foam_case(
            path,
            found,
            foam,
            NUM_GEOMETRY_POINTS,
            with_cell_sizes=with_cell_sizes is not False,
            with_area_vectors=with_area_vectors,
        )
    _check_named_branches(path, foam)
    geometry, left_out, side = geometry_mesh_file(path), list[str](), ""
    if (is_tensors := bool(tensor_files(path))) or shapenet_car_files(path):
        if with_cell_sizes:
            what = "tensors" if is_tensors else "points"
            raise ValueError(f"{path}: {what} have no cell sizes to weight their points")
        points = read_tensors(path, load_tensor) if is_tensors else read_shapenet_car(path)
        if geometry is None and (tensor := geometry_file(path)) is not None:
            return Case(points, read_positions(tensor, load_tensor))
    else:
        points, left_out, side = _read_meshes(path, find_sources(path, sources), with_cell_sizes, with_area_vectors)
    if geometry is None:
        return Case(points, None, tuple(left_out), side)
    mesh = read_mesh(geometry, ())
    left_out += [f"{geometry.name}: {line}" for line in mesh.left_out]
    return Case(points, sample_triangles(0, surface_triangles(mesh), NUM_GEOMETRY_POINTS), tuple(left_out), side)


def _read_meshes(
    path: Path, sources: Sources, with_cell_sizes: bool | None, with_area_vectors: bool
) -> tuple[dict[str, PointSet], list[str], str]:
    points, left_out, side = {}, list[str](), ""
    for branch in MESHES:
        if (files := mesh_files(path, branch)) and branch not in sources:
            raise ValueError(f"{path}: {FIELDS_FILE} has no fields for the branch {branch!r} of {files[0].name}")
        if files:
            with joined(path, files) as file:
                measure = with_area_vectors and branch == GEOMETRY_BRANCH
                points[branch], lines, of_branch = _read_points(file, sources[branch], with_cell_sizes, measure)
                side = side or of_branch
                left_out += [f"{files[0].name}: {line}" for line in lines]
    if not points:
        wanted = [*(f"{stem}*{suffix}" for stem, suffix in zip(MESHES.values(), SUFFIXES, strict=False))]
        wanted += ["tensors such as surface_position_vtp.pt", *BRANCHES.values(), "folders with them"]
        others = f"; meshes are read from {', '.join(SUFFIXES)}, not from {', '.join(found[:5])}" if (
            found := other_kinds(path)
        ) else ""  # fmt: skip
        raise ValueError(f"{path}: no case in this folder: expected {' or '.join(wanted)}{others}")
    return points, left_out, side


def _read_points(
    file: Path, sources: Mapping[str, FieldSource], with_cell_sizes: bool | None, with_area_vectors: bool
) -> tuple[PointSet, tuple[str, ...], str]:
    side, arrays = "", {source.array for source in sources.values()}
    mesh = read_mesh(file, arrays)
    points = mesh.points(sources, with_cell_sizes=with_cell_sizes or False)
    is_in_cells = mesh.location_of(arrays) == "cells"
    if with_cell_sizes is None and is_in_cells and (sizes := mesh.cell_sizes()).any():
        points = points._replace(cell_size=sizes)
    if with_area_vectors and is_in_cells and is_surface(mesh):
        vectors, side = area_vectors(mesh)
        points = points._replace(area_vector=vectors)
    return points, mesh.left_out, side


def case_fingerprint(path: Path, root: Path, foam: FoamSelection = LATEST_WALLS, *, with_times: bool = False) -> str:
    """Returns the fingerprint of the files of a case folder, of what is read of them, and of how cells are measured."""
    selected = POSITIONS + (repr(foam) if foam != LATEST_WALLS and is_foam_case(path) else "")
    return fingerprint(case_files(path, foam), root, with_times=with_times, selected=selected)


def find_sources(path: Path, default: Sources | None = None, foam: FoamSelection = LATEST_WALLS) -> Sources:
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


def case_left_out(
    path: Path, sources: Sources, foam: FoamSelection = LATEST_WALLS, *, with_arrays: bool = True
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


def _check_named_branches(path: Path, foam: FoamSelection) -> None:
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
