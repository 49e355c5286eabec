"""A flow of two dimensions: a plane of cells, and lines as its surface."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.data.mesh_dataset import parse_sources
from emmi_jax.data.open import open_cases
from emmi_jax.jobs.predict_meshes import MeshJob, predict_meshes
from emmi_jax.meshes.forces import ForceReference
from emmi_jax.meshes.mesh import read_mesh
from emmi_jax.meshes.vtk import import_pyvista
from tests.data.case_folders import read_case_folder
from tests.jobs.tiny_runs import untrained_surrogate

NUM = 24
FIELDS = {"surface": {"pressure_coefficient": "Cp"}, "volume": {"velocity": "U"}}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Potential flow past a cylinder in the plane x-z; `Cp` on it is x, whose force is exact."""
    pyvista, path = import_pyvista(), tmp_path_factory.mktemp("data") / "case"
    path.mkdir()
    angle = 2 * np.pi * np.arange(NUM) / NUM
    place = (np.array([1.0, 1.5, 2.5])[:, None] * np.exp(1j * angle)).reshape(-1)
    points = np.stack([place.real, np.full(3 * NUM, 0.25), place.imag], axis=1)
    idx = np.arange(3 * NUM).reshape(3, NUM)
    after = np.roll(idx, -1, axis=1)
    quads = np.stack([idx[:-1], idx[1:], after[1:], after[:-1]], axis=-1).reshape(-1, 4)
    plane = pyvista.UnstructuredGrid(np.c_[np.full(len(quads), 4), quads].reshape(-1), np.full(len(quads), 9), points)
    wind = 1 - 1 / place[quads].mean(axis=1) ** 2
    plane.cell_data["U"] = np.stack([wind.real, 0 * wind.real, -wind.imag], axis=1)
    plane.save(path / "volume_1.vtu")
    ends = np.stack([idx[0], after[0]], axis=1)
    lines = pyvista.PolyData(points[:NUM], lines=np.c_[np.full(NUM, 2), ends].reshape(-1))
    lines.cell_data["Cp"] = points[ends].mean(axis=1)[:, 0]
    lines.save(path / "boundary_1.vtp")
    (path / "fields.json").write_text(json.dumps(FIELDS))
    return path


def test_lines_have_lengths_and_normals_in_the_plane(case):
    read = read_case_folder(case, with_cell_sizes=True, with_area_vectors=True)
    surface, volume = read.points["surface"], read.points["volume"]
    np.testing.assert_allclose(surface.cell_size, 2 * np.sin(np.pi / NUM), rtol=1e-6)
    outward = surface.position * [1, 0, 1]
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    np.testing.assert_allclose(surface.area_vector, outward * surface.cell_size[:, None], atol=1e-6)
    np.testing.assert_allclose(volume.cell_size.sum(), NUM / 2 * np.sin(2 * np.pi / NUM) * (2.5**2 - 1), rtol=1e-6)
    assert read.side == "lines in the plane x-z around the body; forces are per unit of span"
    assert open_cases(str(case)).left_out(["case"]) == []


def test_a_plane_and_lines_come_back_with_forces_per_span(case, tmp_path):
    surrogate = untrained_surrogate({"surface": {"pressure_coefficient": 1}, "volume": {"velocity": 3}}, -3.0, 3.0)
    job = MeshJob(
        meshes={"surface": case / "boundary_1.vtp", "volume": case / "volume_1.vtu"},
        out=tmp_path,
        geometry=case / "boundary_1.vtp",
        compare=True,
        forces=ForceReference(area=2.0, speed=3.0),
        figures="png",
    )
    predict_meshes(job, surrogate, parse_sources(FIELDS, ""), console=Console(file=io.StringIO()))
    lines, plane = (read_mesh(tmp_path / name).dataset for name in ("boundary_1.vtp", "volume_1.vtu"))
    assert (lines.n_lines, lines.n_cells, plane.n_cells) == (NUM, NUM, 2 * NUM)
    assert lines.cell_data["predicted_pressure_coefficient"].shape == (NUM,)
    assert plane.cell_data["predicted_velocity"].shape == (2 * NUM, 3)
    # By the theorem of Gauss: the slope of the pressure times the area of the polygon, over the chord.
    enclosed = NUM / 2 * np.sin(2 * np.pi / NUM)
    forces = json.loads((tmp_path / "forces.json").read_text())
    np.testing.assert_allclose(forces["reference"]["cd"], -enclosed / 2.0, rtol=1e-6)
    np.testing.assert_allclose(forces["reference"]["cl"], 0.0, atol=1e-6)
    assert (tmp_path / "surface_pressure_coefficient.png").is_file()


def test_lines_beside_a_plane_in_one_file_are_its_surface(case, tmp_path):
    pyvista = import_pyvista()
    meshes = {"plane": pyvista.read(case / "volume_1.vtu"), "foil": pyvista.read(case / "boundary_1.vtp")}
    pyvista.MultiBlock(meshes).save(tmp_path / "flow.vtm")
    assert read_mesh(tmp_path / "flow.vtm", branch="surface").patches == (("foil", NUM),)
    assert read_mesh(tmp_path / "flow.vtm", branch="volume").patches == (("plane", 2 * NUM),)
