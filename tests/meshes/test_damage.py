"""Damaged meshes of any format cost one line: no crash of VTK's readers, no cell with corners of others."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emmi_jax.jobs.stats import file_statistics
from emmi_jax.meshes.elsewhere import run_elsewhere
from emmi_jax.meshes.ensight_files import open_data
from emmi_jax.meshes.mesh import read_mesh

POINTS = "0 0 0\n1 0 0\n0 1 0\n"
PLY = "ply\nformat {} 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
PLY += "property list uchar int vertex_indices\nend_header\n"
VTK = "# vtk DataFile Version 3.0\nx\nASCII\nDATASET POLYDATA\nPOINTS 3 float\n" + POINTS + "POLYGONS 1 4\n3 0 1 {}\n"
XML = """<?xml version="1.0"?><VTKFile type="{kind}" version="0.1"><{kind}><Piece NumberOfPoints="{claim}" {number}="1">
<Points><DataArray type="Float32" NumberOfComponents="3" format="ascii">0 0 0 1 0 0 0 1 0</DataArray></Points>
<{cells}><DataArray type="Int64" Name="connectivity" format="ascii">0 1 {corner}</DataArray>
<DataArray type="Int64" Name="offsets" format="ascii">3</DataArray>
<DataArray type="UInt8" Name="types" format="ascii">{type}</DataArray></{cells}></Piece></{kind}></VTKFile>"""


def xml(corner: int, *, claim: int = 3, is_grid: bool = False, kind: int = 5) -> str:
    names = ("UnstructuredGrid", "NumberOfCells", "Cells") if is_grid else ("PolyData", "NumberOfPolys", "Polys")
    words = dict(zip(("kind", "number", "cells"), names, strict=True))
    return XML.format(corner=corner, claim=claim, type=kind, **words)


def binary_ply(number: int, *corners: int, order: str = "<") -> bytes:
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    data = struct.pack(f"{order}9fB{len(corners)}i", 0, 0, 0, 1, 0, 0, 0, 1, 0, number, *corners)
    return PLY.format(name).encode() + data


def binary_vtk(number: int, *corners: int) -> bytes:
    head = VTK.replace("ASCII", "BINARY").split(POINTS)[0].encode()
    points = struct.pack(">9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)
    return head + points + b"\nPOLYGONS 1 4\n" + struct.pack(f">{1 + len(corners)}i", number, *corners) + b"\n"


SOUND = {
    "a.vtp": xml(2),
    "a.vtu": xml(2, is_grid=True),
    "a.vtk": VTK.format(2),
    "b.vtk": binary_vtk(3, 0, 1, 2),
    "a.obj": "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
    "a.ply": PLY.format("ascii") + POINTS + "3 0 1 2\n",
    "b.ply": binary_ply(3, 0, 1, 2),
    "c.ply": binary_ply(3, 0, 1, 2, order=">"),
    "a.stl": b"x" * 80 + struct.pack("<I12fH", 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0),
}
DAMAGED = [
    *(("a.vtp", xml(corner)) for corner in (3, 10**8, -1)),
    *(("a.vtu", xml(corner, is_grid=True)) for corner in (3, 10**8, -1)),
    ("a.vtp", xml(2, claim=10**6)),
    ("a.vtu", xml(2, claim=10**6, is_grid=True)),
    *(("a.vtk", VTK.format(corner)) for corner in (3, 10**8, -1)),
    ("a.vtk", VTK.format(2).replace("3 0 1", "2 0 1")),
    ("a.vtk", VTK.format(2).replace("POLYGONS 1 4", "POLYGONS 1 5")),
    ("a.vtk", binary_vtk(2, 0, 1, 2)),
    *(("a.obj", f"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 {corner}\n") for corner in (4, 10**8, -9)),
    *(("a.ply", PLY.format("ascii") + POINTS + row) for row in ("3 0 1 3", "3 0 1 -1", "9 0 1 2", "x y", "")),
    *(("a.ply", binary_ply(*row)) for row in ((3, 0, 1, 3), (3, 0, 1, -1))),
    ("a.ply", PLY.format("binary_little_endian").replace("face 1", "face 1000000000000")),
    ("a.stl", b"x" * 80 + struct.pack("<I", 2**32 - 1) + bytes(500)),
]


@pytest.mark.parametrize("name", SOUND)
def test_sound_meshes_are_read(name: str, tmp_path: Path) -> None:
    content = SOUND[name]
    (path := tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_mesh(path).cell_sizes().tolist() == [0.5]


@pytest.mark.parametrize(("name", "content"), DAMAGED, ids=[f"{n}-{i}" for i, (n, _) in enumerate(DAMAGED)])
def test_damaged_meshes_cost_one_line(name: str, content: str | bytes, tmp_path: Path) -> None:
    (path := tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{name}: ") as error:
        file_statistics([path])
    assert "\n" not in str(error.value)


def test_polyhedra_without_faces_are_refused(tmp_path: Path) -> None:
    (path := tmp_path / "a.vtu").write_text(xml(2, is_grid=True, kind=42))
    with pytest.raises(ValueError, match=r"a.vtu: damaged: its polyhedra have no faces"):
        read_mesh(path).cell_sizes()


def test_a_reader_that_ends_its_process_costs_one_line_and_the_next_file_is_read(tmp_path):
    file = tmp_path / "a.vtp"
    file.write_text(xml(2))
    for status in (0, 3):
        with pytest.raises(ValueError, match=r"a\.vtp: damaged: VTK's reader crashes"):
            run_elsewhere(file, "import os; os._exit(*arguments)", status)
    run_elsewhere(file, "raise ValueError(arguments)")
    assert read_mesh(file).dataset.n_cells == 1


@pytest.mark.parametrize("number", ["nan", "inf", "1.5"])
def test_numbers_of_things_are_whole_in_text_too(number, tmp_path):
    (tmp_path / "data").write_text(f"coordinates\n{number}\n")
    data = open_data(tmp_path / "data")
    data.word()
    with pytest.raises(ValueError, match="expected whole numbers"):
        data.count()
