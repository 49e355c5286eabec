"""A case whose mesh is a file of several, by a `dataset.toml` alone."""

import shutil

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.cases import DEFAULT_OPTIONS, ReadOptions
from emmi_jax.data.open import OpenFolders, check_selection
from tests.data.case_folders import write_case_folder
from tests.meshes.format_files import FILES, formats, read

__all__ = ["formats"]
DATASET = """
[branches.surface]
files = "*.case"
[branches.surface.fields]
pressure = "p"
[branches.volume]
files = "*.case"
[branches.volume.fields]
velocity = "U"
"""


@pytest.fixture
def cases(formats, tmp_path):
    for name in ("run_1", "run_2"):
        shutil.copytree(formats / "ensight", tmp_path / name)
    (tmp_path / "dataset.toml").write_text(DATASET)
    return tmp_path


def test_a_case_of_one_file_has_both_branches(cases, formats):
    selection = FoamSelection(("body",), "5")
    opened = OpenFolders(cases, DEFAULT_OPTIONS, selection)
    check_selection(cases, selection)
    opened.check(opened.names)
    case = opened.cases.folders["run_1"].read(ReadOptions(with_cell_sizes=True))
    assert {branch: points.position.shape for branch, points in case.points.items()} == {
        "surface": (96, 3),
        "volume": (256, 3),
    }
    expected = read(formats / FILES["EnSight"], "surface", selection)
    np.testing.assert_array_equal(case.points["surface"].fields["pressure"][:, 0], expected.dataset["p"])
    assert any("parts ground" in line for line in case.left_out)


def test_another_time_or_a_changed_variable_is_another_case(cases):
    folder = CaseFolder.open(cases / "run_1", FoamSelection(("body",)))
    before = folder.fingerprint(cases)
    assert CaseFolder.open(cases / "run_1", FoamSelection(("body",), "5")).fingerprint(cases) != before
    file = cases / "run_1/data/00000001/p"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    assert folder.fingerprint(cases) != before


def test_a_missing_array_or_file_is_said_before_reading(cases):
    (cases / "dataset.toml").write_text(DATASET.replace('"U"', '"V"'))
    opened = OpenFolders(cases, DEFAULT_OPTIONS, FoamSelection(("body",)))
    with pytest.raises(ValueError, match=r"2 of 2 cases are unusable: run_1: case.case: no array 'V'"):
        opened.check(opened.names)
    (cases / "dataset.toml").write_text(DATASET)
    (cases / "run_2/data/00000001/p").unlink()
    opened = OpenFolders(cases, DEFAULT_OPTIONS, FoamSelection(("body",)))
    with pytest.raises(ValueError, match=r"1 of 2 cases are unusable: run_2: .*no such file, which case.case names"):
        opened.check(opened.names)


PVD = '<?xml version="1.0"?><VTKFile type="Collection"><Collection>{}</Collection></VTKFile>'


@pytest.mark.parametrize("num_times", [1, 2])
def test_meshes_and_a_collection_of_them_are_one(num_times, tmp_path):
    case = write_case_folder(tmp_path / "run_1")
    names = [f"volume_1_{number}.vtu" for number in range(num_times)]
    for name in names:
        shutil.copy(case / "volume_1.vtu", case / name)
    (case / "volume_1.vtu").unlink()
    links = "".join(f'<DataSet timestep="{number}" file="{name}"/>' for number, name in enumerate(names))
    (case / "volume_1.pvd").write_text(PVD.format(links))
    found = CaseFolder.open(case)
    assert set(found.branches) == {"surface", "volume"}
    assert len(found.read().points["volume"].position)
