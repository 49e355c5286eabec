"""Tests of the times of OpenFOAM cases: the latest complete one is read, and every processor is there."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.readers import case_names
from emmi_jax.meshes.openfoam import foam_files, is_foam, read_branch, read_foam
from emmi_jax.meshes.openfoam_times import foam_time, passed_over
from tests.meshes.foam_cases import FIELDS, cell_centres, write_foam_case

TIMES = ("0", "100", "200")


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a field is absent": ("no U", lambda time: (time / "U").unlink()),
    "a field is empty": ("U is truncated", lambda time: (time / "U").write_bytes(b"")),
    "a field is truncated": ("U is truncated", lambda time: _truncated(time / "U")),
    "all fields are absent": (
        "no U, p, wallShearStress",
        lambda time: [file.unlink() for file in list(time.iterdir())],
    ),
}


@pytest.mark.parametrize("processors", [0, 2])
@pytest.mark.parametrize("kind", DAMAGE)
def test_the_latest_complete_time_is_read_and_the_later_one_is_named(kind, processors, tmp_path):
    case = write_foam_case(tmp_path / "case", times=TIMES, processors=processors)
    why, damage = DAMAGE[kind]
    where = " in processor1" if processors else ""
    damage(case / ("processor1" if processors else ".") / "200")
    assert foam_time(case) == "100"
    [line] = passed_over(case)
    assert line == f"time 200, which is incomplete ({why.replace('U is', f'U{where} is')}" + (
        f"{where if 'no ' in why else ''}): 100 is read"
    )
    assert line in CaseFolder.open(case).left_out({})
    assert line in read_branch(case, "volume").left_out
    assert {file.parent.name for file in foam_files(case)} == {"polyMesh", "100"}
    pressure = np.sort(read_foam(case, ["volume"])["volume"].dataset.cell_data["p"])
    np.testing.assert_allclose(pressure, np.sort(1.1 * FIELDS["p"](cell_centres())), rtol=1e-6)


def test_a_time_that_is_asked_for_is_read_though_it_is_incomplete(tmp_path):
    case = write_foam_case(tmp_path / "case", times=TIMES)
    (case / "200/U").unlink()
    assert foam_time(case, FoamSelection(time="200")) == "200"
    assert passed_over(case, FoamSelection(time="200")) == []


def test_a_time_in_some_processors_alone_is_incomplete(tmp_path):
    case = write_foam_case(tmp_path / "case", times=TIMES, processors=2)
    shutil.rmtree(case / "processor0/200")
    assert foam_time(case) == "100"
    assert "no U, p, wallShearStress in processor0" in passed_over(case)[0]


def test_compressed_fields_are_read_to_their_end(tmp_path):
    case = write_foam_case(tmp_path / "case", times=TIMES, compress=True)
    assert foam_time(case) == "200"
    content = gzip.decompress((case / "200/U.gz").read_bytes())
    (case / "200/U.gz").write_bytes(gzip.compress(content[: len(content) // 2]))
    assert foam_time(case) == "100"
    _truncated(case / "200/U.gz")
    assert foam_time(case) == "100"


def test_a_compressed_field_beside_another_one_is_not_read(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("100",))
    stale = gzip.compress((case / "100/p").read_bytes().replace(b"internalField nonuniform", b"internalField broken"))
    (case / "100/p.gz").write_bytes(stale)
    pressure = read_foam(case, ["volume"], arrays={"volume": ["p"]})["volume"].dataset.cell_data["p"]
    np.testing.assert_allclose(pressure, 1.1 * FIELDS["p"](cell_centres()), rtol=1e-12)


def test_files_of_a_time_that_hold_no_fields_of_cells_are_named(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("100",))
    for name, kind in {"phi": "surfaceScalarField", "V": "volScalarField::Internal"}.items():
        (case / "100" / name).write_text(f"FoamFile {{ class {kind}; }} internalField uniform 1;")
    folder = CaseFolder.open(case)
    assert "time 100: V, phi, no fields of cells" in folder.left_out(folder.sources())


def test_the_start_is_never_read_in_place_of_results(tmp_path):
    case = write_foam_case(tmp_path / "case")
    (case / "0/nuTilda").write_bytes((case / "0/p").read_bytes())  # a model that the run does not use
    assert foam_time(case) == "100"
    assert passed_over(case) == []
    _truncated(case / "100/p")
    assert foam_time(case) == "100"
    assert passed_over(case) == []
    with pytest.raises(ValueError, match="100/p: damaged"):
        read_foam(case, ["volume"], arrays={"volume": ["p"]})


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_processor_is_named_and_the_case_remains_one(number, tmp_path):
    case = write_foam_case(tmp_path / "cases/a", processors=3)
    shutil.rmtree(case / f"processor{number}")
    assert is_foam(case)
    assert case_names(tmp_path / "cases") == ["a"]
    with pytest.raises(ValueError, match=f"1 of 3 processors have no mesh here: processor{number}"):
        read_foam(case, ["volume"])


@pytest.mark.parametrize("left", ["processor1", "processors3"])
def test_what_is_left_of_a_decomposition_does_not_matter_beside_the_whole_mesh(left, tmp_path):
    case = write_foam_case(tmp_path / "case")
    decomposed = write_foam_case(tmp_path / "decomposed", processors=3)
    shutil.copytree(decomposed / "processor1", case / left)
    assert foam_time(case) == "100"
    assert read_foam(case, ["volume"])["volume"].dataset.n_cells == len(cell_centres())
