"""Files of several meshes: the same numbers from each type, parts and times by choice, one line for a bad file."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.design.surface import read_surface as surface_to_move
from emmi_jax.meshes import parts_writing, vtk_collections
from emmi_jax.meshes.forces import integrate_forces
from emmi_jax.meshes.mesh import FieldSource, Mesh, read_mesh, write_mesh
from emmi_jax.meshes.openfoam import case_folder
from emmi_jax.meshes.parts import linked_files, open_parts, part_arrays
from emmi_jax.meshes.surfaces import surface_elements
from emmi_jax.meshes.vtk import import_pyvista
from tests.meshes.format_files import BODY, FILES, FORMS, formats, read

__all__ = ["formats"]
pyvista = import_pyvista()
FIELDS = {"p": FieldSource("p"), "t": FieldSource("wallShearStress", -1.0)}
DIGITS = {"ASCII EnSight": 2e-5}
"""The relative error of six decimal digits; that of float32 otherwise."""


def force(mesh: Mesh) -> np.ndarray:
    elements = surface_elements(mesh, require_closed=False)
    fields = mesh.points(FIELDS).fields
    return np.asarray(integrate_forces(elements.normal, elements.area, fields["p"], fields["t"]))


@pytest.mark.parametrize("form", FORMS)
def test_areas_volumes_and_forces_are_those_of_the_case(form, formats):
    case, file, rtol = formats / "openfoam", formats / FILES[form], DIGITS.get(form, 1e-6)
    volume, wanted = read(file, "volume"), read(case, "volume")
    assert volume.dataset.n_cells == wanted.dataset.n_cells
    np.testing.assert_allclose(np.sort(volume.cell_sizes()), np.sort(wanted.cell_sizes()), rtol=10 * rtol)
    weighted = [
        (m.points({"U": FieldSource("U")}).fields["U"] * m.cell_sizes()[:, None]).sum(0) for m in (volume, wanted)
    ]
    np.testing.assert_allclose(*weighted, rtol=rtol, atol=rtol)
    body, wanted = read(file, "surface"), read(case, "surface")
    np.testing.assert_allclose(body.cell_sizes().sum(), wanted.cell_sizes().sum(), rtol=rtol)
    np.testing.assert_allclose(force(body), force(wanted), rtol=rtol, atol=rtol)


def test_a_foam_file_is_its_case(formats):
    assert case_folder(formats / "openfoam/case.foam") == formats / "openfoam"


@pytest.mark.parametrize(
    ("branch", "patterns", "num_cells"),
    [
        ("surface", ("body",), 96),
        ("surface", ("b.*|gr.*",), 132),
        ("volume", ("body",), 256),
        ("volume", (), 256),
        ("volume", ("a part of the surface in another file",), 256),
    ],
)
def test_parts_are_chosen_by_pattern_and_the_others_named(branch, patterns, num_cells, formats):
    mesh = read(formats / FILES["EnSight"], branch, FoamSelection(patterns))
    assert mesh.dataset.n_cells == num_cells
    assert "inlet, outlet" in " ".join(mesh.left_out).replace("ground, ", "").replace("internalMesh, ", "")


@pytest.mark.parametrize(("time", "index"), [(None, 1), ("10", 1), ("5.0", 0), ("step:0", 0)])
def test_a_time_is_chosen_by_value_or_number(time, index, formats):
    file = formats / FILES["EnSight"]
    found = read(file, "volume", FoamSelection((), time)).points({"p": FieldSource("p")}).fields["p"]
    raw = (formats / f"ensight/data/{index:08d}/p").read_bytes()
    np.testing.assert_array_equal(found[:200, 0], np.frombuffer(raw, "<f4", 200, 3 * 80 + 4))


@pytest.mark.parametrize(
    ("patterns", "time", "message"),
    [
        ((), None, "choose the parts of the surface with --surface-patches from inlet, outlet, ground, sides, body"),
        (("wing",), None, "no part matches 'wing', it has internalMesh, inlet"),
        (("(",), None, "'(' is not a regular expression"),
        (("body",), "7", "no time '7', it has 5, 10"),
        (("body",), "step:2", "no time 'step:2', it has 5, 10"),
    ],
)
def test_a_choice_that_does_not_suit_says_what_there_is(patterns, time, message, formats):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(formats / FILES["EnSight"], "surface", FoamSelection(patterns, time))


def truncated(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize(
    ("form", "name", "change", "message"),
    [
        ("EnSight", "geometry", 0.5, "truncated or damaged"),
        ("EnSight", "geometry", 0.0, "empty"),
        ("EnSight", "data/00000001/p", 0.5, "truncated or damaged"),
        ("EnSight", "data/00000001/U", 0.99, "truncated or damaged"),
        ("EnSight", "data/00000001/U", None, "no such file, which case.case names"),
        ("EnSight", "case.case", 0.1, "it names no model"),
        ("ASCII EnSight", "geometry", 0.5, "truncated or damaged"),
        ("ASCII EnSight", "data/00000001/p", 0.5, "truncated or damaged"),
        ("vtm", "case_10/boundary/inlet.vtp", None, "no such file, which case_10.vtm names"),
        ("vtm", "case_10/internal.vtu", 0.5, "its end is missing"),
        ("vtm", "case_10.vtm", 0.5, "not a .vtm file, or a damaged one"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(form, name, change, message, formats, tmp_path, capfd):
    folder = tmp_path / "copy"
    shutil.copytree((formats / FILES[form]).parent, folder)
    truncated(folder / name, change) if change is not None else (folder / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as caught:
        read_surface(folder / Path(FILES[form]).name)
    assert len(str(caught.value).splitlines()) == 1
    assert Path(name).name in str(caught.value)
    assert capfd.readouterr() == ("", "")


def read_surface(file: Path) -> Any:
    return read_mesh(file, {"p", "U"}, branch="surface", selection=BODY)


def test_a_variable_with_the_wrong_number_of_values_is_refused(formats, tmp_path):
    shutil.copytree(formats / "ensight_ascii", tmp_path / "copy")
    file = tmp_path / "copy/data/00000001/p"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:10], *lines[11:]]))
    with pytest.raises(ValueError, match=r"part .internalMesh. has values|truncated or damaged"):
        read(tmp_path / "copy/case.case", "volume")


def test_blank_lines_before_keywords_hide_no_part(formats, tmp_path):
    shutil.copytree(formats / "ensight_ascii", tmp_path / "copy")
    for name in ("geometry", "data/00000001/p"):
        file = tmp_path / "copy" / name
        file.write_text(re.sub(r"(?m)^(?=part$|coordinates$|node id|hexa8$)", " \n\n", file.read_text()))
    found, wanted = (read(f / "case.case", "volume") for f in (tmp_path / "copy", formats / "ensight_ascii"))
    np.testing.assert_array_equal(found.dataset["p"], wanted.dataset["p"])
    assert len(read(tmp_path / "copy/case.case", "surface").patches) == 1


@pytest.mark.parametrize("name", ["geometry", "data/00000001/p"])
def test_an_empty_record_hides_no_part(name, formats, tmp_path):
    shutil.copytree(formats / "ensight", tmp_path / "copy")
    content = (tmp_path / "copy" / name).read_bytes()
    place = content.rindex(b"part".ljust(8, b"\0"))
    (tmp_path / "copy" / name).write_bytes(content[:place] + bytes(80) + content[place:])
    with pytest.raises(ValueError, match="damaged: expected a keyword, got an empty line"):
        read(tmp_path / "copy/case.case", "volume")


def test_times_may_go_on_in_further_lines_with_capital_exponents(formats, tmp_path):
    file = tmp_path / "copy/case.case"
    shutil.copytree(formats / "ensight_ascii", file.parent)
    text = re.sub(r"number of steps: +1", "number of steps: 3", file.read_text())
    text = text.replace("filename increment:     1", "filename numbers: 1 1 1").replace(
        "filename start number:  1\n", ""
    )
    file.write_text(text.replace(" 1.00000e+01", "0.0000E+00\n1.0000E-03 2.0000E-03"))
    assert open_parts(file).times() == [0, 1e-3, 2e-3]


def test_a_case_without_a_model_is_one_line(tmp_path):
    file = tmp_path / "a.case"
    file.write_text("FORMAT\ntype: ensight gold\nGEOMETRY\nmodel: cstep\n")
    with pytest.raises(ValueError, match="names no model"):
        read_mesh(file)


@pytest.mark.parametrize("name", ["my car.case", "a#b*.case", "7 é'.x.case"])
def test_any_name_of_a_case_file_is_read_again(name, tmp_path):
    plane = pyvista.Plane(i_resolution=2, j_resolution=1)
    plane.clear_data()
    names = ("a b", "a_b", "a#b", "c_0", "c")
    for i, field in enumerate(names):
        plane.cell_data[field] = np.full((2, 2) if field == "c" else 2, i, np.float32)
    write_mesh(tmp_path / name, Mesh(tmp_path / "plane.vtp", plane), {"q": np.ones(2, np.float32)}, location="cells")
    found = read_mesh(tmp_path / name).dataset
    values = {field: found[field][0] for field in found.cell_data.keys()}  # noqa: SIM118
    assert values == {"q": 1, "a_b_2": 0, "a_b": 1, "a_b_3": 2, "c_0": 3, "c_0_2": 4, "c_1": 4}


@pytest.mark.parametrize("names", [("my car.case", "my_car.case"), ("car.vtm", "car.vtpc"), ("a.car.vtm", "a_car.vtm")])
def test_each_file_of_parts_has_its_own_folder(names, tmp_path):
    plane = pyvista.Plane(i_resolution=2, j_resolution=1)
    for value, name in enumerate(names):
        mesh = Mesh(tmp_path / "plane.vtp", plane, patches=(("body", 2),))
        write_mesh(tmp_path / name, mesh, {"q": np.full(2, value, np.float32)}, location="cells")
    for value, name in enumerate(names):
        assert read_mesh(tmp_path / name).dataset.cell_data["q"].tolist() == [value, value]


def test_a_mesh_of_parts_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    plane, path = pyvista.Plane(i_resolution=2, j_resolution=1), tmp_path / "car.vtm"
    mesh = Mesh(tmp_path / "plane.vtp", plane, patches=(("one", 1), ("other", 1)))

    def write(value):
        write_mesh(path, mesh, {"q": np.full(2, value, np.float32)}, location="cells")

    write(1)
    write(2)
    before = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        left = iter([parts_writing.write_dataset])
        patch.setattr(parts_writing, "write_dataset", lambda *given: next(left)(*given))
        with pytest.raises(RuntimeError):  # after the first part
            write(3)
    assert read_mesh(path).dataset.cell_data["q"].tolist() == [2, 2]
    assert sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*")) == before
    assert len([file for file in tmp_path.iterdir() if file.is_dir()]) == 1


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("_DEEPEST_BLOCK", "b.vtm: blocks in blocks, expected at most 1 levels"),
        ("_DEEPEST", "a.vtm: files in files, expected at most 0 levels"),
        ("_MOST_LINKS", "a.vtm: it leads to more than 1 files"),
    ],
)
def test_blocks_and_links_of_a_collection_are_limited(limit, message, tmp_path, monkeypatch):
    pyvista.Plane().save(tmp_path / "c.vtp")
    blocks = {"a": '<DataSet file="b.vtm"/>', "b": '<Block><Block><DataSet file="c.vtp"/></Block></Block>'}
    for name, text in blocks.items():
        below = f"<vtkMultiBlockDataSet>{text}</vtkMultiBlockDataSet>"
        (tmp_path / f"{name}.vtm").write_text(f"<VTKFile>{below}</VTKFile>")
    assert len(linked_files(tmp_path / "a.vtm")) == 2
    monkeypatch.setattr(vtk_collections, limit, 0 if limit == "_DEEPEST" else 1)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_mesh(tmp_path / "a.vtm")


@pytest.mark.parametrize("name", ["../secret.vtu", "/etc/passwd"])
def test_files_elsewhere_are_refused(name, tmp_path):
    file = tmp_path / "a" / "b.vtm"
    file.parent.mkdir()
    (tmp_path / "secret.vtu").write_text("secret")
    below = f'<vtkMultiBlockDataSet><DataSet name="x" file="{name}"/></vtkMultiBlockDataSet>'
    file.write_text(f'<VTKFile type="vtkMultiBlockDataSet">{below}</VTKFile>')
    with pytest.raises(ValueError, match="expected one in its folder or deeper"):
        read_mesh(file)


def boxes() -> list[Any]:
    """Two halves of a lattice, each with a layer of the other as ghosts."""
    found = []
    for low, ghosts in ((0, 3), (2, 2)):
        grid = pyvista.ImageData(dimensions=(5, 3, 3), origin=(low, 0, 0)).cast_to_unstructured_grid()
        x = np.asarray(grid.cell_centers().points)[:, 0]
        is_ghost = x > ghosts if low == 0 else x < ghosts + 1
        grid.cell_data["vtkGhostType"] = is_ghost.astype(np.uint8)
        grid.cell_data["x"] = x
        found.append(grid)
    return found


@pytest.mark.parametrize("kind", ["pvtu", "vtpc", "pvd"])
def test_ghosts_are_dropped_and_pieces_kept(kind, tmp_path):
    for i, grid in enumerate(boxes()):
        grid.save(tmp_path / f"piece_{i}.vtu")
    lines = {
        "pvtu": '<PUnstructuredGrid><Piece Source="piece_0.vtu"/><Piece Source="piece_1.vtu"/></PUnstructuredGrid>',
        "vtpc": '<vtkPartitionedDataSetCollection><Partitions index="0"><DataSet file="piece_0.vtu"/>'
        '<DataSet file="piece_1.vtu"/></Partitions></vtkPartitionedDataSetCollection>',
        "pvd": '<Collection><DataSet timestep="1" file="piece_0.vtu"/><DataSet timestep="2" part="0" '
        'file="piece_0.vtu"/><DataSet timestep="2" part="0" file="piece_1.vtu"/></Collection>',
    }
    file = tmp_path / f"whole.{kind}"
    file.write_text(f"<VTKFile>{lines[kind]}</VTKFile>")
    mesh = read_mesh(file)
    assert [number for _, number in mesh.patches] == [12, 12]
    assert mesh.cell_sizes().sum() == 24
    np.testing.assert_array_equal(np.unique(mesh.dataset["x"], return_counts=True)[1], [4] * 6)
    assert any("ghosts" in line for line in mesh.left_out)
    assert {path.name for path in linked_files(file)} == {"piece_0.vtu", "piece_1.vtu"}
    assert part_arrays(file).cells == {"x", "vtkGhostType"}


@pytest.mark.parametrize("suffix", [".vtm", ".vtpc", ".pvtp", ".case", ".vtkhdf"])
def test_a_mesh_of_parts_is_written_with_them(suffix, formats, tmp_path):
    mesh = read(formats / FILES["EnSight"], "surface", FoamSelection(("body", "ground")))
    values = np.arange(mesh.dataset.n_cells, dtype=np.float32)
    write_mesh(tmp_path / f"out{suffix}", mesh, {"q": values}, location="cells")
    found = read_mesh(tmp_path / f"out{suffix}", branch="surface")
    assert [(name if suffix != ".pvtp" else "", number) for name, number in found.patches] == [
        (name if suffix != ".pvtp" else "", number) for name, number in mesh.patches
    ]
    np.testing.assert_array_equal(found.position("points")[:, 2].sum(), mesh.position("points")[:, 2].sum())
    size = mesh.cell_sizes()
    np.testing.assert_allclose((found.cell_sizes() * found.dataset["q"]).sum(), (size * values).sum(), rtol=1e-6)


def test_polyhedra_survive_ensight(formats, tmp_path):
    mesh = read(formats / "openfoam", "volume")
    write_mesh(tmp_path / "out.case", mesh, {"v": mesh.cell_sizes()}, location="cells")
    found = read_mesh(tmp_path / "out.case")
    np.testing.assert_allclose(found.cell_sizes(), found.dataset["v"], rtol=1e-5)


def test_the_surface_to_differentiate_is_that_of_the_chosen_parts(formats):
    assert surface_to_move(formats / FILES["EnSight"], selection=BODY).num_cells == 96
