"""Meshes of a case are found whatever their kind, and nothing that is not read stays unsaid."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.cases import Case
from emmi_jax.data.notes import Box, box_warnings, case_boxes, gathered, rounding_warnings, unlike_cases
from emmi_jax.data.statistics import measure, point_chunks
from emmi_jax.meshes.components import found_arrays
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.points import PointSet
from tests.data.case_folders import FIELDS, read_case_folder, surface_dataset, volume_dataset, write_case_folder


def write(path: Path, dataset: Any) -> None:
    """Writes a mesh to a file whose extension is in upper case too."""
    low = path.with_suffix(path.suffix.lower())
    dataset.save(low)
    low.rename(path)


@pytest.mark.parametrize("surface", ["boundary_1.vtu", "boundary.VTP", "Boundary_1.vtk", "boundary_1.VTU"])
@pytest.mark.parametrize("volume", ["volume_1.vtk", "volume.VTU"])
def test_meshes_of_every_kind_are_read(surface, volume, tmp_path):
    dataset = surface_dataset(6)
    write(tmp_path / surface, dataset.cast_to_unstructured_grid() if surface.lower().endswith("vtu") else dataset)
    write(tmp_path / volume, volume_dataset(6))
    write(tmp_path / "body.STL", dataset)
    (tmp_path / "fields.json").write_text(json.dumps(FIELDS))
    case = read_case_folder(tmp_path, with_area_vectors=True)
    np.testing.assert_array_equal(case.points["surface"].fields["pressure_coefficient"][:, 0], dataset.cell_data["Cp"])
    vectors = case.points["surface"].area_vector
    assert vectors is not None
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1).sum(), dataset.area, rtol=1e-5)
    assert case.geometry is not None
    assert left_out(tmp_path) == []


@pytest.mark.parametrize("name", ["boundary_1.msh", "boundary.plt", "boundary.nc"])
def test_a_branch_that_no_file_has_is_refused_and_the_file_of_another_kind_is_named(name, tmp_path):
    path = write_case_folder(tmp_path / "case")
    (path / "boundary_1.vtp").rename(path / name)
    for problem in (lambda: read_case_folder(path), lambda: raise_problem(path)):
        with pytest.raises(ValueError, match=rf"fields.json names the branch 'surface'.*\.vtp, \.vtu.*found {name}"):
            problem()
    (path / "fields.json").unlink()
    (path / "volume_1.vtu").unlink()
    with pytest.raises(ValueError, match=rf"no case in this folder.*read from \.vtp.*not from {name}"):
        read_case_folder(path)


def left_out(path: Path) -> list[str]:
    folder = CaseFolder.open(path)
    return folder.left_out(folder.sources())


def raise_problem(path: Path) -> None:
    raise ValueError(CaseFolder.open(path).problem(()))


def test_files_and_arrays_that_are_not_read_are_named(tmp_path):
    path = write_case_folder(tmp_path / "case")
    surface = surface_dataset()
    for name in ("Mach", "U"):
        surface.cell_data[name] = np.ones(surface.n_cells)
    surface.save(path / "boundary_1.vtp")
    surface.save(path / "slice_1.vtp")
    surface.save(path / "wheels.ply")
    (path / "volume_1.vtu.00.part").write_bytes(b"x")
    (path / "force_mom_1.csv").write_text("Cd\n")
    (path / "volume_2.vtu.gz").write_bytes(b"x")
    for folder, names in {"slices": ("x.vtp", "y.vtp"), "parts": ("a.stl", "a.txt"), "images": ("a.png",)}.items():
        (path / folder).mkdir()
        for name in names:
            (path / folder / name).write_bytes(b"x")
    files = ["slice_1.vtp", "volume_1.vtu.00.part", "volume_2.vtu.gz", "wheels.ply"]
    expected = [*files, "parts/: 1 file", "slices/: 2 files", "boundary_1.vtp: the arrays Mach, U"]
    assert left_out(path) == expected


def test_what_lies_beside_the_cells_of_a_mesh_is_said(tmp_path):
    path = write_case_folder(tmp_path / "case")
    surface = surface_dataset()
    surface.lines = [2, 0, 1]
    del surface.cell_data["Cp"]
    surface.cell_data["Cp"] = np.r_[-1, surface_dataset().cell_data["Cp"]]
    surface.save(path / "boundary_1.vtp")
    case = read_case_folder(path)
    assert case.left_out == (f"boundary_1.vtp: 1 lines beside {surface.n_cells - 1} polygons",)
    assert case.points["surface"].fields["pressure_coefficient"].min() > -1


def test_a_mesh_that_fields_json_leaves_out_is_noticed_before_it_is_read(tmp_path):
    path = write_case_folder(tmp_path / "case")
    fields = json.loads((path / "fields.json").read_text())
    (path / "fields.json").write_text(json.dumps({"surface": fields["surface"]}))
    for problem in (lambda: read_case_folder(path), lambda: raise_problem(path)):
        with pytest.raises(ValueError, match=r"fields\.json has no fields for the branch 'volume' of volume_1\.vtu"):
            problem()


def test_two_surfaces_of_a_geometry_are_refused(tmp_path):
    path = write_case_folder(tmp_path / "case")
    write(path / "wheels.STL", surface_dataset())
    with pytest.raises(ValueError, match=r"one such file, found body_1\.stl, wheels\.STL"):
        read_case_folder(path)


def test_messages_name_the_parts_of_a_mesh_and_no_temporary_file(tmp_path):
    path = write_case_folder(tmp_path / "case")
    content = (path / "volume_1.vtu").read_bytes()
    (path / "volume_1.vtu").unlink()
    for number, half in enumerate((content[:1000], content[1000:-200])):
        (path / f"volume_1.vtu.0{number}.part").write_bytes(half)
    with pytest.raises(ValueError, match=rf"{path}/volume_1\.vtu: not a \.vtu file"):
        read_case_folder(path)


@pytest.mark.parametrize(
    ("present", "found"),
    [
        ("U Ux Uy Uz", "U"),
        ("Ux Uy Uz", "Ux Uy Uz"),
        ("U_X U_Y U_Z", "U_X U_Y U_Z"),
        ("U:2 U:1 U:0", "U:0 U:1 U:2"),
        ("U_0 U_1 U_2 p", "U_0 U_1 U_2"),
        ("x-U y-U z-U", "x-U y-U z-U"),
        ("Ux Uy", None),
        ("xU yU zU", None),
    ],
)
def test_an_absent_vector_is_found_in_components(present, found):
    assert found_arrays("U", present.split()) == (None if found is None else tuple(found.split()))


@pytest.mark.parametrize("suffix", ["vtp", "vtu", "vtk"])
@pytest.mark.parametrize(
    ("named", "array"), [("U", "U:{}"), ([f"{axis}-velocity" for axis in "xyz"], "{}-velocity"), (["b", "a"], None)]
)
def test_components_become_the_columns_of_a_field(named, array, suffix, tmp_path):
    dataset = surface_dataset(6) if suffix == "vtp" else surface_dataset(6).cast_to_unstructured_grid()
    values = np.random.default_rng(0).normal(size=(dataset.n_cells, 3))
    axes = "012" if array == "U:{}" else "xyz"
    names = ["b", "a"] if array is None else [array.format(axis) for axis in axes]
    for column, name in enumerate(names):
        dataset.cell_data[name] = values[:, column]
    dataset.save(tmp_path / f"boundary.{suffix}")
    (tmp_path / "fields.json").write_text(json.dumps({"surface": {"velocity": {"array": named, "scale": 2}}}))
    case = read_case_folder(tmp_path)
    np.testing.assert_array_equal(case.points["surface"].fields["velocity"], 2 * values[:, : len(names)])
    assert left_out(tmp_path) == [f"boundary.{suffix}: the arrays Cp"]


def box(low: float, high: float) -> Box:
    return Box(np.full(3, low), np.full(3, high))


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        (
            {"geometry": box(-1000, 1000), "surface": box(-1, 1)},
            "the geometry is 1,000 times as large as that of the s",
        ),
        ({"geometry": box(-1, 1), "surface": box(2, 4)}, "the geometry and the surface do not overlap"),
        ({"surface": box(-1, 1), "volume": box(-24, 24)}, None),
        ({"surface": box(-1, 1), "volume": box(-1000, 1000)}, "the volume is 1,000 times as large"),
        ({"surface": box(-24, 24), "volume": box(-1, 1)}, "the surface is 24 times as large"),
        ({"surface": box(-24, 24), "geometry": box(-3, 3)}, None),
    ],
)
def test_boxes_that_do_not_fit_are_said_with_their_ratio(boxes, expected):
    lines = box_warnings(boxes)
    assert len(lines) == (expected is not None)
    assert expected is None or expected in lines[0]


def test_the_boxes_of_a_case_are_those_of_its_points():
    position = np.array([[0, 0, 0], [1, 2, 3]], np.float32)
    boxes = case_boxes(Case({"surface": PointSet(position, {})}, 1000 * position))
    assert (boxes["surface"].size, boxes["geometry"].size) == (3, 3000)


def test_cases_of_another_size_than_the_first_are_said():
    lines = unlike_cases({"run_1": box(-1, 1), "run_2": box(-1.1, 1.1), "run_3": box(-50, 50), "run_4": box(-50, 50)})
    assert len(lines) == 1
    assert "case run_3 is 50 times as large as that of the case run_1" in lines[0]
    assert "1 more times" in lines[0]


def test_lines_that_differ_in_numbers_are_one():
    lines = gathered({"a": ["run_1/x.vtp", "other"], "b": ["run_2/x.vtp"], "c": ["run_3/x.vtp"]})
    assert lines == ["run_1/x.vtp (and the like 2 more times)", "other"]


def test_fields_that_their_type_rounds_are_said():
    values = 101325 + np.random.default_rng(0).normal(scale=0.1, size=(100, 1))
    moments = measure(point_chunks({"volume": PointSet(np.random.default_rng(0).normal(size=(100, 3)), {"p": values})}))
    (line,) = rounding_warnings(moments, "float32")
    assert "volume/p is stored as float32, which rounds it by 0.0078" in line
    assert not list(rounding_warnings(moments, "float64"))


def test_a_surface_needs_no_polydata(tmp_path):
    grid = import_pyvista().Plane(i_resolution=2, j_resolution=2).cast_to_unstructured_grid()
    grid.clear_data()
    grid.cell_data["p"] = np.arange(4.0)
    grid.save(tmp_path / "boundary.vtu")
    (tmp_path / "fields.json").write_text('{"surface": {"p": "p"}}')
    vectors = read_case_folder(tmp_path, with_area_vectors=True).points["surface"].area_vector
    np.testing.assert_allclose(vectors, np.tile([0, 0, 0.25], (4, 1)), atol=1e-7)
