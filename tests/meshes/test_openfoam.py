from pathlib import Path

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.openfoam import foam_arrays, foam_branches, foam_files, foam_patches, read_foam
from emmi_jax.meshes.openfoam_files import FoamFile
from emmi_jax.meshes.openfoam_times import foam_time
from emmi_jax.meshes.surfaces import surface_elements
from emmi_jax.meshes.vtk import import_pyvista
from tests.meshes.foam_cases import FIELDS, body_centres, cell_centres, write_foam_case

BODY = FoamSelection(("bo.*",))
KINDS = {
    "ascii": {},
    "binary": {"binary": True},
    "compressed": {"compress": True},
    "binary, compressed": {"binary": True, "compress": True},
    "decomposed": {"processors": 2},
    "decomposed, binary": {"processors": 2, "binary": True},
}


def sorted_rows(position: np.ndarray) -> np.ndarray:
    return np.lexsort(np.round(position, 6).T)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_and_faces_of_patches_carry_the_fields_of_the_latest_time(kind, tmp_path):
    case = write_foam_case(tmp_path / "case", times=("0", "20", "100"), **KINDS[kind])
    meshes = read_foam(case, ["surface", "volume"], BODY)
    assert foam_time(case) == "100"
    for branch, expected in (("surface", body_centres()), ("volume", cell_centres())):
        position = meshes[branch].position("cells")
        rows, wanted = sorted_rows(position), expected[sorted_rows(expected)]
        np.testing.assert_allclose(position[rows], wanted, atol=1e-6)
        for name in ("p", "U"):
            values = np.asarray(meshes[branch].dataset.cell_data[name])[rows]
            np.testing.assert_allclose(values, 1.1 * FIELDS[name](wanted), rtol=1e-5, atol=1e-6)
    assert surface_elements(meshes["surface"]).num_open_edges == 0


@pytest.mark.parametrize("kind", ["ascii", "binary"])
def test_cells_keep_the_order_of_the_solver(kind, tmp_path):
    mesh = read_foam(write_foam_case(tmp_path / "case", **KINDS[kind]), ["volume"])["volume"]
    np.testing.assert_allclose(mesh.position("cells"), cell_centres(), atol=1e-6)


def test_a_time_is_found_by_its_number(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("0", "20", "100"))
    selection = FoamSelection(BODY.patches, "20.0")
    np.testing.assert_allclose(
        read_foam(case, ["volume"], selection)["volume"].dataset.cell_data["p"],
        1.02 * FIELDS["p"](cell_centres()),
        rtol=1e-5,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match=r"no time '30', it has 0, 20, 100"):
        read_foam(case, ["volume"], FoamSelection(time="30"))


def test_results_of_a_decomposed_run_are_read_though_the_whole_mesh_is_there(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("0",))
    write_foam_case(case, processors=2, times=("0", "100"))
    mesh = read_foam(case, ["volume"])["volume"]
    assert mesh.dataset.n_cells == len(cell_centres())
    np.testing.assert_allclose(
        mesh.dataset.cell_data["p"], 1.1 * FIELDS["p"](mesh.position("cells")), rtol=1e-5, atol=1e-6
    )


def test_the_surface_is_the_walls_or_the_patches_that_match(tmp_path):
    case = write_foam_case(tmp_path / "case")
    assert [name for name, patch in foam_patches(case).items() if patch.is_chosen] == ["ground", "body"]
    assert foam_patches(case)["body"].num_faces == 6
    several = FoamSelection(("body", "in.*"))
    assert read_foam(case, ["surface"], several)["surface"].patches == (("inlet", 9), ("body", 6))
    for patterns, message in (
        (("wing",), "no patch matches 'wing', it has inlet, outlet, ground, sides, body"),
        (("(",), "'\\(' is not a regular expression"),
    ):
        with pytest.raises(ValueError, match=message):
            read_foam(case, ["surface"], FoamSelection(patterns))


def test_only_the_arrays_asked_for_are_read(tmp_path):
    case = write_foam_case(tmp_path / "case")
    assert foam_arrays(case)["volume"] == {"p", "U", "wallShearStress"}
    assert read_foam(case, ["volume"], arrays={"volume": ["p"]})["volume"].dataset.cell_data.keys() == ["p"]


def test_a_mesh_without_any_time_can_be_predicted_on(tmp_path):
    case = write_foam_case(tmp_path / "case", times=())
    meshes = read_foam(case, foam_branches(case), BODY)
    assert meshes["volume"].dataset.n_cells == len(cell_centres())
    assert meshes["surface"].dataset.n_cells == 6
    assert foam_time(case) is None


@pytest.mark.parametrize("layout", ["whole case", "folder VTK", "folder of a time", "legacy"])
def test_output_of_foam_to_vtk_is_read_as_it_lies_on_disk(layout, tmp_path):
    case = write_foam_case(tmp_path / "source")
    volume = read_foam(case, ["volume"])["volume"].dataset
    body, ground = (
        read_foam(case, ["surface"], FoamSelection((name,)))["surface"].dataset for name in ("body", "ground")
    )
    vtk = tmp_path / "case" / "VTK"
    if layout == "legacy":
        files = {vtk / "case_7.vtk": volume, vtk / "body/body_7.vtk": body, vtk / "ground/ground_7.vtk": ground}
    else:
        time = vtk / "case_7"
        files = {time / "internal.vtu": volume, time / "boundary/body.vtp": body, time / "boundary/ground.vtp": ground}
    for file, dataset in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        dataset.save(file)
    path = {"folder VTK": vtk, "folder of a time": vtk / "case_7"}.get(layout, tmp_path / "case")
    assert foam_branches(path) == ("surface", "volume")
    assert foam_time(path) == "7"
    assert foam_arrays(path, BODY) == {
        "surface": {"p", "U", "wallShearStress"},
        "volume": {"p", "U", "wallShearStress"},
    }
    assert {file.name for file in foam_files(path)} == {file.name for file in files}
    meshes = read_foam(path, ["surface", "volume"], BODY)
    np.testing.assert_array_equal(meshes["volume"].dataset.cell_data["U"], volume.cell_data["U"])
    np.testing.assert_array_equal(meshes["surface"].dataset.cell_data["p"], body.cell_data["p"])
    with pytest.raises(ValueError, match="choose with --surface-patches from body, ground"):
        read_foam(path, ["surface"])


def test_damaged_cases_are_refused(tmp_path):
    def damaged(name: str, file: str, content: bytes | None) -> Path:
        case = write_foam_case(tmp_path / name)
        path = case / file
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        return case

    whole, faces = ((write_foam_case(tmp_path / n) / "constant/polyMesh" / n).read_bytes() for n in ("points", "faces"))
    for name, file, content, message in (
        ("a", "constant/polyMesh/owner", None, "no file owner"),
        ("b", "constant/polyMesh/points", whole[: len(whole) // 2], "damaged"),
        ("c", "constant/polyMesh/faces", b"nothing", "damaged"),
        ("d", "100/p", b"FoamFile { class volScalarField; }", "no array 'p'"),
        ("e", "constant/polyMesh/boundary", None, "no file boundary"),
        ("f", "constant/polyMesh/faces", faces.replace(b"4(0 ", b"4(99999 ", 1), "damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            read_foam(damaged(name, file, content), ["surface", "volume"], BODY)["volume"].points(
                {"p": FieldSource("p")}
            )
    (tmp_path / "collated/processors4/constant/polyMesh").mkdir(parents=True)
    with pytest.raises(ValueError, match="collated: run reconstructPar"):
        foam_branches(tmp_path / "collated")
    with pytest.raises(ValueError, match="neither an OpenFOAM case nor"):
        read_foam(tmp_path, ["volume"])


def test_nothing_is_printed_by_the_reader(tmp_path, capfd):
    case = write_foam_case(tmp_path / "case")
    (case / "constant/polyMesh/points").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        read_foam(case, ["volume"])
    assert capfd.readouterr() == ("", "")
    assert import_pyvista() is not None


@pytest.mark.parametrize("layout", ["case", "foamToVTK", "legacy foamToVTK"])
def test_normals_of_patches_point_into_the_fluid_though_the_ground_is_a_wall_too(layout, tmp_path):
    case = write_foam_case(tmp_path / "source")
    meshes = [read_foam(case, ["surface"])["surface"]]
    if layout != "case":
        names = ("VTK/c_7/boundary/{}.vtp", "VTK/{0}/{0}_7.vtk")
        files = [tmp_path / names["legacy" in layout].format(name) for name in ("ground", "body")]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            read_foam(case, ["surface"], FoamSelection((file.stem.partition("_")[0],)))["surface"].dataset.save(file)
        meshes = list(map(read_mesh, files))
    elements = [surface_elements(mesh, require_closed=False) for mesh in meshes]
    normal = np.concatenate([of_patch.normal for of_patch in elements])
    outwards = body_centres() - cell_centres([(1, 1, 1)])
    np.testing.assert_allclose(normal[:12], np.tile([0.0, 0.0, 1.0], (12, 1)), atol=1e-6)
    rows = sorted_rows(meshes[-1].position("cells")[-6:])
    wanted = (outwards / np.linalg.norm(outwards, axis=1)[:, None])[sorted_rows(body_centres())]
    np.testing.assert_allclose(normal[12:][rows], wanted, atol=1e-6)
    assert {of_patch.side for of_patch in elements} == {"faces of OpenFOAM point out of the fluid"}


def test_binary_files_without_arch_are_not_said_to_be_damaged(tmp_path):
    head = b"FoamFile\n{\n    version 2.0;\n    format binary;\n    class labelList;\n    object owner;\n}\n"
    (tmp_path / "owner").write_bytes(head + b"\n960\n(" + np.arange(960, dtype="<i8").tobytes()[:3900] + b")\n")
    with pytest.raises(ValueError, match=r"owner: [^\n]*: its header has no arch: expected labels of 32") as e:
        FoamFile(tmp_path / "owner").labels()
    assert "damaged" not in str(e.value)


def test_all_patches_in_one_file_of_foam_to_vtk_are_the_surface(tmp_path):
    folder = tmp_path / "VTK" / "case_7"
    folder.mkdir(parents=True)
    pyvista = import_pyvista()
    pyvista.ImageData(dimensions=(3, 3, 3)).cast_to_unstructured_grid().save(folder / "internal.vtu")
    pyvista.Box().save(folder / "boundary.vtp")
    for path in (folder, tmp_path):
        assert foam_branches(path) == ("surface", "volume")
        assert read_foam(path, ["surface"])["surface"].dataset.n_cells == 6
