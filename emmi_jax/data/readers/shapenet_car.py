"""Raw cases of ShapeNet-Car: points on a car with their pressure, and points around it with their velocity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.data.readers.meshes import geometry_mesh_file
from emmi_jax.data.readers.reader import Reader, read_geometry
from emmi_jax.files.npy import map_array
from emmi_jax.meshes.mesh import Mesh, read_mesh
from emmi_jax.points import Array, PointSet, check_range

SURFACE, PRESSURE, VOLUME = "quadpress_smpl.vtk", "press.npy", "hexvelo_smpl.vtk"
BRANCHES = {"surface": SURFACE, "volume": VOLUME}


class ShapeNetCarReader(Reader):
    """Reads folders of three files."""

    def owns(self, path: Path) -> bool:
        """Returns whether one of the files is there."""
        return bool(_files_of(path))

    def branches(self, path: Path) -> tuple[str, ...]:
        """Returns the branches whose mesh is there."""
        return tuple(branch for branch, name in BRANCHES.items() if (path / name).is_file())

    def files(self, path: Path) -> list[Path]:
        """Returns the files and the surface of the geometry."""
        return sorted(filter(None, (*_files_of(path), geometry_mesh_file(path))))

    def problem(self, path: Path, sources: Sources | None) -> str | None:
        """Says which of the files are there, unless all are."""
        names = [file.name for file in _files_of(path)]
        return None if len(names) == 3 else f"expected 3 files, found {', '.join(names)}"

    def read(self, path: Path, options: ReadOptions) -> Case:
        """Reads a folder; its geometry is a mesh, if there is one."""
        if options.with_cell_sizes:
            raise ValueError(f"{path}: points have no cell sizes to weight their points")
        points, mesh = read_shapenet_car(path, mask_nan=options.mask_nan), geometry_mesh_file(path)
        if mesh is None:
            return Case(points, None)
        geometry, left_out = read_geometry(mesh)
        return Case(points, geometry, tuple(left_out))


def _files_of(path: Path) -> list[Path]:
    return [file for name in (SURFACE, PRESSURE, VOLUME) if (file := path / name).is_file()]


def read_shapenet_car(path: Path, *, mask_nan: bool = False) -> dict[str, PointSet]:
    """Reads a case.

    Points of the surface that no polygon uses are left out, and points of the volume that lie on the surface.

    Args:
        path: A folder with `quadpress_smpl.vtk`, `press.npy` and `hexvelo_smpl.vtk`.
        mask_nan: Whether a field may have NaN at some points.

    Returns:
        The branch `surface` with `pressure` [N, 1], and `volume` with `velocity` [N, 3].

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or does not fit the others.
    """
    surface, volume = read_mesh(path / SURFACE), read_mesh(path / VOLUME)
    is_used = _used_points(surface)
    position = surface.position("points")
    pressure = np.asarray(map_array(path / PRESSURE), np.float32).reshape(-1, 1)
    if len(pressure) == len(position):
        pressure = pressure[is_used]
    if len(pressure) != is_used.sum():
        raise ValueError(
            f"{path / PRESSURE}: expected a finite value for each of {len(position)} points of {SURFACE}, "
            f"or of the {is_used.sum()} that polygons use, got {len(pressure)} values"
        )
    check_range(path / PRESSURE, "", pressure, mask_nan=mask_nan)
    around, velocity = volume.position("points"), _velocity(volume, mask_nan)
    on_surface = _rows_among(around, position)
    return {
        "surface": PointSet(position[is_used], {"pressure": pressure}),
        "volume": PointSet(around[~on_surface], {"velocity": velocity[~on_surface]}),
    }


def _used_points(mesh: Mesh) -> NDArray[np.bool_]:
    used = np.zeros(mesh.dataset.n_points, bool)
    cells = mesh.dataset.cast_to_unstructured_grid()
    used[np.asarray(cells.cell_connectivity)] = True
    return used


def _velocity(mesh: Mesh, mask_nan: bool) -> Array:
    """Returns the one array of vectors on the points, whatever its name."""
    arrays = {name: np.asarray(values) for name, values in mesh.dataset.point_data.items()}
    vectors = [name for name, values in arrays.items() if values.shape == (mesh.dataset.n_points, 3)]
    if len(vectors) != 1:
        raise ValueError(f"{mesh.path}: expected one array of vectors on the points, got {sorted(arrays)}")
    check_range(mesh.path, vectors[0], arrays[vectors[0]], mask_nan=mask_nan)
    return arrays[vectors[0]].astype(np.float32)


def _rows_among(rows: Array, others: Array) -> NDArray[np.bool_]:
    """Returns which rows [N, 3] are exactly among others [M, 3]."""
    known = {row.tobytes() for row in np.ascontiguousarray(others, np.float32)}
    return np.array([row.tobytes() in known for row in np.ascontiguousarray(rows, np.float32)])
