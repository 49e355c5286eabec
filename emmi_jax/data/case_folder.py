"""A simulated case in a folder: meshes as in DrivAerML, or tensors made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.cases import Case
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.files.atomic import JsonDict, read_json
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.surfaces import surface_triangles
from emmi_jax.points import Array, PointSet

LoadTensor: TypeAlias = Callable[[Path], NDArray[Any]]
Sources: TypeAlias = dict[str, dict[str, FieldSource]]

FIELDS_FILE = "fields.json"
NUM_GEOMETRY_POINTS = 65_536
"""Points drawn on the triangles of an `.stl` file."""

MESHES = {"surface": "boundary*.vtp", "volume": "volume*.vtu"}
DRIVAERML: Sources = {
    "surface": {"pressure": FieldSource("pMeanTrim"), "wallshearstress": FieldSource("wallShearStressMeanTrim")},
    "volume": {"totalpcoeff": FieldSource("CptMeanTrim"), "velocity": FieldSource("UMeanTrim")},
}
TENSORS = {
    "surface": (
        "surface_position_vtp.pt",
        {"pressure": "surface_pressure.pt", "wallshearstress": "surface_wallshearstress.pt"},
    ),
    "volume": (
        "volume_cell_position.pt",
        {
            "totalpcoeff": "volume_cell_totalpcoeff.pt",
            "velocity": "volume_cell_velocity.pt",
            "vorticity": "volume_cell_vorticity.pt",
        },
    ),
}


def case_names(path: Path) -> list[str]:
    """Returns the names of the folders in a folder that hold cases, in the order of their numbers.

    Where there are none, the folders in those folders are looked at: `param1/1dc58be2`.
    """
    if not path.is_dir():
        return []
    for pattern in ("*/", "*/*/"):
        found = [folder.relative_to(path).as_posix() for folder in path.glob(pattern) if case_branches(folder)]
        if found:
            return sorted(found, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])
    return []


def case_branches(path: Path) -> tuple[str, ...]:
    """Returns the branches that a folder has positions of; none if it is not a folder."""
    if _holds_tensors(path):
        return tuple(branch for branch, (position, _) in TENSORS.items() if (path / position).is_file())
    return tuple(branch for branch, pattern in MESHES.items() if any(path.glob(pattern)))


def case_files(path: Path) -> list[Path]:
    """Returns the files of a case folder that `read_case_folder` reads."""
    tensors = [file for position, fields in TENSORS.values() for file in (position, *fields.values())]
    names = [*MESHES.values(), *tensors, "*.stl", FIELDS_FILE, f"../{FIELDS_FILE}"]
    return sorted(file for name in names for file in path.glob(name))


def read_case_folder(
    path: Path, load_tensor: LoadTensor, *, with_cell_sizes: bool | None = False, sources: Sources = DRIVAERML
) -> Case:
    """Reads a case with a surface, a volume or both.

    Args:
        path: A folder with `boundary*.vtp`, `volume*.vtu` or both, and perhaps an `.stl` file of the geometry; see
            `find_sources` for the fields. Or a folder with the tensors of `TENSORS`: `surface_position_vtp.pt`, ….
        load_tensor: Reads a `.pt` file of one tensor.
        with_cell_sizes: Whether to measure the cells of the meshes; None: those of meshes that have sizes.
        sources: The arrays that hold the fields, unless a `fields.json` names them.

    Returns:
        The case; fields are [N, F], float32 or float64 as in the files.

    Raises:
        FileNotFoundError: There is no such folder, or a tensor of a branch is missing.
        ValueError: The folder holds no case or several, or a file is unusable; or cell sizes are needed but there are
            none.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    if _holds_tensors(path):
        if with_cell_sizes:
            raise ValueError(f"{path}: tensors have no cell sizes to weight their points")
        points = _read_tensors(path, load_tensor)
    else:
        sources, points = find_sources(path, sources), {}
        for branch, pattern in MESHES.items():
            file = _only(path, pattern)
            if file is not None:
                if branch not in sources:
                    raise ValueError(f"{path}: {FIELDS_FILE} has no fields for the branch {branch!r} of {file.name}")
                points[branch] = _read_points(file, sources[branch], with_cell_sizes)
    if not points:
        wanted = [*MESHES.values(), *(position for position, _ in TENSORS.values()), "folders with them"]
        raise ValueError(f"{path}: no case in this folder: expected {' or '.join(wanted)}")
    geometry = _only(path, "*.stl")
    if geometry is None:
        return Case(points, None)
    return Case(points, sample_triangles(0, surface_triangles(read_mesh(geometry)), NUM_GEOMETRY_POINTS))


def _read_points(file: Path, sources: Mapping[str, FieldSource], with_cell_sizes: bool | None) -> PointSet:
    arrays = {source.array for source in sources.values()}
    mesh = read_mesh(file, arrays)
    points = mesh.points(sources, with_cell_sizes=with_cell_sizes or False)
    if with_cell_sizes is None and mesh.location_of(arrays) == "cells" and (sizes := mesh.cell_sizes()).any():
        return points._replace(cell_size=sizes)
    return points


def find_sources(path: Path, default: Sources = DRIVAERML) -> Sources:
    """Returns the arrays that hold the fields of a case folder.

    They come from `fields.json` in the folder or in the one above; else they are the default.
    """
    files = (folder / FIELDS_FILE for folder in (path, path.parent))
    return next((read_sources(file) for file in files if file.is_file()), default)


def read_sources(path: Path) -> Sources:
    """Reads a `fields.json`.

    Args:
        path: JSON such as `{"surface": {"pressure": "p", "shear": {"array": "tau", "scale": -1.0}}}`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON of this form.
    """
    return parse_sources(read_json(path), path)


def parse_sources(branches: Any, path: Path | str) -> Sources:
    """Returns the arrays by branch and field that the content of a `fields.json` names; see `read_sources`."""
    if not isinstance(branches, Mapping) or not all(isinstance(fields, Mapping) for fields in branches.values()):
        raise ValueError(
            f"{path}: expected fields by branch, as {{'surface': {{'pressure': 'p'}}}}, got {branches!r:.80}"
        )
    return {
        branch: {name: _source(path, name, value) for name, value in fields.items()}
        for branch, fields in branches.items()
    }


def sources_to_json(sources: Sources) -> JsonDict:
    """Inverts `parse_sources`."""
    return {
        branch: {name: {"array": source.array, "scale": source.scale} for name, source in fields.items()}
        for branch, fields in sources.items()
    }


def _source(path: Path | str, name: str, value: Any) -> FieldSource:
    match value:
        case str():
            return FieldSource(value)
        case {"array": str(array), **rest} if set(rest) <= {"scale"}:
            scale = rest.get("scale", 1.0)
            if isinstance(scale, int | float) and np.isfinite(scale) and scale:
                return FieldSource(array, float(scale))
    raise ValueError(f"{path}: field {name!r} must be an array's name, or its 'array' and 'scale', got {value!r}")


def _holds_tensors(path: Path) -> bool:
    return any((path / position).is_file() for position, _ in TENSORS.values())


def _only(path: Path, pattern: str) -> Path | None:
    files = sorted(path.glob(pattern))
    if len(files) > 1:
        raise ValueError(f"{path}: a case has one {pattern}, found {', '.join(file.name for file in files)}")
    return files[0] if files else None


def _read_tensors(path: Path, load_tensor: LoadTensor) -> dict[str, PointSet]:
    points = {}
    for branch, (position_file, field_files) in TENSORS.items():
        if not (path / position_file).is_file():
            continue
        position = _rows(path / position_file, load_tensor, None)
        if position.shape[1] != 3:
            raise ValueError(f"{path / position_file}: has the shape {position.shape}, expected (N, 3)")
        fields = {name: _rows(path / file, load_tensor, len(position)) for name, file in field_files.items()}
        points[branch] = PointSet(position, fields)
    return points


def _rows(path: Path, load_tensor: LoadTensor, num_rows: int | None) -> Array:
    array = load_tensor(path)
    if array.dtype not in (np.float32, np.float64):
        # Half precision and integers; NumPy does not know the kind of bfloat16.
        array = array.astype(np.float32)
    if array.ndim not in (1, 2) or not array.size or len(array) != (num_rows or len(array)):
        raise ValueError(f"{path}: has the shape {array.shape}, expected ({num_rows or 'N'}, channels)")
    num_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if num_bad:
        raise ValueError(f"{path}: {num_bad} of {array.size} values are NaN or infinite")
    return array.reshape(len(array), -1)
