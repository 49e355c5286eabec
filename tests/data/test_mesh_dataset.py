"""A new data set of meshes is one TOML file, and no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.data import mesh_dataset
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.mesh_dataset import DRIVAERML, published, published_sources, read_sources, sources_to_json
from emmi_jax.data.open import open_cases
from tests.data.case_folders import FIELDS, read_case_folder, surface_dataset, volume_dataset

DATASET = """
geometry = ["hull_*.stl"]
split = "parts.json"
statistics = "scales.json"

[branches.surface]
files = "hull_*"

[branches.surface.fields]
pressure = {array = "Cp", scale = 0.5, unit = "Pa"}

[branches.wake]
files = "field/wake_*.vtu"

[branches.wake.fields]
velocity = "U"

[forces]
file = "totals_*.csv"
drag = "drag"
lift = "lift"
area_file = "size.csv"
area = "frontal"
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "dataset.toml").write_text(DATASET)
    for number in range(3):
        case = tmp_path / f"case_{number}"
        (case / "field").mkdir(parents=True)
        surface_dataset().save(case / f"HULL_{number}.vtp")
        surface_dataset().save(case / f"hull_{number}.stl")
        surface_dataset(8).save(case / "other.stl")
        volume_dataset().save(case / f"field/wake_{number}.vtu")
        (case / f"totals_{number}.csv").write_text(f"drag,lift\n0.{number + 1},0.1\n")
        (case / "size.csv").write_text("frontal\n1.5\n")
    (tmp_path / "parts.json").write_text(json.dumps({"train": ["case_0", "case_2"], "test": ["case_1"]}))
    return tmp_path


def test_a_data_set_of_the_package_is_one_file_too(data, monkeypatch):
    packaged = data / "packaged"
    shutil.copytree(mesh_dataset._FOLDER, packaged)
    (data / "dataset.toml").rename(packaged / "hulls.toml")
    cached = (mesh_dataset.published, mesh_dataset.published_patterns, mesh_dataset.published_tables)
    monkeypatch.setattr(mesh_dataset, "_FOLDER", packaged)
    try:
        for function in cached:
            function.cache_clear()
        case = CaseFolder.open(data / "case_1")
        assert case.branches == ("surface", "wake")
        assert case.sources()["surface"]["pressure"].array == "Cp"
        assert case.forces == KnownForces(0.2, 0.1, 1.5)
    finally:
        for function in cached:
            function.cache_clear()


def test_one_file_names_meshes_fields_geometry_split_and_forces(data):
    opened = open_cases(str(data))
    assert opened.names == ["case_0", "case_1", "case_2"]
    assert opened.split(None).split_of == {"case_0": "train", "case_2": "train", "case_1": "test"}
    assert opened.branches_of("case_0") == ("surface", "wake")
    assert opened.forces_of("case_1")[:3] == (0.2, 0.1, 1.5)
    assert opened.cases.statistics == "scales.json"
    (data / "scales.json").write_text("{}")
    assert opened.cases.statistics == str(data / "scales.json")
    opened.check(opened.names)
    case = opened.cases.read("case_0")
    np.testing.assert_allclose(case.points["surface"].fields["pressure"][:, 0], surface_dataset().cell_data["Cp"] / 2)
    assert case.points["wake"].fields["velocity"].shape == (volume_dataset().n_cells, 3)
    assert case.geometry is not None
    assert opened.left_out(opened.names) == [
        "case_0/other.stl (and the like 2 more times)",
        "case_0/wake_0.vtu: the arrays Cp",
    ]
    assert sources_to_json(opened.sources)["surface"]["pressure"] == {"array": "Cp", "scale": 0.5, "unit": "Pa"}


def test_a_missing_file_or_array_is_named_with_its_pattern(data):
    (data / "case_1/field/wake_1.vtu").unlink()
    (data / "dataset.toml").write_text(DATASET.replace('velocity = "U"', 'velocity = "V"'))
    message = open_cases(str(data)).cases.folders["case_1"].problem(["surface"])
    assert "dataset.toml names the branch 'wake', which no file has: expected field/wake_*.vtu with .vtp" in message
    with pytest.raises(ValueError, match=r"3 of 3 cases .*: case_0: wake_0.vtu: no array 'V'; case_1: no wake"):
        open_cases(str(data)).check(["case_0", "case_1", "case_2"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("branch = 1", "unknown key 'branch' for MeshDataset; did you mean 'branches'?"),
        ("", "MeshDataset lacks the key 'branches'"),
        ("branches = {}", "branches is empty, expected files and fields by branch"),
        ("[branches.surface]\nfields = {}", "MeshBranch lacks the key 'files'"),
        ("[branches.surface]\nfiles = 1\nfields = {}", "files must be a string, got 1"),
        ('[branches.surface]\nfiles = "a*"\nfields = {p = {array = "p", scale = 0}}', "'scale': 0"),
    ],
)
def test_an_unusable_file_costs_one_line_with_its_name(text, message, data):
    (data / "dataset.toml").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.toml") as error:
        CaseFolder.open(data / "case_0").read()
    assert message in str(error.value)


def test_published_data_sets_are_such_files():
    assert {name: list(branch.fields) for name, branch in published()["ahmedml"].branches.items()} == {
        branch: list(fields) for branch, fields in published_sources("ahmedml").items()
    }
    assert {source.array for fields in DRIVAERML.values() for source in fields.values()} == {
        "pMeanTrim",
        "wallShearStressMeanTrim",
        "CptMeanTrim",
        "UMeanTrim",
    }


def test_a_dataset_file_counts_before_a_fields_file(data):
    (data / "fields.json").write_text(json.dumps(FIELDS))
    assert CaseFolder.open(data / "case_0").branches == ("surface", "wake")
    assert read_sources(data / "dataset.toml").keys() == {"surface", "wake"}
    (data / "dataset.toml").unlink()
    surface_dataset().save(data / "case_0/boundary.vtp")
    volume_dataset().save(data / "case_0/volume.vtu")
    (data / "case_0/other.stl").unlink()
    points = read_case_folder(data / "case_0").points
    assert {branch: list(part.fields) for branch, part in points.items()} == {
        branch: list(fields) for branch, fields in FIELDS.items()
    }
