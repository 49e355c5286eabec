"""Variants of text and binary formats that people have are the same body; what is refused says why."""

import struct

import numpy as np
import pytest

from emmi_jax.meshes.mesh import read_mesh
from emmi_jax.meshes.surfaces import surface_triangles

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float64)
FACES = [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]


def stl(first: str = "solid vertex 1 2 3", number: str = "{:.3e}") -> str:
    lines = [first]
    for face in FACES:
        corners = ["vertex " + " ".join(number.format(x) for x in CORNERS[i]) for i in face]
        lines += ["facet normal 0 0 0", "outer loop", *corners, "endloop", "endfacet"]
    return "\n".join([*lines, "endsolid", ""])


OBJ = "v 0 0 0\nv 1 0 0 {}\nv 0 2 0\nv 0 0 3\n" + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in FACES)
PLY = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\nelement face 4\n"
PLY += "property list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 2 0\n0 0 3\n"
PLY += "".join(f"3 {a} {b} {c}\n" for a, b, c in FACES)
BINARY = b"solid".ljust(80) + struct.pack("<I", 4)
BINARY += b"".join(struct.pack("<12fH", 0, 0, 0, *CORNERS[face].ravel(), 0) for face in FACES)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.stl", stl()),
        ("a.STL", stl("SOLID A").upper()),
        ("a.stl", "\ufeff" + stl()),
        ("a.stl", stl().encode("utf-16")),
        ("a.stl", stl().replace("facet normal", "Facet Normal")),
        ("a.stl", stl().replace("e+", "D+")),
        ("a.stl", "; by hand\n" + stl().replace("\n", "\r\n")),
        ("a.stl", stl("solid").replace("\n", " ")),
        ("a.stl", stl().replace("facet normal 0 0 0", "endsolid\nsolid b c\nfacet normal 0 0 0")),
        ("a.stl", BINARY),
        ("a.stl", BINARY + b"\0\0"),
        ("a.obj", OBJ.format("")),
        ("a.obj", "\ufeff" + OBJ.format("")),
        ("a.obj", OBJ.format("# the tip")),
        ("a.ply", "\ufeff" + PLY),
        ("a.OBJ", "# By hand\n" + OBJ.format("").upper()),
        ("a.PLY", PLY.upper()),
        ("a.ply", PLY.replace("ascii", "ASCII").replace("float x", "Float X").replace("vertex 4", "Vertex 4")),
    ],
)
def test_variants_of_a_format_are_the_same_body(name, content, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    mesh = read_mesh(tmp_path / name)
    np.testing.assert_allclose(surface_triangles(mesh), CORNERS[np.array(FACES)], atol=1e-6)
    assert mesh.left_out == (("2 bytes behind the triangles",) if content == BINARY + b"\0\0" else ())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (stl().upper().replace("ENDSOLID", ""), "12 corners in 4 whole facets, no endsolid"),
        (stl("solid").upper().replace("VERTEX 1", "1", 1), "11 corners in 4 whole facets, expected three in each"),
        (stl(number="{:.1f}").replace(".", ","), "'0,0' is no number"),
    ],
)
def test_a_damaged_text_says_what_is_wrong_with_it(content, reason, tmp_path):
    (tmp_path / "a.stl").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_mesh(tmp_path / "a.stl")
