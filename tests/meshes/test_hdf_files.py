"""VTKHDF and CGNS that h5py wrote: the numbers of the case in double precision, and one line for a bad file."""

import re

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.parts import linked_files, part_arrays
from tests.meshes.format_files import BODY, formats, read
from tests.meshes.test_parts import force

__all__ = ["formats"]
FORMS = ("earliest", "latest")
"""Of the HDF5 library: headers of objects, layouts and heaps differ."""


@pytest.mark.parametrize(("name", "array"), [("volume.vtkhdf", "U"), ("case.cgns", "Velocity")])
def test_polyhedra_and_their_values_are_those_of_the_case_in_double_precision(name, array, formats):
    found, wanted = read_mesh(formats / name), read(formats / "openfoam", "volume")
    assert found.dataset.points.dtype == np.float64
    np.testing.assert_allclose(found.cell_sizes(), wanted.cell_sizes(), rtol=1e-11)
    np.testing.assert_allclose(found.position("cells"), wanted.position("cells"), atol=1e-12)
    values = [mesh.points({"U": FieldSource(a)}).fields["U"] for mesh, a in ((found, array), (wanted, "U"))]
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("time", [None, "5", "step:0"])
def test_forces_of_a_surface_at_a_time_are_those_of_the_case(time, formats):
    found = read_mesh(formats / "body.vtkhdf", branch="surface", selection=FoamSelection((), time))
    wanted = read(formats / "openfoam", "surface", FoamSelection(("body",), "5" if time else "10"))
    # Faces of OpenFOAM point out of the fluid, and those of a closed body are found to point out of it.
    np.testing.assert_allclose(force(found), force(wanted), rtol=1e-12, atol=1e-12)


def test_ghosts_of_a_piece_are_dropped(formats):
    mesh = read_mesh(formats / "volume.vtkhdf")
    assert mesh.patches == (("", 150), ("", 106))
    assert "10 of 116 cells, which are ghosts or blanked" in mesh.left_out
    assert part_arrays(formats / "volume.vtkhdf").cells == {"p", "U", "vtkGhostType"}
    assert linked_files(formats / "volume.vtkhdf") == []


def test_sections_of_faces_are_surfaces_of_a_cgns_file(formats):
    mesh = read_mesh(formats / "case.cgns", branch="surface", selection=BODY)
    wanted = read(formats / "openfoam", "surface")
    np.testing.assert_allclose(mesh.cell_sizes(), wanted.cell_sizes(), rtol=1e-12)
    assert mesh.dataset.n_points == wanted.dataset.n_points


def test_all_bases_are_read_and_numbers_of_both_precisions_joined(formats):
    mesh = read_mesh(formats / "blocks.cgns")
    assert mesh.patches == (("left/block", 12), ("right/block", 12))
    x, y = (mesh.position(location)[:, 0] for location in ("cells", "points"))
    np.testing.assert_array_equal(mesh.dataset.cell_data["Pressure"], x)
    np.testing.assert_array_equal(mesh.dataset.point_data["Temperature"], y)
    right = read_mesh(formats / "blocks.cgns", {"Pressure"}, selection=FoamSelection(("right/.*",)))
    assert right.position("cells")[:, 0].min() == 3.5
    assert right.dataset.point_data.keys() == []


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("volume.vtkhdf", 60_000, "truncated or damaged: 60,000 bytes"),
        ("case.cgns", 60_000, "truncated or damaged: 60,000 bytes"),
        ("case.cgns", 5, "it is no HDF5"),
        ("short.vtkhdf", None, "not a .vtkhdf file, or a damaged one"),
        ("short.cgns", None, "not a .cgns file, or a damaged one: cgio_read_data_type"),
        ("bare.cgns", None, "not a .cgns file, or a damaged one: Error while reading mesh coordinates"),
        ("linked.vtkhdf", None, "links to the file 'body.vtkhdf', expected everything in one file"),
        *((f"external_{form}.vtkhdf", None, "has values in the file 'values.bin', expected") for form in FORMS),
        *((f"virtual_{form}.vtkhdf", None, "virtual data set, whose values are in 'values.h5'") for form in FORMS),
        *((f"own_{form}.vtkhdf", None, "virtual data set, whose values are in '.', expected") for form in FORMS),
    ],
)
def test_a_bad_file_is_one_line(name, size, message, formats, tmp_path, capfd):
    file = tmp_path / name
    file.write_bytes((formats / name).read_bytes()[:size])
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_mesh(file)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
