from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.meshes.mesh import FieldSource, Mesh, read_mesh, write_mesh
from emmi_jax.meshes.vtk import import_pyvista, read_dataset

pyvista = import_pyvista()
EXTENSIONS = ["stl", "vtp", "vtu", "vtk", "ply", "obj"]


def make_dataset(suffix: str, dtype: type = np.float32) -> Any:
    """A ball of tetrahedra or prisms for `.vtu`, else its surface, with fields on points and in cells."""
    if suffix == "vtu":
        dataset = pyvista.ImageData(dimensions=(4, 3, 3), spacing=(0.5, 1.0, 2.0)).cast_to_unstructured_grid()
    else:
        dataset = pyvista.Sphere(theta_resolution=8, phi_resolution=8)
    dataset.points = np.asarray(dataset.points, dtype)
    dataset.clear_data()
    dataset.point_data["p"] = np.arange(dataset.n_points, dtype=dtype)
    dataset.cell_data["u"] = np.arange(3 * dataset.n_cells, dtype=dtype).reshape(-1, 3)
    return dataset


def write(path: Path, **changes: Any) -> Path:
    make_dataset(path.suffix[1:], **changes).save(path)
    return path


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_points_of_every_kind_of_file_come_back(suffix, tmp_path):
    path = write(tmp_path / f"mesh.{suffix}")
    points = read_mesh(path).points({})
    expected = np.asarray(make_dataset(suffix).points)
    assert points.position.dtype in (np.float32, np.float64)
    # A `.stl` file has triangles alone, so its points may come in another order; a `.obj` file has few digits.
    order = [np.lexsort(np.round(p, 4).T) for p in (points.position, expected)]
    np.testing.assert_allclose(points.position[order[0]], expected[order[1]], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", ["vtp", "vtu", "vtk"])
def test_fields_come_back_with_their_precision_as_columns(suffix, dtype, tmp_path):
    mesh = read_mesh(write(tmp_path / f"mesh.{suffix}", dtype=dtype))
    expected = make_dataset(suffix, dtype)
    on_points, in_cells = mesh.points({"pressure": FieldSource("p")}), mesh.points({"velocity": FieldSource("u")})
    np.testing.assert_array_equal(on_points.fields["pressure"], np.asarray(expected.point_data["p"])[:, None])
    np.testing.assert_array_equal(in_cells.fields["velocity"], np.asarray(expected.cell_data["u"]))
    assert {on_points.fields["pressure"].dtype, in_cells.fields["velocity"].dtype} == {np.dtype(dtype)}


def test_cells_are_placed_at_their_centres(tmp_path):
    mesh = read_mesh(write(tmp_path / "mesh.vtp"))
    points = mesh.points({"u": FieldSource("u")})
    corners = np.asarray(mesh.dataset.points)[mesh.dataset.regular_faces]
    np.testing.assert_allclose(points.position, corners.mean(axis=1), atol=1e-6)


def test_a_factor_scales_the_field_and_keeps_its_precision(tmp_path):
    points = read_mesh(write(tmp_path / "mesh.vtp")).points({"p": FieldSource("p", scale=-0.5)})
    np.testing.assert_array_equal(points.fields["p"][:, 0], -0.5 * np.arange(len(points.position)))
    assert points.fields["p"].dtype == np.float32


def test_arrays_without_a_factor_are_views_of_the_mesh(tmp_path):
    mesh = read_mesh(write(tmp_path / "mesh.vtp"))
    assert np.shares_memory(mesh.points({"u": FieldSource("u")}).fields["u"], np.asarray(mesh.dataset.cell_data["u"]))
    assert np.shares_memory(mesh.position("points"), np.asarray(mesh.dataset.points))


def test_whole_numbers_become_floats(tmp_path):
    dataset = make_dataset("vtp")
    dataset.point_data["zone"] = np.arange(dataset.n_points, dtype=np.int32)
    values = Mesh(tmp_path, dataset).points({"zone": FieldSource("zone")}).fields["zone"]
    np.testing.assert_array_equal(values[:, 0], np.arange(dataset.n_points, dtype=np.float64))
    assert values.dtype == np.float64


def test_an_array_on_both_is_taken_from_cells_unless_asked_otherwise(tmp_path):
    dataset = make_dataset("vtp")
    dataset.point_data["u"] = np.ones(dataset.n_points)
    mesh = Mesh(tmp_path, dataset)
    source = {"u": FieldSource("u")}
    assert len(mesh.points(source).position) == dataset.n_cells
    assert len(mesh.points(source, location="points").position) == dataset.n_points


@pytest.mark.parametrize("suffix", ["vtp", "vtu"])
def test_cell_sizes_sum_to_the_whole(suffix, tmp_path):
    dataset = make_dataset(suffix)
    whole = dataset.area if suffix == "vtp" else dataset.volume
    np.testing.assert_allclose(Mesh(tmp_path, dataset).cell_sizes().sum(), whole, rtol=1e-6)


@pytest.mark.parametrize("location", ["points", "cells"])
@pytest.mark.parametrize("suffix", ["vtp", "vtu", "vtk"])
def test_a_mesh_is_written_again_with_more_fields(suffix, location, tmp_path):
    mesh = read_mesh(write(tmp_path / f"mesh.{suffix}"))
    num = mesh.dataset.n_cells if location == "cells" else mesh.dataset.n_points
    added = {"speed": np.linspace(0, 1, num, dtype=np.float32)[:, None], "w": np.ones((num, 3), np.float32)}
    out = tmp_path / f"out.{suffix}"
    write_mesh(out, mesh, added, location=location)
    again = read_mesh(out)
    fields = again.points({name: FieldSource(name) for name in added}, location=location).fields
    np.testing.assert_array_equal(fields["speed"], added["speed"])
    np.testing.assert_array_equal(fields["w"], added["w"])
    assert {values.dtype for values in fields.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(again.position("points"), mesh.position("points"))
    np.testing.assert_array_equal(again.points({"u": FieldSource("u")}).fields["u"], mesh.dataset.cell_data["u"])
    assert again.dataset.n_cells == mesh.dataset.n_cells
    assert not {"speed", "w"} & {*mesh.dataset.cell_data.keys(), *mesh.dataset.point_data.keys()}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"mesh.{suffix}", f"out.{suffix}"]


@pytest.mark.parametrize("name", ["y+<1", "p&T", '"p"', "p &amp; T"])
@pytest.mark.parametrize("suffix", ["vtp", "vtu", "vtk"])
def test_names_that_xml_must_escape_come_back(suffix, name, tmp_path):
    mesh = read_mesh(write(tmp_path / f"mesh.{suffix}"))
    mesh.dataset.point_data[f"own {name}"] = np.arange(mesh.dataset.n_points, dtype=np.float32)
    out, added = tmp_path / f"out.{suffix}", np.arange(mesh.dataset.n_cells, dtype=np.float32)
    write_mesh(out, mesh, {name: added}, location="cells")
    np.testing.assert_array_equal(read_mesh(out).points({"x": FieldSource(name)}).fields["x"][:, 0], added)
    assert f"own {name}" in read_mesh(out).dataset.point_data
    assert f"own {name}" in mesh.dataset.point_data


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.vtp: no such file"):
        read_mesh(tmp_path / "none.vtp")


def test_an_unknown_extension_is_quoted(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of \.stl, .*, got '\.msh'"):
        read_mesh(tmp_path / "mesh.msh")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [*EXTENSIONS, "ascii.ply"])
def test_a_truncated_file_is_refused_in_one_line_and_vtk_says_nothing(suffix, kept, tmp_path, capfd):
    path = tmp_path / f"mesh.{suffix}"
    make_dataset(suffix).save(path, **({"binary": False} if suffix == "ascii.ply" else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=f"{path}") as error:
        read_mesh(path)
    assert "\n" not in str(error.value)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("suffix", ["vtp", "vtu", "vtk"])
def test_a_truncated_file_of_our_own_is_refused(suffix, kept, tmp_path):
    path = tmp_path / f"mesh.{suffix}"
    write_mesh(path, Mesh(tmp_path, make_dataset(suffix)), {}, location="points")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="a damaged one"):
        read_mesh(path)


@pytest.mark.parametrize("suffix", EXTENSIONS)
def test_a_file_of_another_format_is_refused(suffix, tmp_path):
    path = tmp_path / f"mesh.{suffix}"
    path.write_text("garbage\n")
    with pytest.raises(ValueError, match=f"{path}"):
        read_mesh(path)


def test_an_empty_mesh_is_refused(tmp_path):
    pyvista.PolyData().save(tmp_path / "mesh.vtp")
    with pytest.raises(ValueError, match="the mesh is empty"):
        read_mesh(tmp_path / "mesh.vtp")


def test_coordinates_that_are_not_finite_are_counted(tmp_path):
    dataset = make_dataset("vtp")
    dataset.points[3, 1:] = np.nan
    dataset.save(tmp_path / "mesh.vtp")
    with pytest.raises(ValueError, match="2 of 150 values of 'coordinates' are NaN or infinite"):
        read_mesh(tmp_path / "mesh.vtp")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (["q"], r"no array 'q'; cells have \['u'\], points \['p'\]"),
        (["u", "p"], r"neither cells \['u'\] nor points \['p'\] have all \['u', 'p'\]"),
    ],
)
def test_absent_arrays_are_named_beside_those_present(arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Mesh(tmp_path, make_dataset("vtp")).points({name: FieldSource(name) for name in arrays})


def test_an_array_on_the_other_location_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no array 'p' on cells, which have \['u'\]"):
        Mesh(tmp_path, make_dataset("vtp")).points({"p": FieldSource("p")}, location="cells")


def test_values_that_are_not_finite_are_counted(tmp_path):
    dataset = make_dataset("vtp")
    dataset.point_data["p"][:2] = np.inf
    with pytest.raises(ValueError, match="2 of 50 values of 'p' are NaN or infinite"):
        Mesh(tmp_path, dataset).points({"p": FieldSource("p")})


def test_text_is_refused_as_a_field(tmp_path):
    dataset = make_dataset("vtp")
    dataset.point_data["label"] = np.array(["x"] * dataset.n_points)
    with pytest.raises(ValueError, match="'label' holds <U1, expected real numbers"):
        Mesh(tmp_path, dataset).points({"label": FieldSource("label")})


def test_an_array_of_another_length_is_refused(tmp_path):
    path = write(tmp_path / "mesh.vtk")
    dataset = read_dataset(path)
    array = pyvista.convert_array(np.ones(7), name="short")
    dataset.GetPointData().AddArray(array)
    with pytest.raises(ValueError, match="'short' has 7 rows, expected 50"):
        Mesh(path, dataset).points({"short": FieldSource("short")})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("out.vtp", np.ones(3), r"'x' has shape \(3,\), expected \(50,\) or \(50, F\)"),
        ("out.vtp", np.ones((50, 3, 3)), r"'x' has shape \(50, 3, 3\)"),
        ("out.vtu", np.ones(50), "a .vtu file holds a vtkUnstructuredGrid, and the mesh is a vtkPolyData"),
        ("out.stl", np.ones(50), "fields are written to .vtp, .vtu, .vtk files, got '.stl'"),
        ("folder.vtp", np.ones(50), "folder.vtp is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(name, values, message, tmp_path):
    (tmp_path / "folder.vtp").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        write_mesh(tmp_path / name, Mesh(tmp_path, make_dataset("vtp")), {"x": values}, location="points")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.vtp"]


@pytest.mark.parametrize("suffix", ["vtp", "vtk"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(suffix, tmp_path):
    path = write(tmp_path / f"mesh.{suffix}")
    before = path.read_bytes()
    # A folder under the temporary name is what VTK cannot open, whoever runs the test.
    (tmp_path / f".mesh.partial.{suffix}").mkdir()
    with pytest.raises(OSError, match="mesh"):
        write_mesh(path, read_mesh(path), {"x": np.ones(50)}, location="points")
    assert path.read_bytes() == before


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    class Full:
        def Write(self) -> int:  # noqa: N802
            return 0

        def GetErrorCode(self) -> int:  # noqa: N802
            return 29

        def __getattr__(self, name: str) -> Any:
            return lambda *args: None

    monkeypatch.setattr("emmi_jax.meshes.vtk.vtk_class", lambda *names: Full)
    with pytest.raises(OSError, match=r"out\.vtp cannot be written"):
        write_mesh(tmp_path / "out.vtp", Mesh(tmp_path, make_dataset("vtp")), {}, location="points")
    assert list(tmp_path.iterdir()) == []
