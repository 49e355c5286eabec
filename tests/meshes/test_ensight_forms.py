"""EnSight Gold in every form that the format has: text, C and Fortran binary, steps in one file, structured blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.meshes.mesh import read_mesh
from emmi_jax.meshes.parts import linked_files, open_parts
from emmi_jax.meshes.vtk import import_pyvista

FORMS = ("ascii", "C <", "C >", "Fortran <", "Fortran >")
CUBE = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], np.float32)[[0, 1, 3, 2, 4, 5, 7, 6]]


def write(path: Path, form: str, items: Sequence[Any]) -> None:
    """Writes lines and arrays as the format has them; in Fortran binary each is a record between its lengths."""
    kind, _, order = form.partition(" ")
    content = b"" if kind == "ascii" else _record(kind, order, f"{kind} Binary") if path.suffix == ".geo" else b""
    for item in items:
        if kind != "ascii":
            content += _record(kind, order, item)
        elif isinstance(item, str):
            content += item.encode() + b"\n"
        else:
            rows = item.reshape(len(item), -1)
            content += b"".join(
                b" ".join(b"%12.5e" % x if row.dtype.kind == "f" else b"%10d" % x for x in row) + b"\n" for row in rows
            )
    path.write_bytes(content)


def _record(kind: str, order: str, item: Any) -> bytes:
    data = item.encode().ljust(80) if isinstance(item, str) else item.astype(f"{order}{item.dtype.kind}4").tobytes()
    mark = len(data).to_bytes(4, "little" if order == "<" else "big") if kind == "Fortran" else b""
    return mark + data + mark


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def geometry(*part: Any) -> list[Any]:
    return ["a cube", "of the format", "node id off", "element id off", "part", numbers(1), "cube", *part]


def hexahedron() -> list[Any]:
    corners = np.arange(1, 9, dtype=np.int32)[None]
    return geometry("coordinates", numbers(8), *CUBE.T, "hexa8", numbers(1), corners)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_same_numbers(form, tmp_path):
    (tmp_path / "flow.case").write_text(
        "FORMAT\ntype: ensight gold\nGEOMETRY\nmodel: cube.geo\nVARIABLE\nscalar per node: p p.scl\n"
        "vector per element: U U.vec\n"
    )
    write(tmp_path / "cube.geo", form, hexahedron())
    pressure, velocity = np.arange(8, dtype=np.float32) / 4, np.array([1.0, -2.0, 3.0], np.float32)
    write(tmp_path / "p.scl", form, ["p", "part", numbers(1), "coordinates", pressure])
    write(tmp_path / "U.vec", form, ["U", "part", numbers(1), "hexa8", *velocity[:, None]])
    dataset = read_mesh(tmp_path / "flow.case").dataset
    np.testing.assert_array_equal(dataset.points, CUBE)
    np.testing.assert_array_equal(dataset.cells, [8, *range(8)])
    np.testing.assert_array_equal(dataset.point_data["p"], pressure)
    np.testing.assert_array_equal(dataset.cell_data["U"], velocity[None])


def test_a_damaged_record_of_fortran_is_one_line(tmp_path):
    (tmp_path / "flow.case").write_text("FORMAT\ntype: ensight gold\nGEOMETRY\nmodel: cube.geo\n")
    write(tmp_path / "cube.geo", "Fortran <", hexahedron())
    content = (tmp_path / "cube.geo").read_bytes()
    for damaged in (content[:-7], content[:88] + b"\xff\xff\xff\x7f" + content[92:]):
        (tmp_path / "cube.geo").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cube\.geo: truncated or damaged: no record of [\d,]+ bytes at byte \d+"):
            read_mesh(tmp_path / "flow.case")


@pytest.mark.parametrize("form", FORMS)
def test_time_steps_of_one_file_are_read_by_their_number(form, tmp_path):
    (tmp_path / "flow.case").write_text(
        "FORMAT\ntype: ensight gold\nGEOMETRY\nmodel: 1 1 cube.geo\nVARIABLE\nscalar per element: 1 1 p p.scl\n"
        "TIME\ntime set: 1\nnumber of steps: 3\ntime values: 0.5 1.0 2.5\nFILE\nfile set: 1\nnumber of steps: 3\n"
    )
    steps, values = list[Any](), list[Any]()
    for step in range(3):
        moved = [
            item + np.float32(step) if getattr(item, "dtype", None) == np.float32 else item for item in hexahedron()
        ]
        steps += ["BEGIN TIME STEP", *moved, "END TIME STEP"]
        value = np.array([10.0 + step], np.float32)
        values += ["BEGIN TIME STEP", "p", "part", numbers(1), "hexa8", value, "END TIME STEP"]
    write(tmp_path / "cube.geo", form, steps)
    write(tmp_path / "p.scl", form, values)
    assert open_parts(tmp_path / "flow.case").times() == [0.5, 1.0, 2.5]
    for time, step in ((None, 2), ("1", 1), ("step:0", 0)):
        dataset = read_mesh(tmp_path / "flow.case", selection=FoamSelection((), time)).dataset
        np.testing.assert_array_equal(dataset.points, CUBE + step)
        np.testing.assert_array_equal(dataset.cell_data["p"], [10 + step])
    assert {file.name for file in linked_files(tmp_path / "flow.case")} == {"cube.geo", "p.scl"}
    write(tmp_path / "p.scl", form, values[:14])
    with pytest.raises(ValueError, match=r"p\.scl: truncated or damaged: it has 2 time steps, expected at least 3"):
        read_mesh(tmp_path / "flow.case")


@pytest.mark.parametrize("kind", ["curvilinear", "rectilinear", "uniform"])
@pytest.mark.parametrize("num", [(4, 3, 2), (4, 1, 3), (1, 3, 2)])
def test_blocks_are_the_cells_of_a_structured_grid(kind, num, tmp_path):
    (tmp_path / "flow.case").write_text(
        "FORMAT\ntype: ensight gold\nGEOMETRY\nmodel: cube.geo\nVARIABLE\nscalar per node: T T.scl\n"
        "scalar per element: p p.scl\n"
    )
    axes = [2.0 + 0.5 * np.arange(n, dtype=np.float32) for n in num]
    grid = import_pyvista().StructuredGrid(*np.meshgrid(*axes, indexing="ij"))
    if kind == "curvilinear":
        grid.points = grid.points + 0.1 * np.sin(grid.points[:, ::-1])
    points = np.asarray(grid.points, np.float32)
    given = {
        "curvilinear": points.T,
        "rectilinear": axes,
        "uniform": np.array([[2, 2, 2], [0.5, 0.5, 0.5]], np.float32),
    }
    head = "block" if kind == "curvilinear" else f"block {kind}"
    write(tmp_path / "cube.geo", "C <", geometry(head, numbers(*num), *given[kind]))
    in_points, in_cells = (np.arange(n, dtype=np.float32) for n in (grid.n_points, grid.n_cells))
    write(tmp_path / "T.scl", "C <", ["T", "part", numbers(1), "block", in_points])
    write(tmp_path / "p.scl", "C <", ["p", "part", numbers(1), "block", in_cells])
    mesh = read_mesh(tmp_path / "flow.case")
    np.testing.assert_allclose(mesh.dataset.points, points, rtol=1e-6)
    np.testing.assert_array_equal(mesh.dataset.point_data["T"], in_points)
    np.testing.assert_array_equal(mesh.dataset.cell_data["p"], in_cells)
    np.testing.assert_allclose(
        mesh.position("cells"), grid.cell_centers().points, atol=0.02 * (kind == "curvilinear") + 1e-6
    )
    sizes = grid.compute_cell_sizes()
    np.testing.assert_allclose(mesh.cell_sizes(), sizes["Volume" if min(num) > 1 else "Area"], rtol=0.02)


def test_blocks_with_blanked_points_or_too_many_are_refused(tmp_path):
    (tmp_path / "flow.case").write_text("FORMAT\ntype: ensight gold\nGEOMETRY\nmodel: cube.geo\n")
    for head, num, message in (
        ("block iblanked", (2, 2, 2), "'block iblanked' is not read"),
        ("block uniform", (1 << 20, 1 << 20, 2), "a block of 1,048,576 × 1,048,576 × 2 points"),
        ("block", (1 << 9, 1 << 9, 1 << 9), "it claims 402,653,184 numbers"),
    ):
        write(tmp_path / "cube.geo", "C <", geometry(head, numbers(*num), *CUBE.T))
        with pytest.raises(ValueError, match=message):
            read_mesh(tmp_path / "flow.case")
