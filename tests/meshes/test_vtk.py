import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.meshes.vtk import array_names, import_pyvista, read_dataset, write_dataset

IN_CELLS, ON_POINTS = {"U", "total(p)_coeff", "turbulenceProperties:R"}, {"U", "k"}


def dataset() -> Any:
    grid = import_pyvista().ImageData(dimensions=(4, 4, 4)).cast_to_unstructured_grid()
    for name in IN_CELLS:
        grid.cell_data[name] = np.ones(grid.n_cells)
    for name in ON_POINTS:
        grid.point_data[name] = np.ones(grid.n_points)
    return grid


def write(path: Path, kind: str) -> Path:
    if kind == "appended":
        write_dataset(path, dataset())
    else:
        dataset().save(path, binary=kind == "inline")
    return path


@pytest.mark.parametrize("kind", ["appended", "inline", "text"])
def test_arrays_are_named_without_reading_them(kind, tmp_path):
    path = write(tmp_path / "a.vtu", kind)
    assert (b"<AppendedData" in path.read_bytes()) == (kind == "appended")
    assert array_names(path) == (IN_CELLS, ON_POINTS)


@pytest.mark.parametrize("kind", ["appended", "inline", "text"])
@pytest.mark.parametrize(
    ("wanted", "in_cells", "on_points"),
    [
        ({"U"}, {"U"}, set()),
        ({"k", "U"}, set(), {"k", "U"}),
        (set(), set(), set()),
        ({"nope"}, IN_CELLS, ON_POINTS),
        ({"k", "total(p)_coeff"}, IN_CELLS, ON_POINTS),
    ],
)
def test_what_is_wanted_is_read_alone_from_cells_first_and_all_where_it_is_not_there(
    kind, wanted, in_cells, on_points, tmp_path
):
    found = read_dataset(write(tmp_path / "a.vtu", kind), wanted)
    names = set(found.cell_data.keys()), set(found.point_data.keys())
    assert names == (in_cells, on_points)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"garbage", "it has no <VTKFile>"),
        (b"<VTKFile><CellData>", "its end is missing"),
    ],
)
def test_files_of_another_kind_and_truncated_ones_are_refused(content, message, tmp_path):
    (tmp_path / "a.vtu").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.vtu: .*{message}"):
        array_names(tmp_path / "a.vtu")


def test_messages_that_quote_other_bytes_than_text_are_one_line(tmp_path):
    path = tmp_path / "a.vtk"
    path.write_bytes(b"# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\n\xff\xfe 4 double\n")
    with pytest.raises(ValueError, match=r"^[^\n]*a\.vtk: not a \.vtk file, or a damaged one: [^\n]*$"):
        read_dataset(path)


@pytest.mark.parametrize("name", ["it's", "velocity [m/s]", "total(p)_coeff", "Druck ü", "p<x> & q", 'p"q'])
def test_names_of_arrays_may_have_any_characters(name, tmp_path):
    body = import_pyvista().Sphere()
    body.clear_data()
    body.cell_data["NAME"] = np.arange(body.n_cells)
    body.save(tmp_path / "body.vtp")
    content = (tmp_path / "body.vtp").read_bytes()
    (tmp_path / "body.vtp").write_bytes(content.replace(b'"NAME"', f'"{html.escape(name)}"'.encode()))
    assert array_names(tmp_path / "body.vtp").cells == {name}
    np.testing.assert_array_equal(read_dataset(tmp_path / "body.vtp", {name}).cell_data[name], body.cell_data["NAME"])
