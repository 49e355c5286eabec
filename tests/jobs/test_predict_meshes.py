import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.data.sampling import sample_points
from emmi_jax.inference.meshes import geometry_points, predict_on_meshes
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.mesh_outputs import check_outputs, largest_output, write_predictions
from emmi_jax.jobs.predict_meshes import MeshJob, predict_meshes
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.meshes.branch_mesh import geometry_mesh, query_mesh, reference_mesh
from emmi_jax.meshes.cells import measure_cells
from emmi_jax.meshes.forces import ForceReference
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.vtk import import_pyvista
from tests.data.case_folders import AXES, surface_dataset, volume_dataset, write_case_folder
from tests.data.case_folders import FIELDS as ARRAYS
from tests.jobs.tiny_runs import untrained_surrogate

FIELDS = {"surface": {"pressure_coefficient": 1}, "volume": {"velocity": 3, "pressure_coefficient": 1}}
SOURCES = {b: {n: FieldSource(a) for n, a in arrays.items()} for b, arrays in ARRAYS.items()}


@pytest.fixture(scope="module")
def trained() -> Surrogate:
    return untrained_surrogate(FIELDS, -3.0, 3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case_folder(tmp_path_factory.mktemp("data") / "case")


def with_context(surrogate: Surrogate, **anchors: np.ndarray) -> Surrogate:
    return replace(surrogate, context=Context(anchors))


def predict(trained: Surrogate, folder: Path, out: Path, *branches: str, **changes: Any) -> str:
    files = {"surface": folder / "boundary_1.vtp", "volume": folder / "volume_1.vtu"}
    printed = io.StringIO()
    meshes = {branch: files[branch] for branch in branches or files}
    job = MeshJob(**{"meshes": meshes, "out": out, "chunk_size": 64} | changes)
    predict_meshes(job, trained, {}, console=Console(file=printed, width=80))
    return printed.getvalue()


def stored(path: Path, *names: str) -> dict[str, np.ndarray]:
    return read_mesh(path).points({name: FieldSource(name) for name in names}, location="cells").fields


def test_meshes_come_back_with_the_fields_that_their_cell_centres_get(trained, folder, tmp_path):
    predict(trained, folder, tmp_path / "out", geometry=folder / "body_1.stl")
    points = {"surface": measure_cells(surface_dataset()).centre, "volume": measure_cells(volume_dataset()).centre}
    queries = {name: np.asarray(position) for name, position in points.items()}
    encoded = trained.encode(points=queries, geometry=geometry_points(geometry_mesh(folder / "body_1.stl")))
    expected = encoded.predict(queries, chunk_size=100)
    for file, branch in (("boundary_1.vtp", "surface"), ("volume_1.vtu", "volume")):
        fields = stored(tmp_path / "out" / file, *(f"predicted_{name}" for name in FIELDS[branch]))
        for name in FIELDS[branch]:
            assert fields[f"predicted_{name}"].dtype == np.float32
            np.testing.assert_allclose(fields[f"predicted_{name}"], expected[f"{branch}_{name}"], rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["boundary_1.vtp", "volume_1.vtu"]


@pytest.mark.parametrize("suffix", ["vtm", "pvtp"])
def test_a_file_of_parts_comes_back_as_one(suffix, trained, tmp_path):
    kind = {"vtm": "vtkMultiBlockDataSet", "pvtp": "PPolyData"}[suffix]
    links = []
    for i, dataset in enumerate((surface_dataset(), surface_dataset().translate((1, 0, 0)))):
        dataset.save(tmp_path / f"{i}.vtp")
        links.append(f'<DataSet name="wing{i}" file="{i}.vtp"/>' if suffix == "vtm" else f'<Piece Source="{i}.vtp"/>')
    file = tmp_path / f"wings.{suffix}"
    file.write_text(f'<VTKFile type="{kind}"><{kind}>{"".join(links)}</{kind}></VTKFile>')
    surrogate = with_context(trained, volume=measure_cells(volume_dataset()).centre[:6])
    job = MeshJob(meshes={"surface": file}, out=tmp_path / "out")
    predict_meshes(job, surrogate, {}, console=Console(file=io.StringIO()))
    mesh, parts = read_mesh(tmp_path / f"out/wings_surface.{suffix}"), [surface_dataset().n_cells] * 2
    assert [number for _, number in mesh.patches] == parts
    names = [name for name, _ in mesh.patches]
    assert names == (["wing0", "wing1"] if suffix == "vtm" else ["", ""])
    assert mesh.dataset["predicted_pressure_coefficient"].shape == (sum(parts),)
    np.testing.assert_array_equal(mesh.dataset["Cp"], np.tile(surface_dataset().cell_data["Cp"], 2))


def test_the_mesh_and_its_own_arrays_stay(trained, folder, tmp_path):
    stored = with_context(trained, volume=measure_cells(volume_dataset()).centre[:6])
    job = MeshJob(meshes={"surface": folder / "boundary_1.vtp"}, out=tmp_path)
    predict_meshes(job, stored, {}, console=Console(file=io.StringIO()))
    again, before = read_mesh(tmp_path / "boundary_1.vtp"), read_mesh(folder / "boundary_1.vtp")
    np.testing.assert_array_equal(again.position("points"), before.position("points"))
    np.testing.assert_array_equal(again.dataset.cell_data["Cp"], before.dataset.cell_data["Cp"])


def test_errors_are_stored_beside_predictions_and_measured(trained, folder, tmp_path):
    printed = predict(trained, folder, tmp_path, compare=True, fields=folder / "fields.json")
    errors = json.loads((tmp_path / "comparison.json").read_text())
    assert list(errors) == ["surface/pressure_coefficient", "volume/velocity", "volume/pressure_coefficient"]
    for key, file, exact in (
        ("surface/pressure_coefficient", "boundary_1.vtp", surface_dataset().cell_data["Cp"]),
        ("volume/velocity", "volume_1.vtu", volume_dataset().cell_data["U"]),
    ):
        name = key.partition("/")[2]
        fields = stored(tmp_path / file, f"predicted_{name}", f"error_{name}")
        exact = np.asarray(exact, np.float64).reshape(len(exact), -1)
        error = fields[f"predicted_{name}"] - exact
        np.testing.assert_allclose(fields[f"error_{name}"], error, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(errors[key]["relative_l2"], np.linalg.norm(error) / np.linalg.norm(exact), rtol=1e-6)
        np.testing.assert_allclose(errors[key]["mae"], np.abs(error).mean(), rtol=1e-6)
        np.testing.assert_allclose(errors[key]["max"], np.abs(error).max(), rtol=1e-6)
        assert f"{errors[key]['relative_l2']:#.4g}" in next(line for line in printed.splitlines() if key in line)
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80


def test_reference_arrays_are_those_of_the_run_or_named_like_the_field(tmp_path):
    dataset = surface_dataset()
    dataset.cell_data["pMeanTrim"] = dataset.cell_data["Cp"]
    dataset.cell_data["speed"] = dataset.cell_data["Cp"]
    dataset.save(tmp_path / "a.vtp")
    fields = {"pressure": 1, "speed": 1, "vorticity": 3}
    mesh = reference_mesh(tmp_path / "a.vtp", fields, {"pressure": FieldSource("pMeanTrim")})
    assert list(mesh.reference) == ["pressure", "speed"]
    with pytest.raises(ValueError, match=r"nothing to compare with: expected the arrays \{'vorticity': 'vorticity'\}"):
        reference_mesh(tmp_path / "a.vtp", {"vorticity": 3}, {})
    with pytest.raises(ValueError, match="array of 'speed' has 1 channels, the model 3"):
        reference_mesh(tmp_path / "a.vtp", {"speed": 3}, {})


def test_queries_lie_on_points_where_only_points_carry_arrays(tmp_path):
    dataset = surface_dataset()
    dataset.clear_data()
    dataset.save(tmp_path / "bare.vtp")
    dataset.point_data["p"] = np.ones(dataset.n_points)
    dataset.save(tmp_path / "a.vtp")
    num = {name: len(query_mesh(tmp_path / f"{name}.vtp").position) for name in ("a", "bare")}
    assert num == {"a": dataset.n_points, "bare": dataset.n_cells}


def test_normals_colours_and_numbers_do_not_choose_where_to_predict_and_forces_do(tmp_path):
    dataset = surface_dataset()
    dataset.clear_data()
    dataset.point_data["Normals"] = np.ones((dataset.n_points, 3))
    dataset.point_data["RGB"] = np.ones((dataset.n_points, 3), np.uint8)
    dataset.save(tmp_path / "a.vtp")
    assert query_mesh(tmp_path / "a.vtp").location == "cells"
    dataset.point_data["p"] = np.ones(dataset.n_points)
    dataset.save(tmp_path / "b.vtp")
    assert query_mesh(tmp_path / "b.vtp", in_cells=True).location == "cells"


def test_queries_lie_on_points_where_there_are_no_cells(tmp_path):
    dataset = import_pyvista().PolyData(np.eye(3))
    dataset.verts = np.zeros(0, int)
    dataset.save(tmp_path / "a.vtp")
    mesh = query_mesh(tmp_path / "a.vtp")
    assert (mesh.location, len(mesh.position)) == ("points", 3)


def test_anchors_are_drawn_by_cell_size_for_a_run_that_drew_them_so(trained, folder):
    read = {"surface": query_mesh(folder / "boundary_1.vtp"), "volume": query_mesh(folder / "volume_1.vtu")}
    weighted = replace(trained, sampling=replace(trained.sampling, method="weighted"))
    fields = predict_on_meshes(weighted, read)
    rng = np.random.default_rng(0)
    anchors = {
        branch: mesh.position[sample_points(rng, mesh.position, 6, method="weighted", weights=mesh.mesh.cell_sizes())]
        for branch, mesh in read.items()
    }
    surface = read["surface"].position
    geometry = Geometry(surface[sample_points(rng, surface, 8)], np.arange(4, dtype=np.int32))
    expected = predict_on_meshes(replace(trained, context=Context(anchors, geometry)), read)
    np.testing.assert_allclose(fields["volume"]["velocity"], expected["volume"]["velocity"], rtol=1e-5, atol=1e-5)


def test_a_surface_of_triangles_comes_back_as_vtp(trained, folder, tmp_path):
    printed = predict(
        trained, folder, tmp_path, meshes={"surface": folder / "body_1.stl", "volume": folder / "volume_1.vtu"}
    )
    assert (tmp_path / "body_1.vtp").is_file()
    assert "body_1.vtp" in printed


def test_figures_are_drawn_beside_the_mesh_when_asked_for(trained, folder, tmp_path):
    stored = with_context(trained, volume=measure_cells(volume_dataset()).centre[:6])
    mesh, sources = folder / "boundary_1.vtp", folder / "fields.json"
    job = MeshJob(meshes={"surface": mesh}, out=tmp_path, compare=True, fields=sources, figures="png")
    printed = io.StringIO()
    predict_meshes(job, stored, {}, console=Console(file=printed))
    figures = ["surface_pressure_coefficient.png", "surface_pressure_coefficient_parity.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["boundary_1.vtp", "comparison.json", *figures]
    assert all(str(tmp_path / name) in printed.getvalue() for name in figures)


def test_points_outside_the_training_box_are_counted(trained, folder, tmp_path):
    small = Normalizer.from_box([-2.0] * 3, [1.0] * 3, position_range=100.0, fields=trained.normalizer.fields)
    printed = predict(replace(trained, normalizer=small), folder, tmp_path)
    num = small.num_outside(measure_cells(volume_dataset()).centre)
    assert num > 0
    assert f"volume_1.vtu: {num} of {volume_dataset().n_cells} points are outside the box" in printed.replace("\n", " ")
    assert "boundary_1.vtp: " not in printed
    assert "warning" not in predict(trained, folder, tmp_path)


def test_forces_are_printed_and_stored_and_an_open_surface_is_said(trained, folder, tmp_path):
    dataset = surface_dataset()
    open_surface = dataset.copy()
    open_surface.faces = np.asarray(dataset.faces).reshape(-1, 4)[4:].reshape(-1)
    open_surface.clear_data()
    open_surface.save(tmp_path / "open.vtp")
    printed = predict(
        trained,
        folder,
        tmp_path / "out",
        meshes={"surface": tmp_path / "open.vtp", "volume": folder / "volume_1.vtu"},
        forces=ForceReference(area=1.0, speed=1.0),
    )
    forces = json.loads((tmp_path / "out" / "forces.json").read_text())
    assert set(forces) == {"predicted"}
    assert f"predicted: Cd {forces['predicted']['cd']:.4f}  Cl {forces['predicted']['cl']:.4f}" in printed
    assert "normals: outward by the volume that each part encloses: 1 part with gaps; 6 open edges" in printed


def test_what_cannot_work_is_refused_before_anything_is_written(trained, folder, tmp_path):
    volume = folder / "volume_1.vtu"
    (tmp_path / "file").touch()
    no_surface = tmp_path / "cloud.vtp"
    import_pyvista().PolyData(np.zeros((3, 3))).save(no_surface)
    force = ForceReference(area=1.0, speed=1.0)
    before = sorted(folder.iterdir()) + sorted(tmp_path.iterdir())
    for changes, message in (
        (
            {"meshes": {"wing": volume}},
            r"the model has the branches \['surface', 'volume'\], got meshes for \['wing'\]",
        ),
        ({"meshes": {}}, r"got meshes for \[\]"),
        ({"meshes": {"surface": folder / "none.vtp", "volume": volume}}, r"none\.vtp: no such file"),
        ({"meshes": {"volume": volume}}, "the model needs a mesh for the branch 'surface' too"),
        ({"meshes": {"volume": volume, "surface": volume}}, "two meshes would become the same file"),
        ({"out": folder}, "would replace"),
        ({"out": tmp_path / "file"}, "file is a file, expected a folder"),
        ({"meshes": {"surface": no_surface, "volume": volume}, "forces": force}, "expected a surface of polygons"),
        ({"fields": folder / "fields.json"}, "only used to compare"),
        ({"compare": True, "fields": folder / "none.json"}, r"none\.json: no such file"),
        ({"compare": True}, r"nothing to compare with: expected the arrays \{'pressure_coefficient'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            predict(trained, folder, **{"out": tmp_path / "out"} | changes)
        assert sorted(folder.iterdir()) + sorted(tmp_path.iterdir()) == before


def test_a_file_that_an_input_names_is_an_input(tmp_path):
    link = '<DataSet index="0" file="volume.vtu"/>'
    (tmp_path / "all.vtm").write_text(
        f'<VTKFile type="vtkMultiBlockDataSet"><vtkMultiBlockDataSet>{link}</vtkMultiBlockDataSet></VTKFile>'
    )
    import_pyvista().examples.cells.Tetrahedron().save(tmp_path / "volume.vtu")
    with pytest.raises(ValueError, match=r"volume\.vtu would replace .*volume\.vtu, which is read"):
        check_outputs(tmp_path, [tmp_path / "all.vtm", Path("elsewhere/volume.vtu")], ["surface", "volume"])


def test_a_disk_that_may_be_too_small_is_said_before_predicting(trained, folder, tmp_path, monkeypatch):
    reference = {"compare": True, "fields": folder / "fields.json"}
    free = sum((folder / name).stat().st_size for name in ("boundary_1.vtp", "volume_1.vtu"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(OSError, match=r"out: up to .* MiB will be written and .* MiB are free"):
        predict(trained, folder, tmp_path / "out", **reference)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compare", [True, False])
def test_no_more_is_written_than_was_foretold(compare, trained, folder, tmp_path):
    paths = {"surface": folder / "boundary_1.vtp", "volume": folder / "volume_1.vtu"}
    meshes = {b: reference_mesh(p, FIELDS[b], SOURCES[b]) if compare else query_mesh(p) for b, p in paths.items()}
    predict(trained, folder, tmp_path, compare=compare, fields=folder / "fields.json" if compare else None)
    written = sum((tmp_path / path.name).stat().st_size for path in paths.values())
    assert 0.1 < written / largest_output(meshes, FIELDS) < 1


def test_fields_of_a_volume_are_on_disk_until_they_are_written_and_leave_nothing(
    trained, folder, tmp_path, monkeypatch
):
    kept: dict[str, Any] = {}

    def note(out, predicted, meshes):
        kept.update({f"{b}/{name}": type(array) for b, arrays in predicted.items() for name, array in arrays.items()})
        return write_predictions(out, predicted, meshes)

    monkeypatch.setattr("emmi_jax.jobs.predict_meshes.write_predictions", note)
    predict(trained, folder, tmp_path / "out")
    assert kept == {f"{b}/{name}": np.memmap for b, names in FIELDS.items() for name in names}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["boundary_1.vtp", "volume_1.vtu"]


def test_forces_without_a_surface_are_refused(trained, folder, tmp_path):
    job = MeshJob(meshes={"volume": folder / "volume_1.vtu"}, out=tmp_path, forces=ForceReference(area=1.0, speed=1.0))
    stored = with_context(trained, surface=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="forces need a mesh for the branch 'surface'"):
        predict_meshes(job, stored, {}, console=Console(file=io.StringIO()))


def test_geometry_points_lie_on_the_triangles_of_the_case(folder):
    level = np.linalg.norm(geometry_points(geometry_mesh(folder / "body_1.stl")) / AXES, axis=1)
    assert 0.9 < level.min() <= level.max() < 1 + 1e-6
