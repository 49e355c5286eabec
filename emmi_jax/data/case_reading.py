"""The case of a folder, read: points with fields by branch, and points of the geometry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.case_checks import check_named_branches
from emmi_jax.data.case_folder import find_sources, is_foam_case
from emmi_jax.data.cases import Case
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.drivaernet import (
    is_drivaernet,
    read_design,
)
from emmi_jax.data.field_sources import FIELDS_FILE, Sources
from emmi_jax.data.mesh_files import (
    MESHES,
    SUFFIXES,
    geometry_mesh_file,
    joined,
    mesh_files,
    other_kinds,
)
from emmi_jax.data.openfoam import read_foam_case
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.data.shapenet_car import BRANCHES, read_shapenet_car, shapenet_car_files
from emmi_jax.data.tensors import (
    LoadTensor,
    geometry_file,
    read_positions,
    read_tensors,
    tensor_files,
)
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.surfaces import area_vectors, is_surface, surface_triangles
from emmi_jax.points import PointSet

NUM_GEOMETRY_POINTS = 65_536
"""Points drawn on the triangles of an `.stl` file."""


def read_case_folder(
    path: Path,
    load_tensor: LoadTensor,
    *,
    with_cell_sizes: bool | None = False,
    with_area_vectors: bool = False,
    sources: Sources | None = None,
    foam: FoamSelection = DEFAULT_SELECTION,
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
    check_named_branches(path, foam)
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
