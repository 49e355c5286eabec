from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.files import npy
from emmi_jax.jobs.stats import file_statistics, statistics_json
from emmi_jax.meshes.vtk import import_pyvista
from tests.data.case_folders import surface_dataset, volume_dataset, write_case_folder

RNG = np.random.default_rng(0)
POSITION = RNG.uniform(-3, 5, size=(90, 3))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(npy, "CHUNK_ROWS", 16)


ARRAYS = {
    "position": POSITION,
    "columns": np.asfortranarray(POSITION * 30),
    "single": POSITION[:, 0].astype(np.float32),
    "whole": np.arange(90, dtype=np.int16),
    "tensor": RNG.normal(size=(90, 3, 3)),
    "number": np.float64(4.0),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_archive_are_measured_in_chunks(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    found = file_statistics([tmp_path / "a.npz"])
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        rows = np.asarray(array, np.float64).reshape(len(np.atleast_1d(array)), -1)
        assert found[name].count == len(rows)
        np.testing.assert_allclose(found[name].mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[name].std, rows.std(axis=0), rtol=1e-12)
        np.testing.assert_array_equal(found[name].minimum, rows.min(axis=0))


def test_an_npy_array_is_named_after_its_file(tmp_path):
    np.save(tmp_path / "speed.npy", POSITION)
    np.testing.assert_allclose(file_statistics([tmp_path / "speed.npy"])["speed"].mean, POSITION.mean(axis=0))


def test_several_files_count_as_one(tmp_path):
    paths = [tmp_path / f"{i}.npz" for i in range(3)]
    for path, part in zip(paths, np.array_split(POSITION, 3), strict=True):
        np.savez(path, position=part)
    found = file_statistics(paths)["position"]
    assert found.count == 90
    np.testing.assert_allclose(found.std, POSITION.std(axis=0), rtol=1e-12)


def test_a_mesh_has_positions_and_all_its_arrays(tmp_path):
    dataset = import_pyvista().Sphere()
    dataset.clear_data()
    dataset.cell_data["p"], dataset.point_data["p"] = np.arange(dataset.n_cells), np.ones(dataset.n_points)
    dataset.point_data["q"] = np.ones(dataset.n_points)
    dataset.save(tmp_path / "body.vtp")
    found = file_statistics([tmp_path / "body.vtp"])
    assert {name: m.count for name, m in found.items()} == {
        "position": dataset.n_points,
        "p": dataset.n_cells,
        "p (points)": dataset.n_points,
        "q": dataset.n_points,
    }


def test_json_has_no_statistics_without_finite_rows(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full(3, np.nan), y=np.ones(2))
    assert statistics_json(file_statistics([tmp_path / "a.npz"])) == {
        "x": {"count": 0, "num_not_finite": 3},
        "y": {"count": 2, "num_not_finite": 0, "min": [1.0], "max": [1.0], "mean": [1.0], "std": [0.0]},
    }


def damaged(path: Path) -> None:
    np.savez(path, p=np.ones(1000))
    content = bytearray(path.read_bytes())
    content[4000:4008] = b"\xff" * 8
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npz", lambda path: path.write_text("garbage"), r"not an \.npz file"),
        ("a.npz", damaged, "array 'p': Bad CRC-32"),
        (
            "a.npz",
            lambda path: np.savez(path, p=np.array(["x"])),
            "it holds <U1, expected real numbers",
        ),
        ("a.npz", lambda path: np.savez(path), "holds no array"),
        ("a.npy", lambda path: path.write_text("garbage"), r"not an \.npy file"),
        ("a.npy", lambda path: np.save(path, np.array(["x"])), "holds <U1, expected real numbers"),
        ("a.txt", lambda path: path.write_text("garbage"), "the extension must be one of"),
        (
            "a.cas.h5",
            lambda path: path.write_text("garbage"),
            "Fluent's HDF5 files are not read: export CGNS or EnSight",
        ),
    ],
)
def test_files_without_numbers_are_refused_by_array(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        file_statistics([tmp_path / name])


def test_what_is_left_out_of_a_mesh_and_units_that_differ_are_printed(tmp_path, capsys):
    body = import_pyvista().Sphere(theta_resolution=8, phi_resolution=8)
    body.clear_data()
    body.save(tmp_path / "body.stl")
    body.points *= 1000
    body.lines = [2, 0, 1]
    body.clear_data()
    body.save(tmp_path / "boundary.vtp")
    assert main(["stats", str(tmp_path / "body.stl"), str(tmp_path / "boundary.vtp")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"left out: {tmp_path}/boundary.vtp: surface: 1 lines beside" in printed
    assert f"warning: the box of the {tmp_path}/boundary.vtp: surface is 1,000 times as large as that of the" in printed


def test_a_folder_of_mesh_cases_is_measured_and_each_case_compared_with_itself(tmp_path, capsys):
    for number in range(2):
        folder = write_case_folder(tmp_path / f"run_{number}")
    body = import_pyvista().read(folder / "body_1.stl")
    body.points *= 1000
    body.save(folder / "body_1.stl")
    body.save(folder / "wheels.ply")
    found = file_statistics([tmp_path])
    surface, volume = surface_dataset(), volume_dataset()
    assert {name: m.count for name, m in found.items()} == {
        "surface/position": 2 * surface.n_points,
        "surface/Cp": 2 * surface.n_cells,
        "volume/position": 2 * volume.n_points,
        "volume/U": 2 * volume.n_cells,
        "volume/Cp": 2 * volume.n_cells,
    }
    assert main(["stats", str(tmp_path)]) == 0
    printed = "".join(capsys.readouterr().out.split())
    assert printed.count("timesaslargeas") == 2
    assert f"leftout:{folder}:wheels.ply" in printed
    assert f"{folder}:geometryis1,000timesaslargeasthatofthe{folder}:surface" in printed
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="neither a case with meshes nor a folder of such cases"):
        file_statistics([tmp_path / "none"])


@pytest.mark.parametrize("suffix", [".vtp", ".vtk"])
def test_text_in_a_mesh_is_named_and_left_out(suffix, tmp_path, capsys):
    dataset = surface_dataset()
    dataset.cell_data["material"] = np.array(["steel", "glass"] * (dataset.n_cells // 2))
    dataset.save(tmp_path / f"boundary{suffix}")
    assert set(file_statistics([tmp_path / f"boundary{suffix}"])) == {"position", "Cp"}
    assert main(["stats", str(tmp_path / f"boundary{suffix}")]) == 0
    assert "surface: the array material, which holds <U5" in " ".join(capsys.readouterr().out.split())
