import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.cli import main
from emmi_jax.config import FoamSelection
from emmi_jax.config.jobs import EvaluationJob, ForceOptions, PrepareJob
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.cases import ReadOptions
from emmi_jax.data.load import load_dataset
from emmi_jax.data.open import open_cases
from emmi_jax.data.readers import case_names
from emmi_jax.data.readers.openfoam import proposed_sources
from emmi_jax.jobs.evaluate import evaluate_run
from emmi_jax.jobs.notes import describe_sources
from emmi_jax.jobs.prepare import prepare
from emmi_jax.jobs.stats import file_statistics
from emmi_jax.meshes.mesh import FieldSource
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run
from tests.data.case_folders import write_case_folder
from tests.jobs import tiny_runs
from tests.jobs.tiny_runs import run, tiny_settings
from tests.meshes.foam_cases import FIELDS, body_centres, cell_centres, write_foam_case

BODY = FoamSelection(("body",))
CHANGES = tiny_runs.GEOMETRY | {
    "physics_blocks": ("perceiver", "cross"),
    "num_anchors": 2,
    "num_queries": 1,
    "num_test_anchors": 2,
    "surface_patches": ("body",),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_foam_case(root / "run_1")
    write_foam_case(root / "run_2", binary=True)
    write_foam_case(root / "run_10", processors=2)
    (root / "split.json").write_text(json.dumps({"train": ["run_1", "run_2"], "test": ["run_10"]}))
    return root


def test_a_folder_of_openfoam_cases_is_a_data_set_with_its_split(cases):
    opened = open_cases(str(cases), foam=BODY)
    assert opened.names == ["run_1", "run_2", "run_10"]
    assert opened.stored_split().test == ["run_10"]
    for name in opened.names:
        case = opened.cases.read(name)
        pressure = case.points["volume"].fields["pressure"][:, 0]
        np.testing.assert_allclose(pressure, 1.1 * FIELDS["p"](case.points["volume"].position), rtol=1e-5, atol=1e-5)
        assert len(case.points["surface"].position) == len(body_centres())
        assert np.ptp(case.geometry, axis=0) == pytest.approx([0.5, 0.4, 0.3], rel=1e-3)


def test_a_run_is_trained_evaluated_and_remembers_its_patches_and_features(cases, tmp_path):
    features = {"surface": ("normal",), "volume": ("distance", "wallShearStress"), "geometry": ("normal",)}
    few = {"num_geometry_points": 6, "num_supernodes": 3, "num_test_supernodes": 3}
    run(tiny_settings(cases, steps=1, features=features, **CHANGES | few), tmp_path / "run")
    config = RunDirectory.open(tmp_path / "run").read_config()
    assert {branch: sum(names.values()) for branch, names in load_run(tmp_path / "run").features.items()} == {
        "surface": 3,
        "volume": 4,
        "geometry": 3,
    }
    assert config.foam(None, None) == BODY
    assert config.foam(("ground",), "0") == FoamSelection(("ground",), "0")
    # Of several patches, each has its share of the forces.
    job = EvaluationJob(run=tmp_path / "run", surface_patches=("ground", "body"), forces=ForceOptions(speed=1.0))
    evaluate_run(job, console=Console(file=io.StringIO()))
    found = json.loads((tmp_path / "run/evaluation_test.json").read_text())
    assert set(found["cases"]) == {"run_10"}
    of_case = found["forces"]["cases"]["run_10"]
    for kind in ("predicted", "reference"):
        shares = [of_patch["cd"][kind] for of_patch in of_case["patches"].values()]
        assert of_case["cd"][kind] == pytest.approx(sum(shares))
    assert set(of_case["patches"]) == {"ground", "body"}
    assert set(found["mean"]) == {"surface/pressure", "surface/wallshearstress", "volume/velocity", "volume/pressure"}


def test_a_plan_shows_fields_time_and_patches(cases):
    settings = tiny_settings(cases / "run_1", **CHANGES | {"time": "0", "num_anchors": 1})
    assert describe_sources(load_dataset(settings)) == [
        "surface    pressure ← p, wallshearstress ← wallShearStress",
        "volume     velocity ← U, pressure ← p",
        f"{cases / 'run_1'}: time 0, surface: body (6 faces); other patches: inlet (9 faces), outlet (9 faces), ground "
        "(12 faces), sides (36 faces)",
    ]


def test_means_in_time_are_preferred_and_unknown_arrays_left_out():
    arrays = {"surface": ["p", "U"], "volume": ["U", "UMean", "p", "omega", "phi", "mine"]}
    assert proposed_sources(arrays) == {
        "surface": {"pressure": FieldSource("p")},
        "volume": {"velocity": FieldSource("UMean"), "pressure": FieldSource("p"), "omega": FieldSource("omega")},
    }


def test_fields_json_names_other_arrays(cases, tmp_path):
    case = shutil.copytree(cases / "run_1", tmp_path / "case")
    (case / "fields.json").write_text(json.dumps({"surface": {"load": "p"}, "volume": {"speed": "U"}}))
    points, _ = load_dataset(tiny_settings(case, **CHANGES | {"num_anchors": 1})).test_points, None
    assert set(points["surface"].fields) == {"load"}
    assert set(CaseFolder.open(case).sources()["volume"]) == {"speed"}


def test_other_patches_or_another_time_are_other_data(cases):
    selections = [BODY, FoamSelection(), FoamSelection(("body",), "0")]
    assert len({CaseFolder.open(cases / "run_1", foam).fingerprint(cases) for foam in selections}) == 3


def test_a_store_is_made_of_cases(cases, tmp_path):
    prepare(
        PrepareJob(data=cases, out=str(tmp_path / "store"), surface_patches=BODY.patches),
        console=Console(file=io.StringIO()),
    )
    opened = open_cases(str(tmp_path / "store"))
    assert opened.names == ["run_1", "run_2", "run_10"]
    shapes = opened.cases.shapes("run_10")
    assert {branch: shape.num_points for branch, shape in shapes.items()} == {
        "surface": 6,
        "volume": len(cell_centres()),
    }


def test_statistics_are_those_of_walls_and_cells(cases):
    found = file_statistics([cases / "run_1"])
    wanted = 1.1 * FIELDS["p"](cell_centres())
    assert found["volume/p"].mean == pytest.approx([wanted.mean()], rel=1e-5)
    assert found["surface/p"].count == 6 + 12
    assert file_statistics([cases / "run_1"], FoamSelection(("body",)))["surface/p"].count == 6


def test_broken_cases_are_named_together(cases, tmp_path, capsys):
    root = shutil.copytree(cases, tmp_path / "data")
    (root / "run_10/processor0/100/p").unlink()
    (root / "run_2/constant/polyMesh/faces").unlink()
    assert main(["train", "--data", str(root), "--surface-patches", "body", "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "2 of 3 cases are unusable: run_2: " in message
    assert "run_10: no array 'p' at time 100" in message
    assert case_names(root) == ["run_1", "run_2", "run_10"]


def test_area_vectors_point_out_of_the_body(cases):
    foam = FoamSelection(("body",))
    opened = open_cases(str(cases), ReadOptions(with_cell_sizes=True, with_area_vectors=True), foam)
    surface = opened.cases.read(opened.names[0]).points["surface"]
    np.testing.assert_allclose(np.linalg.norm(surface.area_vector, axis=1), surface.cell_size, rtol=1e-5)
    outwards = surface.position - surface.position.mean(axis=0)
    assert (np.vecdot(surface.area_vector, outwards) > 0).all()


@pytest.mark.parametrize(
    ("command", "of_what"),
    [
        (["train", "--data", "{meshes}", "--dry-run"], "{meshes} is none"),
        (["train", "--dry-run"], "the built-in data set is none"),
        (["prepare", "{meshes}", "--out", "{meshes}_store"], "{meshes} is none"),
        (["stats", "{meshes}/run_1/boundary_1.vtp"], "{meshes}/run_1/boundary_1.vtp is none"),
    ],
)
@pytest.mark.parametrize(
    ("option", "given"), [(["--surface-patches", "body"], "surface patches 'body'"), (["--time", "3"], "time '3'")]
)
def test_patches_and_times_of_other_data_are_refused(command, of_what, option, given, tmp_path, capsys):
    write_case_folder(tmp_path / "run_1")
    write_case_folder(tmp_path / "run_2")
    assert main([word.format(meshes=tmp_path) for word in [*command, *option]]) == 2
    expected = f"{given}: only OpenFOAM cases and files of several meshes have them, {of_what.format(meshes=tmp_path)}"
    assert expected in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run_1", "run_2"]


def test_patches_of_points_or_mesh_files_are_refused(tmp_path, capsys):
    command = ["predict", "run", "--surface", "car.vtp", "--out", str(tmp_path), "--surface-patches", "body"]
    assert main(command) == 2
    assert "--surface-patches and --time are for OpenFOAM cases and files of several meshes" in capsys.readouterr().err
