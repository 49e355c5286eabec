"""The force on random bodies of several parts is the exact integral, whatever the file that they come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.meshes.forces import integrate_forces
from emmi_jax.meshes.mesh import Mesh, read_mesh
from emmi_jax.meshes.openfoam import read_foam
from emmi_jax.meshes.surfaces import surface_elements
from emmi_jax.meshes.vtk import import_pyvista
from tests.meshes import foam_cases
from tests.meshes.foam_cases import SPACING, write_foam_case

pyvista = import_pyvista()
Blocks = list[tuple[np.ndarray, np.ndarray]]


def blocks(rng: np.random.Generator) -> Blocks:
    """Blocks of cells with gaps between them: the lowest and the highest corner of each on the lattice."""
    found, start = [], 1
    for _ in range(3):
        size = rng.integers(1, 3, 3)
        low = np.array([start, *rng.integers(1, 3, 2)])
        found.append((low, low + size))
        start += size[0] + 1
    return found


def of_box(low: np.ndarray, high: np.ndarray, level: int) -> Any:
    bounds = np.stack([low * SPACING, high * SPACING], axis=1).ravel()
    return pyvista.Box(bounds=bounds, level=level)


def body(rng: np.random.Generator, parts: Blocks, *, is_soup: bool) -> Any:
    """The parts as one surface; each turns either way, and in a soup every triangle does."""
    found = []
    for low, high in parts:
        part = of_box(low, high, int(rng.integers(0, 3)))
        found.append(part.flip_faces() if rng.random() < 0.5 else part)
    whole = pyvista.merge(found)
    if not is_soup:
        return whole
    triangles = whole.triangulate()
    faces = np.asarray(triangles.faces).reshape(-1, 4)[:, 1:].copy()
    is_turned = rng.random(len(faces)) < 0.3
    faces[is_turned] = faces[is_turned, ::-1]
    points = np.asarray(triangles.points)[faces].reshape(-1, 3)
    return pyvista.PolyData(points, np.insert(np.arange(len(points)), np.arange(0, len(points), 3), 3))


def meshes(rng: np.random.Generator, kind: str, parts: Blocks, path: Path, patch: pytest.MonkeyPatch) -> list[Mesh]:
    if kind in ("stl", "vtp", "soup"):
        file = path / f"body.{'vtp' if kind == 'vtp' else 'stl'}"
        body(rng, parts, is_soup=kind == "soup").save(file)
        return [read_mesh(file)]
    holes = {tuple(map(int, low + step)) for low, high in parts for step in np.ndindex(*(high - low))}
    patch.setattr(foam_cases, "HOLES", holes)
    patch.setattr(foam_cases, "CELLS", (11, 5, 5))
    cells = foam_cases.all_cells()
    patch.setattr(foam_cases, "all_cells", lambda: cells)
    case = write_foam_case(path / "case", processors=2 if kind == "decomposed" else 0, fields=(), times=("0",))
    found = [read_foam(case, ["surface"], FoamSelection((name,)))["surface"] for name in ("body", "ground")]
    if kind != "foamToVTK":
        return found
    for name, mesh in zip(("body", "ground"), found, strict=True):
        file = path / f"VTK/case_0/boundary/{name}.vtp"
        file.parent.mkdir(parents=True, exist_ok=True)
        mesh.dataset.save(file)
    return [read_mesh(path / f"VTK/case_0/boundary/{name}.vtp") for name in ("body", "ground")]


@pytest.mark.parametrize("kind", ["stl", "soup", "vtp", "case", "decomposed", "foamToVTK"])
@pytest.mark.parametrize("seed", range(3))
def test_the_force_of_a_linear_pressure_is_its_gradient_times_the_volume(kind, seed, tmp_path, monkeypatch):
    rng = np.random.default_rng(seed)
    parts, gradient, shear = blocks(rng), rng.normal(size=3), rng.normal(size=3)
    sides = [(high - low) * SPACING for low, high in parts]
    volume = sum(float(np.prod(side)) for side in sides)
    area = sum(2 * float(side @ np.roll(side, 1)) for side in sides)
    found = meshes(rng, kind, parts, tmp_path, monkeypatch)
    wanted = [-gradient * volume + shear * area]
    if len(found) > 1:  # the ground below: its normal is +z, its middle is at half of its sides
        length, width = 11 * SPACING[0], 5 * SPACING[1]
        pressure = 1 + gradient @ [length / 2, width / 2, 0]
        wanted.append(length * width * (np.array([0, 0, -pressure]) + shear))
    for mesh, force in zip(found, wanted, strict=True):
        elements = surface_elements(mesh, require_closed=False)
        position = np.asarray(mesh.position("cells"), np.float64)
        pressure = 1 + position @ gradient
        tau = np.tile(shear, (len(pressure), 1))
        np.testing.assert_allclose(integrate_forces(elements.normal, elements.area, pressure, tau), force, atol=2e-5)
