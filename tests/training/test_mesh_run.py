import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.training.settings import default_settings
from emmi_jax.training.trained_run import load_dataset, load_run
from tests.cfd.case_folders import surface_dataset, volume_dataset, write_case_folder
from tests.training.tiny_runs import run, tiny_settings

GEOMETRY = {
    "physics_blocks": ("perceiver", "cross"),
    "num_geometry_points": 16,
    "num_supernodes": 4,
    "num_test_supernodes": 8,
    "supernode_degree": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case_folder(tmp_path_factory.mktemp("data") / "case")


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "mesh"
    run(tiny_settings(folder, **GEOMETRY), path)
    return path


def test_a_case_folder_is_trained_on_with_all_its_branches(trained):
    metrics = json.loads((trained / "metrics.json").read_text())["test"]
    assert set(metrics) == {"surface/pressure_coefficient", "volume/velocity", "volume/pressure_coefficient"}
    assert set(metrics["volume/velocity"]) == {"relative_l2", "mean_predictor", "nearest_neighbors"}
    assert set(load_run(trained).fixed_points) == {"surface_anchors", "volume_anchors", "geometry"}
    assert load_run(trained).model.config.has_geometry


def test_the_geometry_comes_from_the_body(folder):
    dataset = load_dataset(tiny_settings(folder, **GEOMETRY))
    level = np.linalg.norm(dataset.fixed_case.geometry_position / [1.0, 0.6, 0.5], axis=1)
    assert 0.9 < level.min() <= level.max() < 1 + 1e-6


def test_tensors_are_the_same_case_as_the_meshes_they_were_made_of(tmp_path):
    torch = pytest.importorskip("torch")
    surface, volume = surface_dataset(), volume_dataset()
    shear = np.zeros((surface.n_cells, 3), np.float32)
    surface.cell_data["pMeanTrim"], surface.cell_data["wallShearStressMeanTrim"] = surface.cell_data["Cp"], shear
    surface.save(tmp_path / "boundary_1.vtp")
    meshes = load_dataset(tiny_settings(tmp_path, **GEOMETRY))
    (tmp_path / "boundary_1.vtp").unlink()
    arrays = {
        "surface_position_vtp": surface.cell_centers().points,
        "surface_pressure": surface.cell_data["Cp"],
        "surface_wallshearstress": shear,
        "volume_cell_position": volume.cell_centers().points,
        "volume_cell_totalpcoeff": volume.cell_data["Cp"],
        "volume_cell_velocity": volume.cell_data["U"],
        "volume_cell_vorticity": volume.cell_data["U"],
    }
    for name, array in arrays.items():
        torch.save(torch.tensor(np.asarray(array, np.float32)), tmp_path / f"{name}.pt")
    tensors = load_dataset(tiny_settings(tmp_path, **GEOMETRY))
    assert list(tensors.fields) == ["surface", "volume"]
    for field in ("pressure", "wallshearstress"):
        np.testing.assert_array_equal(
            tensors.test_points["surface"].fields[field], meshes.test_points["surface"].fields[field]
        )


@pytest.mark.parametrize(
    ("removed", "geometry", "blocks", "num_geometry_points"),
    [
        (None, True, ("perceiver", "self", "cross", "self", "cross"), 1024),
        (None, False, ("self", "cross", "self", "cross"), 0),
        ("boundary_1.vtp", True, ("self",) * 4, 0),
        ("volume_1.vtu", True, ("perceiver", *("self",) * 4), 1024),
    ],
)
def test_defaults_go_by_what_the_folder_holds(folder, tmp_path, removed, geometry, blocks, num_geometry_points):
    copy = shutil.copytree(folder, tmp_path / "copy")
    if removed:
        (copy / removed).unlink()
    settings = default_settings(str(copy), geometry=geometry)
    assert (settings.physics_blocks, settings.num_geometry_points) == (blocks, num_geometry_points)
