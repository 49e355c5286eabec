"""Folders of PyTorch tensors (`.pt`), one file per array, as published beside DrivAerML and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.mesh_dataset import Sources, published, published_sources
from emmi_jax.data.readers.meshes import geometry_mesh_file
from emmi_jax.data.readers.reader import Reader, read_geometry
from emmi_jax.files.pt import load_torch_tensor, map_torch_tensor
from emmi_jax.points import Array, PointSet, check_range


class TensorFiles(NamedTuple):
    """The files of a branch.

    Args:
        position: File of the positions.
        fields: Files by field.
    """

    position: str
    fields: Mapping[str, str]


def _named(position: str, prefix: str, *fields: str) -> TensorFiles:
    return TensorFiles(f"{position}.pt", {field: f"{prefix}_{field}.pt" for field in fields})


def _file(source: Any) -> str:
    return str(source["array"] if isinstance(source, Mapping) else source)


LAYOUTS = (
    {
        "surface": _named("surface_position_vtp", "surface", "pressure", "wallshearstress"),
        "volume": _named("volume_cell_position", "volume_cell", "totalpcoeff", "velocity", "vorticity"),
    },
    {
        "surface": _named("surface_points", "surface", "pressure"),
        "volume": _named("volume_points", "volume", "velocity"),
    },
)
"""Of DrivAerML and AhmedML, and of ShapeNet-Car."""

PUBLISHED = {
    name: {
        branch: TensorFiles(of.files, {field: _file(source) for field, source in of.fields.items()})
        for branch, of in dataset.branches.items()
    }
    for name, dataset in published().items()
    if dataset.is_of_tensors
}
"""Of the data sets of tensors that are files of the package."""

GEOMETRY = ("surface_position_stl_resampled100k.pt", "surface_position_stl.pt")
"""Points of the geometry; the first file that is there."""


class TensorReader(Reader):
    """Reads folders of tensors."""

    def owns(self, path: Path) -> bool:
        """Returns whether a folder has the positions of a branch."""
        return bool(_files_of(path))

    def branches(self, path: Path) -> tuple[str, ...]:
        """Returns the branches that a folder has positions of."""
        return tuple(_files_of(path))

    def known_sources(self, path: Path) -> Sources:
        """Returns the files of the fields of a published data set of tensors."""
        name = _published(path)
        return super().known_sources(path) if name is None else published_sources(name)

    def conditions(self, path: Path) -> ConditionSource | None:
        """Returns where a published data set of tensors has its conditions."""
        name = _published(path)
        return None if name is None else published()[name].conditions

    def files(self, path: Path) -> list[Path]:
        """Returns the tensors and the surface of the geometry."""
        named = [path / name for files in _files_of(path).values() for name in (files.position, *files.fields.values())]
        used = [*(file for file in named if file.is_file()), _geometry_tensor(path), geometry_mesh_file(path)]
        return sorted(file for file in used if file is not None)

    def input_files(self, path: Path, inputs: Mapping[str, Sequence[str]]) -> list[Path]:
        """Returns the tensors of further arrays."""
        by_branch = (_input_files(path, files, inputs.get(branch, ())) for branch, files in _files_of(path).items())
        return sorted(path / name for files in by_branch for name in files.values())

    def problem(self, path: Path, sources: Sources | None) -> str | None:
        """Says what is wrong with the shapes of the tensors."""
        for files in _files_of(path).values():
            shapes = {name: map_torch_tensor(path / name).shape for name in (files.position, *files.fields.values())}
            if len({shape[:1] for shape in shapes.values()}) > 1:
                return f"the numbers of rows differ: {shapes}"
        return None

    def read(self, path: Path, options: ReadOptions) -> Case:
        """Reads a folder; its geometry is a mesh, or else a tensor."""
        if options.with_cell_sizes:
            raise ValueError(f"{path}: tensors have no cell sizes to weight their points")
        points = {}
        for branch, files in _files_of(path).items():
            position = read_positions(path / files.position)
            named = {**files.fields, **_input_files(path, files, options.inputs.get(branch, ()))}
            fields = {
                name: read_rows(path / file, len(position), mask_nan=options.mask_nan) for name, file in named.items()
            }
            points[branch] = PointSet(position, fields)
        if (mesh := geometry_mesh_file(path)) is not None:
            geometry, left_out = read_geometry(mesh)
            return Case(points, geometry, tuple(left_out))
        tensor = _geometry_tensor(path)
        return Case(points, None if tensor is None else read_positions(tensor))


def _files_of(path: Path) -> dict[str, TensorFiles]:
    """Returns the files of the branches that a folder has positions of."""
    files_of: dict[str, TensorFiles] = {}
    for layout in (*LAYOUTS, *PUBLISHED.values()):
        files_of = files_of or {branch: files for branch, files in layout.items() if (path / files.position).is_file()}
    return files_of


def _published(path: Path) -> str | None:
    """Returns the name of the published data set of tensors that a case is of, if it is of one."""
    found = _files_of(path)
    return next((name for name, layout in PUBLISHED.items() if found and found.items() <= layout.items()), None)


def _input_files(path: Path, files: TensorFiles, names: Sequence[str]) -> dict[str, str]:
    """Returns the files of further arrays, which are named as those of the fields are: `surface_normal.pt`."""
    field, file = next(iter(files.fields.items()))
    candidates = {name: file.replace(f"{field}.pt", f"{name}.pt") for name in names if name not in files.fields}
    return {name: named for name, named in candidates.items() if (path / named).is_file()}


def _geometry_tensor(path: Path) -> Path | None:
    return next((path / name for name in GEOMETRY if (path / name).is_file()), None)


def read_positions(path: Path) -> Array:
    """Reads positions [N, 3]; raises as `read_rows` does."""
    position = read_rows(path)
    if position.shape[1] != 3:
        raise ValueError(f"{path}: has the shape {position.shape}, expected (N, 3)")
    return position


def read_rows(path: Path, num_rows: int | None = None, *, mask_nan: bool = False) -> Array:
    """Reads a tensor [N] or [N, F] of real numbers as [N, F].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The shape is another, there are not `num_rows` rows, or a value is not finite (NaN may be masked).
    """
    array = load_torch_tensor(path)
    if array.dtype not in (np.float32, np.float64):
        # Half precision and integers; NumPy does not know the kind of bfloat16.
        array = array.astype(np.float32)
    if array.ndim not in (1, 2) or not array.size or len(array) != (num_rows or len(array)):
        raise ValueError(f"{path}: has the shape {array.shape}, expected ({num_rows or 'N'}, channels)")
    check_range(path, "", array, mask_nan=mask_nan)
    return array.reshape(len(array), -1)
