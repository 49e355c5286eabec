"""What a file holds beside its mesh is left out and named; what is no field chooses nothing."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.meshes.content import field_names, main_content, used_points
from emmi_jax.meshes.forces import integrate_forces
from emmi_jax.meshes.legacy import legacy_array_names
from emmi_jax.meshes.mesh import FieldSource, Mesh, read_mesh
from emmi_jax.meshes.surfaces import area_vectors, surface_elements, surface_triangles
from emmi_jax.meshes.vtk import import_pyvista

pyvista = import_pyvista()
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float64)


def legacy(path: Path, attributes: str, kind: str = "POINT_DATA 4") -> Path:
    points = "\n".join(" ".join(map(str, p)) for p in SQUARE)
    head = f"# vtk DataFile Version 3.0\nby hand\nASCII\nDATASET POLYDATA\nPOINTS 4 double\n{points}\n"
    path.write_text(f"{head}POLYGONS 1 5\n4 0 1 2 3\n{kind}\n{attributes}")
    return path


def block(keyword: str, name: str, values: Any) -> str:
    table = "LOOKUP_TABLE default\n" if keyword == "SCALARS" else ""
    size = " 1" if keyword == "SCALARS" else ""
    return f"{keyword} {name} double{size}\n{table}" + "\n".join(" ".join(map(str, row)) for row in values) + "\n"


def test_every_attribute_of_a_legacy_file_is_read(tmp_path):
    numbers, vectors, tensors = np.arange(4.0)[:, None], np.eye(4, 3), np.arange(36.0).reshape(4, 9)
    blocks = [block("SCALARS", name, scale * numbers) for name, scale in (("Pressure", 1), ("Mach", 2))]
    blocks += [block("VECTORS", name, vectors) for name in ("Velocity", "Skin")]
    blocks += [block("TENSORS", name, tensors) for name in ("R", "S")]
    blocks += [f"FIELD {name} 1\n{name}_array 1 4 double\n0 1 2 3\n" for name in ("first", "second")]
    mesh = read_mesh(legacy(tmp_path / "a.vtk", "".join(blocks)))
    expected = {"Pressure", "Mach", "Velocity", "Skin", "R", "S", "first_array", "second_array"}
    assert set(mesh.dataset.point_data.keys()) == expected
    np.testing.assert_array_equal(mesh.points({"m": FieldSource("Mach")}).fields["m"], 2 * numbers)


@pytest.mark.parametrize(("name", "rows", "location"), [("p", 4, "points"), ("q", 1, None)])
def test_an_array_without_a_location_lies_where_there_are_as_many(name, rows, location):
    dataset = pyvista.PolyData(SQUARE, [4, 0, 1, 2, 3])
    dataset.field_data[name] = np.arange(float(rows))
    mesh = Mesh(Path("a.vtp"), *main_content(dataset))
    found = [where for where in ("points", "cells") if name in field_names(mesh.dataset, where)]
    assert found == ([] if location is None else [location])
    assert name in dataset.field_data


def mixed() -> Any:
    """A square as a polygon, the same as a strip, two lines and a vertex; a cell's value is its number among all."""
    dataset = pyvista.PolyData()
    dataset.points = SQUARE
    dataset.verts, dataset.lines = [1, 0], [2, 0, 1, 2, 1, 2]
    dataset.faces, dataset.strips = [4, 0, 1, 2, 3], [4, 0, 1, 3, 2]
    dataset.cell_data["p"] = np.arange(5.0)
    dataset.point_data["q"] = np.arange(4.0)
    return dataset


def test_lines_and_vertices_beside_polygons_are_left_out_and_strips_are_cut():
    mesh = Mesh(Path("a.vtp"), *main_content(mixed()))
    assert mesh.left_out == ("1 vertices beside 2 polygons", "2 lines beside 2 polygons")
    np.testing.assert_array_equal(mesh.dataset.cell_data["p"], [3, 4, 4])
    np.testing.assert_array_equal(mesh.dataset.point_data["q"], np.arange(4))
    np.testing.assert_allclose(area_vectors(mesh)[0], [[0, 0, 1], [0, 0, 0.5], [0, 0, 0.5]], atol=1e-15)


def test_a_closed_line_alone_is_a_mesh():
    line = pyvista.PolyData()
    line.points, line.lines = SQUARE, [2, 0, 1, 2, 1, 2, 2, 2, 3, 2, 3, 0]
    dataset, left_out = main_content(line)
    assert (dataset.n_cells, left_out) == (4, ())


@pytest.mark.parametrize("kind", ["unstructured", "polydata", "structured"])
def test_ghosts_and_blanked_cells_are_left_out(kind):
    grid = pyvista.ImageData(dimensions=(4, 2, 2))
    dataset = grid.cast_to_structured_grid() if kind == "structured" else grid.cast_to_unstructured_grid()
    if kind == "polydata":
        points = [[x, y, 0] for y in (0.0, 1.0) for x in range(4)]
        dataset = pyvista.PolyData(points, [4, 0, 1, 5, 4, 4, 1, 2, 6, 5, 4, 2, 3, 7, 6])
    dataset.clear_data()
    dataset.cell_data["p"] = np.arange(3.0)
    dataset.cell_data["vtkGhostType"] = np.array([0, 1, 32], np.uint8)
    mesh, left_out = main_content(dataset)
    np.testing.assert_array_equal(mesh.cell_data["p"], [0])
    assert left_out == ("2 of 3 cells, which are ghosts or blanked",)


def test_cells_at_a_hidden_point_are_blanked():
    grid = pyvista.ImageData(dimensions=(4, 2, 2)).cast_to_unstructured_grid()
    grid.point_data["vtkGhostType"] = np.where(np.arange(16) == 0, 2, 0).astype(np.uint8)
    assert main_content(grid)[0].n_cells == 2


def test_faces_beside_volume_cells_are_left_out(tmp_path):
    cube = pyvista.ImageData(dimensions=(2, 2, 2)).cast_to_unstructured_grid()
    whole = cube.merge(pyvista.Box((0, 1, 0, 1, 0, 1)).cast_to_unstructured_grid())
    whole.save(tmp_path / "a.vtu")
    mesh = read_mesh(tmp_path / "a.vtu")
    assert mesh.left_out == ("6 polygons beside 1 volume cells",)
    np.testing.assert_allclose(mesh.position("cells"), [[0.5, 0.5, 0.5]])


@pytest.mark.parametrize("suffix", ["vtu", "vtk"])
@pytest.mark.parametrize("kind", ["triangles", "pixels"])
def test_a_surface_may_be_an_unstructured_grid(kind, suffix, tmp_path):
    box = pyvista.Box((0, 2, 0, 3, 0, 4)).cast_to_unstructured_grid()
    if kind == "pixels":
        pixels = np.asarray(box.cell_connectivity).reshape(-1, 4)[:, [0, 1, 3, 2]]
        cells = np.insert(pixels, 0, 4, axis=1).reshape(-1)
        box = pyvista.UnstructuredGrid(cells, np.full(6, pyvista.CellType.PIXEL), box.points)
    else:
        box = box.triangulate()
    box.save(tmp_path / f"a.{suffix}")
    mesh = read_mesh(tmp_path / f"a.{suffix}")
    area = np.linalg.norm(area_vectors(mesh)[0], axis=1)
    np.testing.assert_allclose(area.sum(), 2 * (2 * 3 + 3 * 4 + 2 * 4), rtol=1e-6)
    np.testing.assert_allclose(area_vectors(mesh)[0].sum(axis=0), 0, atol=1e-6)
    assert len(surface_triangles(mesh)) == 12


def test_points_without_cells_are_kept():
    cloud = pyvista.UnstructuredGrid(np.empty(0, np.int64), np.empty(0, np.uint8), SQUARE)
    assert used_points(cloud) is cloud


def test_cells_that_are_no_polygons_are_named(tmp_path):
    grid = pyvista.ImageData(dimensions=(3, 2, 2)).cast_to_unstructured_grid()
    with pytest.raises(ValueError, match=r"expected a surface of polygons.*vtkUnstructuredGrid of the cells voxel"):
        area_vectors(Mesh(Path("a.vtu"), grid))


def test_normals_colours_and_numbers_are_no_fields():
    dataset = pyvista.Sphere(theta_resolution=6, phi_resolution=6)
    dataset.clear_data()
    names = ["Normals", "RGB", "RGBA", "TCoords", "vtkOriginalPointIds", "GlobalElementId", "GroupIds", "cellID"]
    for name in [*names, "U", "pMean", "nut", "T"]:
        dataset.point_data[name] = np.ones(dataset.n_points)
    dataset.point_data["region"] = np.ones(dataset.n_points, np.int32)
    assert field_names(dataset, "points") == ["U", "pMean", "nut", "T"]
    assert field_names(dataset.compute_normals(), "cells") == []


def triangle(corners: Any) -> str:
    return (
        "facet normal 0 0 1\nouter loop\n"
        + "".join(f"vertex {x} {y} {z}\n" for x, y, z in corners)
        + "endloop\nendfacet\n"
    )


@pytest.mark.parametrize("binary", [False, True])
def test_triangles_without_area_are_counted(binary, tmp_path):
    corners = [SQUARE[[0, 1, 2]], SQUARE[[0, 0, 2]], SQUARE[[0, 2, 3]]]
    path = tmp_path / "a.stl"
    if binary:
        path.write_bytes(binary_stl(b"by hand", corners))
    else:
        path.write_text("solid a\n" + "".join(map(triangle, corners)) + "endsolid a\n")
    mesh = read_mesh(path)
    assert mesh.left_out == ("1 of 3 triangles, which have no area",)
    assert mesh.dataset.n_cells == 2


@pytest.mark.parametrize("suffix", ["stl", "ply", "vtp"])
@pytest.mark.parametrize(("length", "share"), [(1, "of the size of the mesh"), (1e4, "of the length of edges")])
def test_coordinates_that_float32_rounds_are_said(suffix, length, share, tmp_path):
    strip = pyvista.Plane(i_size=length, j_size=1, i_resolution=4000, j_resolution=1).triangulate()
    far = np.asarray(strip.points, np.float64) + 1e6
    strip.points = far.astype(np.float32) if suffix == "vtp" else far
    strip.save(tmp_path / f"a.{suffix}")
    (line,) = read_mesh(tmp_path / f"a.{suffix}").left_out[-1:]
    assert line.startswith("digits of the coordinates")
    assert "spacing there is 0.062" in line
    assert share in line
    strip.points = far
    strip.save(tmp_path / "b.vtp")
    assert read_mesh(tmp_path / "b.vtp").left_out == ()


def test_properties_that_are_not_read_are_named(tmp_path):
    rows = "".join(f"{x} {y} {z} 1\n" for x, y, z in SQUARE)
    head = "".join(f"property float {name}\n" for name in ("x", "y", "z", "pressure"))
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "a.ply").write_text(f"ply\nformat ascii 1.0\nelement vertex 4\n{head}{faces}{rows}4 0 1 2 3\n")
    assert "the properties pressure" in read_mesh(tmp_path / "a.ply").left_out[0]


@pytest.mark.parametrize("version", [42, 51])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kind", ["polydata", "unstructured", "structured", "image"])
def test_arrays_of_legacy_files_are_named_by_their_headers(kind, binary, version, tmp_path):
    grid = pyvista.ImageData(dimensions=(3, 3, 2))
    dataset = {
        "polydata": lambda: pyvista.Sphere(theta_resolution=5, phi_resolution=5),
        "unstructured": grid.cast_to_unstructured_grid,
        "structured": grid.cast_to_structured_grid,
        "image": lambda: grid,
    }[kind]()
    for name in ("p", "with space", "U"):
        dataset.point_data[name] = np.ones((dataset.n_points, 3 if name == "U" else 1))
    dataset.cell_data["tau"] = np.ones((dataset.n_cells, 3), np.float32)
    dataset.cell_data["zone"] = np.ones(dataset.n_cells, np.int64)
    dataset.set_active_vectors("U")
    writer = importlib.import_module("vtkmodules.vtkIOLegacy").vtkGenericDataObjectWriter()
    writer.SetFileName(str(tmp_path / "a.vtk"))
    writer.SetInputData(dataset)
    writer.SetFileVersion(version)
    writer.SetFileTypeToBinary() if binary else writer.SetFileTypeToASCII()
    writer.Write()
    expected = {"tau", "zone"}, {"p", "with space", "U", *(["Normals"] if kind == "polydata" else [])}
    assert legacy_array_names(tmp_path / "a.vtk") == expected


CORNERS = [(x, y, z) for z in (0, 3) for x, y in ((0, 0), (1, 0), (1, 2), (0, 2))]
QUADS = [(1, 4, 3, 2), (5, 6, 7, 8), (1, 2, 6, 5), (2, 3, 7, 6), (3, 4, 8, 7), (4, 1, 5, 8)]
FLAVOURS = {
    "a normal of all": lambda v, f: f"{v}vn 0 0 1\n{f}",
    "normals by number": lambda v, f: v + "vn 0 0 1\n" + re.sub(r"(?<= )([1-8])", r"\1//1", f),
    "lines and points": lambda v, f: f"{v}vn 0 0 1\n{f}l 1 2\np 1\n",
    "weights": lambda v, f: v.replace("\n", " 1.0\n") + f,
    "colours": lambda v, f: v.replace("\n", " 1 0 0\n") + f,
    "groups and lines of Windows": lambda v, f: f"mtllib a.mtl\no body\n{v}g side\ns 1\n{f}".replace("\n", "\r\n"),
    "numbers from the end": lambda v, f: v + re.sub(r"(?<= )([1-8])", lambda n: str(int(n[0]) - 9), f),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_obj_files_of_every_flavour_are_the_same_body(flavour, tmp_path):
    """A box of 1 by 2 by 3; a pressure of x pushes it by its volume against x."""
    corners = "".join(f"v {x} {y} {z}\n" for x, y, z in CORNERS)
    faces = "".join(f"f {' '.join(map(str, quad))}\n" for quad in QUADS)
    (tmp_path / "a.obj").write_bytes(FLAVOURS[flavour](corners, faces).encode())
    mesh = read_mesh(tmp_path / "a.obj")
    np.testing.assert_allclose(pushed_by_x(mesh), [-6, 0, 0], atol=1e-6)
    others = ("1 vertices beside 6 polygons", "1 lines beside 6 polygons") if flavour == "lines and points" else ()
    assert mesh.left_out == others


def pushed_by_x(mesh: Mesh) -> Any:
    """The force of a pressure of x."""
    elements = surface_elements(mesh)
    return integrate_forces(elements.normal, elements.area, mesh.position("cells")[:, 0])


def solid(triangles: Any, name: str = "a b") -> str:
    return f"solid {name}\n" + "".join(map(triangle, triangles)) + f"endsolid {name}\n"


def binary_stl(header: bytes, triangles: Any) -> bytes:
    rows = np.zeros(len(triangles), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]))
    rows["corners"] = triangles
    return header.ljust(80) + np.uint32(len(rows)).tobytes() + rows.tobytes()


STL = {
    "lines of Windows": lambda t: solid(t).replace("\n", "\r\n").encode(),
    "no name": lambda t: solid(t, "").encode(),
    "several solids": lambda t: (solid(t[:5]) + "\n" + solid(t[5:8], "facet") + solid(t[8:], "")).encode(),
    "binary": lambda t: binary_stl(b"by hand", t),
    "binary that says solid": lambda t: binary_stl(b"solid by hand", t),
    "binary that says solid and facet": lambda t: binary_stl(b"solid a\n facet normal", t),
}


@pytest.mark.parametrize("flavour", STL)
def test_stl_files_of_every_flavour_are_the_same_body(flavour, tmp_path):
    quads = np.array(QUADS) - 1
    triangles = np.array(CORNERS, float)[np.concatenate([quads[:, :3], quads[:, [0, 2, 3]]])]
    (tmp_path / "a.stl").write_bytes(STL[flavour](triangles))
    mesh = read_mesh(tmp_path / "a.stl")
    np.testing.assert_allclose(pushed_by_x(mesh), [-6, 0, 0], atol=1e-6)
    assert mesh.left_out == ()
