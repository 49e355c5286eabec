import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.mesh_dataset import DRIVAERML, parse_sources, read_sources, sources_to_json
from emmi_jax.data.readers.reader import NUM_GEOMETRY_POINTS
from emmi_jax.meshes.mesh import FieldSource
from tests.data.case_folders import AXES, FIELDS, read_case_folder, surface_dataset, volume_dataset, write_case_folder

RNG = np.random.default_rng(0)
TENSORS = {
    "surface_position_vtp": RNG.normal(size=(40, 3)).astype(np.float32),
    "surface_pressure": RNG.normal(size=40).astype(np.float32),
    "surface_wallshearstress": RNG.normal(size=(40, 3)).astype(np.float32),
    "volume_cell_position": RNG.normal(size=(60, 3)).astype(np.float32),
    "volume_cell_totalpcoeff": RNG.normal(size=(60, 1)).astype(np.float32),
    "volume_cell_velocity": RNG.normal(size=(60, 3)).astype(np.float32),
    "volume_cell_vorticity": RNG.normal(size=(60, 3)).astype(np.float16),
}


def write_tensors(path: Path, **changes: np.ndarray | None) -> Path:
    for name, array in (TENSORS | changes).items():
        if array is not None:
            (path / f"{name}.pt").write_text("the array lies beside")
            np.save(path / f"{name}.pt.npy", array)
    return path


def write_drivaerml(path: Path) -> Path:
    surface, volume = surface_dataset(), volume_dataset()
    surface.cell_data["pMeanTrim"] = surface.cell_data["Cp"] * 100
    surface.cell_data["wallShearStressMeanTrim"] = np.ones((surface.n_cells, 3), np.float32)
    volume.cell_data["CptMeanTrim"] = volume.cell_data["Cp"]
    volume.cell_data["UMeanTrim"] = volume.cell_data["U"]
    surface.save(path / "boundary_7.vtp")
    volume.save(path / "volume_7.vtu")
    surface.save(path / "drivaer_7.stl")
    (path / "geo_ref_7.csv").write_text("aRef\n2.1\n")
    return path


def test_a_drivaerml_case_needs_no_fields_file(tmp_path):
    case = read_case_folder(write_drivaerml(tmp_path))
    assert {b: {n: f.shape[1] for n, f in p.fields.items()} for b, p in case.points.items()} == {
        "surface": {"pressure": 1, "wallshearstress": 3},
        "volume": {"totalpcoeff": 1, "velocity": 3},
    }
    surface = surface_dataset()
    np.testing.assert_allclose(case.points["surface"].position, surface.cell_centers().points, rtol=1e-6)
    np.testing.assert_array_equal(case.points["surface"].fields["pressure"][:, 0], surface.cell_data["Cp"] * 100)


def test_geometry_points_lie_on_the_surface(tmp_path):
    geometry = read_case_folder(write_drivaerml(tmp_path)).geometry
    assert geometry.shape == (NUM_GEOMETRY_POINTS, 3)
    level = np.linalg.norm(geometry / AXES, axis=1)
    # Chords of the ellipsoid lie a little inside.
    assert 0.93 < level.min() <= level.max() < 1 + 1e-6


def test_a_file_beside_the_meshes_maps_arrays_to_fields(tmp_path):
    case = read_case_folder(write_case_folder(tmp_path / "case"))
    assert {b: list(p.fields) for b, p in case.points.items()} == {
        "surface": ["pressure_coefficient"],
        "volume": ["velocity", "pressure_coefficient"],
    }


@pytest.mark.parametrize("removed", ["boundary_1.vtp", "volume_1.vtu"])
def test_a_case_may_have_one_branch(removed, tmp_path):
    path = write_case_folder(tmp_path / "case")
    (path / removed).unlink()
    left = "volume" if "boundary" in removed else "surface"
    with pytest.raises(
        ValueError, match=f"fields.json names the branch '{'surface' if left == 'volume' else 'volume'}'"
    ):
        read_case_folder(path)
    (path / "fields.json").write_text(json.dumps({left: FIELDS[left]}))
    assert list(read_case_folder(path).points) == [left]
    assert CaseFolder.open(path).branches == (left,)


def test_a_case_without_an_stl_file_has_no_geometry_points(tmp_path):
    (write_drivaerml(tmp_path) / "drivaer_7.stl").unlink()
    assert read_case_folder(tmp_path).geometry is None


def test_tensors_are_read_as_columns_of_floats(tmp_path):
    case = read_case_folder(write_tensors(tmp_path))
    assert CaseFolder.open(tmp_path).branches == ("surface", "volume")
    np.testing.assert_array_equal(case.points["surface"].position, TENSORS["surface_position_vtp"])
    np.testing.assert_array_equal(case.points["surface"].fields["pressure"][:, 0], TENSORS["surface_pressure"])
    np.testing.assert_array_equal(case.points["volume"].fields["vorticity"], TENSORS["volume_cell_vorticity"])
    assert {f.dtype for p in case.points.values() for f in p.fields.values()} == {np.dtype(np.float32)}
    assert list(case.points["volume"].fields) == ["totalpcoeff", "velocity", "vorticity"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surface_pressure": np.ones(39, np.float32)}, r"surface_pressure\.pt: has the shape \(39,\), expected \(40,"),
        ({"volume_cell_position": np.ones((60, 2), np.float32)}, r"has the shape \(60, 2\), expected \(N, 3\)"),
        ({"volume_cell_velocity": np.full((60, 3), np.nan, np.float32)}, "180 of 180 values are NaN or infinite"),
        ({"surface_position_vtp": np.zeros((0, 3), np.float32)}, r"shape \(0, 3\), expected \(N, channels\)"),
    ],
)
def test_unusable_tensors_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_case_folder(write_tensors(tmp_path, **changes))


def test_two_meshes_of_a_branch_are_refused(tmp_path):
    path = write_case_folder(tmp_path / "case")
    surface_dataset().save(path / "boundary_2.vtp")
    with pytest.raises(ValueError, match=r"a case has one such file, found boundary_1\.vtp, boundary_2\.vtp"):
        read_case_folder(path)


def test_two_files_of_the_geometry_are_refused_with_advice(tmp_path):
    path = write_case_folder(tmp_path / "case")
    shutil.copy(path / "body_1.stl", path / "wheels.STL")
    found = r"found body_1\.stl, wheels\.STL: join them to one, name one in dataset\.toml, or move the others away"
    with pytest.raises(ValueError, match=found):
        read_case_folder(path)
    assert "wheels.STL" in (CaseFolder.open(path).problem(["surface"]) or "")


def test_a_folder_without_a_case_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no case in this folder: expected boundary\*\.vtp or volume\*\.vtu or"):
        read_case_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        read_case_folder(tmp_path / "none")


def test_missing_arrays_are_listed(tmp_path):
    path = write_case_folder(tmp_path / "case")
    (path / "fields.json").unlink()
    with pytest.raises(ValueError, match=r"boundary_1\.vtp: no array 'pMeanTrim'; cells have \['Cp'\]"):
        read_case_folder(path)


def test_sources_have_names_and_factors(tmp_path):
    path = tmp_path / "fields.json"
    path.write_text(json.dumps({"surface": {"pressure": "p", "shear": {"array": "tau", "scale": -1}}}))
    sources = read_sources(path)
    assert sources == {"surface": {"pressure": FieldSource("p"), "shear": FieldSource("tau", -1.0)}}
    assert parse_sources(sources_to_json(sources), "again") == sources
    assert set(DRIVAERML) == {"surface", "volume"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", r"expected fields by branch, as \{'surface'"),
        ('{"surface": "p"}', "expected fields by branch"),
        (
            '{"surface": {"p": 3}}',
            "field 'p' must be an array's name, a list of those of its components, or its 'array' and 'scale', got 3",
        ),
        ('{"surface": {"p": {"array": "p", "factor": 2}}}', "got {'array': 'p', 'factor': 2}"),
        ('{"surface": {"p": {"array": "p", "scale": 0}}}', "'scale': 0"),
        ('{"volume": {"p": "p"}}', r"fields\.json has no fields for the branch 'surface' of boundary_1\.vtp"),
    ],
)
def test_unusable_sources_are_refused(text, message, tmp_path):
    path = write_case_folder(tmp_path / "case")
    (path / "fields.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_case_folder(path)
