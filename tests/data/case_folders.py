"""Folders with a case: exact flow past an ellipsoid, as meshes and as tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.potential_flow import Ellipsoid
from emmi_jax.meshes.cells import measure_cells
from emmi_jax.meshes.vtk import import_pyvista

AXES = np.array([1.0, 0.6, 0.5])
BODY = Ellipsoid(semi_axes=AXES, rotation=np.eye(3))
FIELDS = {"surface": {"pressure_coefficient": "Cp"}, "volume": {"velocity": "U", "pressure_coefficient": "Cp"}}


def surface_dataset(resolution: int = 16) -> Any:
    """Triangles whose corners lie on the ellipsoid; `Cp` is exact at the radial projection of their centres."""
    dataset = import_pyvista().Sphere(radius=1.0, theta_resolution=resolution, phi_resolution=resolution)
    dataset.clear_data()
    dataset.points = np.asarray(dataset.points, np.float64) * AXES
    centre = measure_cells(dataset).centre
    on_surface = centre / np.linalg.norm(centre / AXES, axis=1, keepdims=True)
    dataset.cell_data["Cp"] = BODY.pressure_coefficient(on_surface).astype(np.float32)
    return dataset


def volume_dataset(resolution: int = 12) -> Any:
    """Tetrahedra of a shell around the ellipsoid; fields are exact at their centres."""
    pyvista = import_pyvista()
    inner = pyvista.Sphere(radius=1.3, theta_resolution=resolution, phi_resolution=resolution)
    outer = inner.copy()
    outer.points = np.asarray(outer.points) * 2
    faces = inner.regular_faces
    prisms = np.concatenate([np.full((len(faces), 1), 6), faces, faces + inner.n_points], axis=1)
    points = np.concatenate([inner.points, outer.points]).astype(np.float64) * AXES
    dataset = pyvista.UnstructuredGrid(prisms.reshape(-1), np.full(len(faces), pyvista.CellType.WEDGE), points)
    centre = measure_cells(dataset).centre
    dataset.cell_data["U"] = BODY.velocity(centre).astype(np.float32)
    dataset.cell_data["Cp"] = BODY.pressure_coefficient(centre).astype(np.float32)
    return dataset


def write_case_folder(path: Path) -> Path:
    """Writes the surface, the volume, the body and `fields.json`."""
    path.mkdir()
    surface = surface_dataset()
    surface.save(path / "boundary_1.vtp")
    surface.save(path / "body_1.stl")
    volume_dataset().save(path / "volume_1.vtu")
    (path / "fields.json").write_text(json.dumps(FIELDS))
    return path


def read_case_folder(path: Path, *, foam: FoamSelection = DEFAULT_SELECTION, **options: Any) -> Case:
    """Reads a folder of any layout."""
    return CaseFolder.open(path, foam).read(ReadOptions(**options))
