"""Data sets of the package: what `emmi-jax data` says of them, and small cases of their layouts that are opened."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.cases import ReadOptions
from emmi_jax.data.conditions import CaseCondition
from emmi_jax.data.mesh_dataset import published, published_sources
from emmi_jax.data.open import open_cases
from emmi_jax.meshes.vtk import import_pyvista
from tests.data.conftest import no_torch

__all__ = ["no_torch"]

VECTORS = ("velocity", "wallshearstress", "wall_shear_stress", "vorticity")
FOIL = "airFoil2D_SST_43.597_-2.5_3.551_3.1_1.0_18.252"
ANGLE = {"angle_of_attack": CaseCondition(16.0, "deg", "angle")}


class Layout(NamedTuple):
    """Names of the folder, of the meshes and of other files of a case; and what is read of it."""

    folder: str
    meshes: dict[str, str]
    others: dict[str, str]
    places: dict[str, str]
    conditions: dict[str, CaseCondition] = {}  # noqa: RUF012 - never changed
    has_forces: bool = False


CELLS, POINTS = {"surface": "cells", "volume": "cells"}, {"surface": "points", "volume": "points"}
LAYOUTS = {
    "drivaerml": Layout(
        "run_1",
        {"surface": "boundary_1.vtp", "volume": "volume_1.vtu", "geometry": "drivaer_1.stl"},
        {"force_mom_1.csv": "Cd, Cl\n0.3, 0.1\n", "geo_ref_1.csv": "aRef\n2.2\n"},
        CELLS,
        has_forces=True,
    ),
    "ahmedml": Layout(
        "run_1",
        {"surface": "boundary_1.vtp", "volume": "volume_1.vtu", "geometry": "ahmed_1.stl"},
        {"force_mom_1.csv": "cd, cl\n0.3, 0.1\n"},
        CELLS,
        has_forces=True,
    ),
    "windsorml": Layout(
        "run_0",
        {"surface": "boundary_0.vtu", "volume": "volume_0.vtu", "geometry": "windsor_0.stl"},
        {"force_mom_0.csv": "cd, cs, cl, cmy\n0.3, 0.1, 0.2, 0.1\n"},
        {"surface": "points", "volume": "cells"},
    ),
    "hiliftaeroml": Layout(
        "geo_LHC001_AoA_16",
        {
            "surface": "boundary_geo_LHC001_AoA_16.vtu",
            "volume": "volume_geo_LHC001_AoA_16.vtu",
            "coarse": "volume_geo_LHC001_AoA_16_coarse.vtu",
            "geometry": "geo_LHC001_AoA_16.stl",
        },
        {"force_mom_geo_LHC001_AoA_16.csv": "cd, cl\n0.3, 1.9\n"},
        POINTS,
        ANGLE,
    ),
    "shift-suv": Layout(
        "run_00001",
        {
            "surface": "merged_surfaces.vtp",
            "volume": "merged_volumes.vtu",
            "geometry": "merged_surfaces.stl",
            "filled": "merged_surfaces_filled.stl",
        },
        {},
        {"surface": "cells", "volume": "points"},
    ),
    "shift-wing": Layout(
        "sample_000001",
        {"surface": "merged_surfaces.vtp", "volume": "merged_volumes.vtu", "geometry": "merged_surfaces.stl"},
        {"params.json": '{"mach": 0.8, "alpha": 16.0, "gamma": 1.4}', "forces.json": '{"C_D": 0.02, "C_L": 0.5}'},
        POINTS,
        ANGLE | {"mach": CaseCondition(0.8)},
    ),
    "emmi-wing": Layout(
        "full_dataset/part_01/run_12",
        {},
        {},
        {},
        {"speed": CaseCondition(250.0, "m/s"), "angle_of_attack": CaseCondition(16.0, "deg", "angle")},
    ),
    "airfrans": Layout(
        FOIL,
        {"surface": f"{FOIL}_aerofoil.vtp", "volume": f"{FOIL}_internal.vtu", "other": f"{FOIL}_freestream.vtp"},
        {},
        {"surface": "cells", "volume": "points"},
        {"speed": CaseCondition(43.597, "m/s"), "angle_of_attack": CaseCondition(-2.5, "deg", "angle")},
    ),
}
"""By data set; a new one of the package needs one here."""


def write_case(path: Path, name: str) -> dict[str, np.ndarray]:
    """Writes a case with a number in every place; returns the fields that must be read, by `branch/field`."""
    pyvista, layout, expected = import_pyvista(), LAYOUTS[name], dict[str, np.ndarray]()
    path.mkdir(parents=True)
    if published()[name].is_of_tensors:
        return write_tensors(path, name)
    ball = pyvista.Sphere(theta_resolution=6, phi_resolution=6)
    ball.clear_data()
    box = pyvista.ImageData(dimensions=(3, 4, 5), origin=(-2, -2, -2), spacing=(2, 1, 1)).cast_to_unstructured_grid()
    if name == "airfrans":
        ball, box = pyvista.PolyData(ball.points * [1, 1, 0], lines=[2, 0, 1, 2, 1, 2]), pyvista.Plane()
    box.clear_data()
    for kind, file in layout.meshes.items():
        mesh = (ball if file.endswith((".vtp", ".stl")) or kind == "surface" else box).copy()
        for field, source in published_sources(name).get(kind, {}).items():
            data = mesh.cell_data if layout.places[kind] == "cells" else mesh.point_data
            rows = mesh.n_cells if layout.places[kind] == "cells" else mesh.n_points
            arrays = [source.array] if isinstance(source.array, str) else source.array
            is_vector = field in VECTORS and len(arrays) == 1
            for number, array in enumerate(arrays):
                size = rows * (3 if is_vector else 1)
                values = np.arange(size, dtype=np.float32).reshape((rows, 3) if is_vector else (rows,)) + number
                data[array] = values
            columns = [np.asarray(data[array]).reshape(rows, -1) for array in arrays]
            expected[f"{kind}/{field}"] = np.concatenate(columns, axis=1)
        (mesh.cast_to_unstructured_grid() if file.endswith(".vtu") else mesh).save(path / file)
    for file, text in layout.others.items():
        (path / file).write_text(text)
    return expected


def write_tensors(path: Path, name: str) -> dict[str, np.ndarray]:
    """Writes the tensors of a case and the table of conditions; returns as `write_case` does."""
    expected = dict[str, np.ndarray]()
    for branch, of in published()[name].branches.items():
        arrays = {of.files: np.eye(5, 3, dtype=np.float32)}
        for field, source in published_sources(name)[branch].items():
            arrays[source.array] = np.arange(5 * (3 if field in VECTORS else 1), dtype=np.float32).reshape(5, -1)
            expected[f"{branch}/{field}"] = arrays[source.array]
        for file, values in arrays.items():
            (path / file).write_text("the array lies beside")
            np.save(path / f"{file}.npy", values)
    (path.parents[2] / "metadata").mkdir()
    (path.parents[2] / "metadata/train.csv").write_text("case_id,inflow_velocity,AOA\n7,1,2\n12,250,16\n")
    return expected


@pytest.mark.parametrize("name", published())
def test_each_data_set_of_the_package_is_told_by_its_files_and_described(name, tmp_path, capsys):
    layout = LAYOUTS[name]
    expected = write_case(tmp_path / layout.folder, name)
    folder = layout.folder.removeprefix("full_dataset/")
    opened = open_cases(str(tmp_path / "full_dataset" if name == "emmi-wing" else tmp_path))
    assert opened.names == [folder]
    opened.check(opened.names)
    case = opened.cases.read(folder)
    found = {f"{branch}/{field}": v for branch, of in case.points.items() for field, v in of.fields.items()}
    assert found.keys() == expected.keys()
    for field, values in expected.items():
        np.testing.assert_array_equal(found[field], values)
    assert opened.sources == published_sources(name)
    assert opened.conditions(ConditionSource()).by_case == {folder: layout.conditions}
    assert (opened.forces_of(folder) is not None) == layout.has_forces
    assert main(["data", name]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    card = published()[name].about
    words = text.split()
    for line in (card.title, card.source, card.license, card.unchecked, *card.files):
        assert set(line.split()) <= {word.rstrip(":") for word in words} | set(words)


def test_data_lists_what_there_is_and_refuses_other_names(capsys):
    assert main(["data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(published())
    assert main(["data", "nope"]) == 2
    assert "the data set must be one of drivaerml" in capsys.readouterr().err


def test_conditions_of_a_published_data_set_are_found_where_the_first_case_is_damaged(tmp_path):
    for folder in ("sample_000001", "sample_000002"):
        write_case(tmp_path / folder, "shift-wing")
    (tmp_path / "sample_000001/merged_surfaces.vtp").write_bytes(b"damaged")
    opened = open_cases(str(tmp_path), ReadOptions(sources=published_sources("shift-wing")))
    expected = LAYOUTS["shift-wing"].conditions
    assert opened.conditions(ConditionSource()).by_case["sample_000002"] == expected
