"""Folders of tensors, one file per array, as published beside DrivAerML, AhmedML and ShapeNet-Car."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.points import Array, PointSet, check_range

LoadTensor: TypeAlias = Callable[[Path], NDArray[Any]]
"""Reads a `.pt` file of one tensor."""


class TensorFiles(NamedTuple):
    """The files of a branch.

    Args:
        position: File of the positions.
        fields: Files by field.
    """

    position: str
    fields: Mapping[str, str]


LAYOUTS = (
    {
        "surface": TensorFiles(
            "surface_position_vtp.pt",
            {"pressure": "surface_pressure.pt", "wallshearstress": "surface_wallshearstress.pt"},
        ),
        "volume": TensorFiles(
            "volume_cell_position.pt",
            {
                "totalpcoeff": "volume_cell_totalpcoeff.pt",
                "velocity": "volume_cell_velocity.pt",
                "vorticity": "volume_cell_vorticity.pt",
            },
        ),
    },
    {
        "surface": TensorFiles("surface_points.pt", {"pressure": "surface_pressure.pt"}),
        "volume": TensorFiles("volume_points.pt", {"velocity": "volume_velocity.pt"}),
    },
)
"""Of DrivAerML and AhmedML, and of ShapeNet-Car."""

GEOMETRY = ("surface_position_stl_resampled100k.pt", "surface_position_stl.pt")
"""Points of the geometry; the first file that is there."""


def tensor_files(path: Path) -> dict[str, TensorFiles]:
    """Returns the files of the branches that a folder has positions of."""
    found: dict[str, TensorFiles] = {}
    for layout in LAYOUTS:
        found = found or {branch: files for branch, files in layout.items() if (path / files.position).is_file()}
    return found


def geometry_file(path: Path) -> Path | None:
    """Returns the file of the geometry's points, if there is one."""
    return next((path / name for name in GEOMETRY if (path / name).is_file()), None)


def read_tensors(path: Path, load_tensor: LoadTensor) -> dict[str, PointSet]:
    """Reads the points of a folder by branch.

    Raises:
        FileNotFoundError: A field of a branch is missing.
        ValueError: A tensor has the wrong shape or is not finite.
    """
    points = {}
    for branch, files in tensor_files(path).items():
        position = read_positions(path / files.position, load_tensor)
        fields = {name: read_rows(path / file, load_tensor, len(position)) for name, file in files.fields.items()}
        points[branch] = PointSet(position, fields)
    return points


def tensor_problem(path: Path, load_tensor: LoadTensor) -> str | None:
    """Says what is wrong with the tensors of a folder, as far as their shapes tell; None if nothing is."""
    try:
        for files in tensor_files(path).values():
            shapes = {name: load_tensor(path / name).shape for name in (files.position, *files.fields.values())}
            if len({shape[:1] for shape in shapes.values()}) > 1:
                return f"the numbers of rows differ: {shapes}"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def read_positions(path: Path, load_tensor: LoadTensor) -> Array:
    """Reads positions [N, 3]; raises as `read_rows` does."""
    position = read_rows(path, load_tensor)
    if position.shape[1] != 3:
        raise ValueError(f"{path}: has the shape {position.shape}, expected (N, 3)")
    return position


def read_rows(path: Path, load_tensor: LoadTensor, num_rows: int | None = None) -> Array:
    """Reads a tensor [N] or [N, F] of real numbers as [N, F].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The shape is another, there are not `num_rows` rows, or a value is not finite.
    """
    array = load_tensor(path)
    if array.dtype not in (np.float32, np.float64):
        # Half precision and integers; NumPy does not know the kind of bfloat16.
        array = array.astype(np.float32)
    if array.ndim not in (1, 2) or not array.size or len(array) != (num_rows or len(array)):
        raise ValueError(f"{path}: has the shape {array.shape}, expected ({num_rows or 'N'}, channels)")
    check_range(path, "", array)
    return array.reshape(len(array), -1)
