import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.load import branches_of, load_dataset
from emmi_jax.data.mesh_dataset import DRIVAERML, parse_sources, read_sources, sources_to_json
from emmi_jax.data.open import open_cases
from emmi_jax.data.samples import Sample
from emmi_jax.meshes.cells import POSITIONS
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run
from emmi_jax.training.evaluation import validate
from emmi_jax.training.plan import default_settings
from tests.data.case_folders import AXES, BODY, surface_dataset, volume_dataset, write_case_folder
from tests.jobs import tiny_runs
from tests.jobs.tiny_runs import NO_GEOMETRY, run, tiny_settings

GEOMETRY = tiny_runs.GEOMETRY | {"physics_blocks": ("perceiver", "cross")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case_folder(tmp_path_factory.mktemp("data") / "case")


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "mesh"
    run(tiny_settings(folder, **GEOMETRY), path)
    return path


def test_a_case_folder_is_trained_on_with_all_its_branches(trained):
    metrics = json.loads((trained / "metrics.json").read_text())["test"]
    assert set(metrics) == {"surface/pressure_coefficient", "volume/velocity", "volume/pressure_coefficient"}
    assert set(metrics["volume/velocity"]) == {"relative_l2", "mean_predictor", "nearest_neighbors"}
    surrogate = load_run(trained)
    assert set(surrogate.context.anchors) == {"surface", "volume"}
    assert surrogate.context.geometry.position.shape == (16, 3)
    assert surrogate.model.config.has_geometry


def test_a_run_records_which_arrays_are_its_fields(trained, folder, tmp_path):
    recorded = RunDirectory.open(trained).read_config().field_sources()
    assert recorded == read_sources(folder / "fields.json")
    copy = shutil.copytree(folder, tmp_path / "a", ignore=lambda *_: ["fields.json"])
    published = sources_to_json(open_cases(str(copy)).sources)
    assert parse_sources(published, "") == DRIVAERML
    assert open_cases("case.npz") is None


def test_a_run_whose_positions_were_computed_otherwise_is_not_resumed(trained, folder, tmp_path):
    config = RunDirectory.open(trained).read_config()
    assert config.positions == POSITIONS
    older = shutil.copytree(trained, tmp_path / "older")
    RunDirectory(older).write_config(replace(config, positions=None))
    assert load_run(older).context is not None
    with pytest.raises(ValueError, match=f"computed by VTK, now they are by {POSITIONS}: start a new run"):
        run(tiny_settings(folder, **GEOMETRY), older, resume=True)


def test_the_geometry_comes_from_the_stl_file(folder):
    dataset = load_dataset(tiny_settings(folder, **GEOMETRY))
    level = np.linalg.norm(dataset.context.geometry.position / AXES, axis=1)
    assert 0.9 < level.min() <= level.max() < 1 + 1e-6


def test_tensors_are_the_same_case_as_the_meshes_they_were_made_of(tmp_path):
    torch = pytest.importorskip("torch")
    surface, volume = surface_dataset(), volume_dataset()
    shear = np.zeros((surface.n_cells, 3), np.float32)
    surface.cell_data["pMeanTrim"], surface.cell_data["wallShearStressMeanTrim"] = surface.cell_data["Cp"], shear
    surface.save(tmp_path / "boundary_1.vtp")
    meshes = load_dataset(tiny_settings(tmp_path, **GEOMETRY))
    (tmp_path / "boundary_1.vtp").unlink()
    arrays = {
        "surface_position_vtp": surface.cell_centers().points,
        "surface_pressure": surface.cell_data["Cp"],
        "surface_wallshearstress": shear,
        "volume_cell_position": volume.cell_centers().points,
        "volume_cell_totalpcoeff": volume.cell_data["Cp"],
        "volume_cell_velocity": volume.cell_data["U"],
        "volume_cell_vorticity": volume.cell_data["U"],
    }
    for name, array in arrays.items():
        torch.save(torch.tensor(np.asarray(array, np.float32)), tmp_path / f"{name}.pt")
    tensors = load_dataset(tiny_settings(tmp_path, **GEOMETRY))
    assert list(tensors.fields) == ["surface", "volume"]
    for field in ("pressure", "wallshearstress"):
        np.testing.assert_array_equal(
            tensors.test_points["surface"].fields[field], meshes.test_points["surface"].fields[field]
        )


@pytest.mark.parametrize(
    ("removed", "geometry", "blocks", "num_geometry_points"),
    [
        (None, True, ("perceiver", "self", "cross", "self", "cross"), 1024),
        (None, False, ("self", "cross", "self", "cross"), 0),
        ("boundary_1.vtp", True, ("self",) * 4, 0),
        ("volume_1.vtu", True, ("perceiver", *("self",) * 4), 1024),
    ],
)
def test_defaults_go_by_what_the_folder_holds(folder, tmp_path, removed, geometry, blocks, num_geometry_points):
    copy = shutil.copytree(folder, tmp_path / "copy")
    if removed:
        (copy / removed).unlink()
    settings = default_settings(str(copy), branches_of(open_cases(str(copy))), geometry=geometry)
    assert (settings.model["physics_blocks"], settings.sampling.num_geometry_points) == (blocks, num_geometry_points)


def test_some_of_several_cases_are_trained_on_and_the_others_tested(tmp_path, folder):
    for number in range(3):
        shutil.copytree(folder, tmp_path / "cases" / f"run_{number}")
    settings = tiny_settings(tmp_path / "cases", **GEOMETRY)
    outcome, printed = run(settings, tmp_path / "many")
    assert "cases: 2 cases to train on, 1 to test on" in printed
    assert load_run(outcome.path).context is None
    assert set(json.loads((outcome.path / "metrics.json").read_text())["test"]["volume/velocity"]) == {
        "relative_l2",
        "mean_predictor",
    }
    cases = str(tmp_path / "cases")
    assert default_settings(cases, branches_of(open_cases(cases))).model["physics_blocks"] == (
        "perceiver",
        "self",
        "cross",
        "self",
        "cross",
    )


def test_a_split_beside_the_cases_is_followed_and_stored(tmp_path, folder):
    cases = tmp_path / "cases"
    for number in range(3):
        shutil.copytree(folder, cases / f"run_{number}")
    (cases / "split.json").write_text(json.dumps({"train": ["run_2"], "test": ["run_0"]}))
    outcome, printed = run(tiny_settings(cases, steps=1, **GEOMETRY), tmp_path / "run")
    assert "cases: 1 cases to train on, 1 to test on, 1 in no split" in printed
    assert json.loads((outcome.path / "config.json").read_text())["split"] == {"run_2": "train", "run_0": "test"}
    (cases / "split.json").write_text(json.dumps({"train": ["run_2"], "test": ["run_1"]}))
    with pytest.raises(ValueError, match=r"started with split\.run_0 = 'test', now it is None"):
        run(tiny_settings(cases, steps=1, **GEOMETRY), tmp_path / "run", resume=True)
    other = (cases / "split.json").rename(tmp_path / "other.json")
    assert load_dataset(tiny_settings(cases, split=str(other), **GEOMETRY)).split.split_of == {
        "run_2": "train",
        "run_1": "test",
    }


def test_anchors_can_be_drawn_by_cell_size_and_supernodes_far_apart(tmp_path, folder):
    surface = surface_dataset()
    area = np.asarray(surface.compute_cell_sizes().cell_data["Area"])
    options = GEOMETRY | {"method": "weighted", "supernode_method": "farthest"}
    dataset = load_dataset(tiny_settings(folder, **options))
    uniform = load_dataset(tiny_settings(folder, **GEOMETRY))
    means = []
    for data in (dataset, uniform):
        drawn = np.concatenate([data.train_sample(0, n).anchors["surface"].position for n in range(200)])
        nearest = np.linalg.norm(drawn[:, None] - surface.cell_centers().points, axis=-1).argmin(axis=1)
        means.append(area[nearest].mean())
    assert means[0] > 1.1 * means[1]

    def closest(sample: Sample) -> float:
        supernodes = sample.geometry.position[sample.geometry.supernode_idx]
        return float(np.sort(np.linalg.norm(supernodes[:, None] - supernodes, axis=-1), axis=1)[:, 1].min())

    batches = [[data.train_sample(0, n) for n in range(20)] for data in (dataset, uniform)]
    assert np.mean(list(map(closest, batches[0]))) > np.mean(list(map(closest, batches[1])))
    run(tiny_settings(folder, steps=1, **options), tmp_path / "run")
    meshes = ["--surface", str(folder / "boundary_1.vtp"), "--volume", str(folder / "volume_1.vtu")]
    assert main(["predict", str(tmp_path / "run"), *meshes, "--out", str(tmp_path / "out")]) == 0


def test_points_without_cells_cannot_be_weighted(tmp_path, folder):
    with pytest.raises(ValueError, match="needs meshes: give their folder to --data"):
        load_dataset(tiny_settings(tmp_path / "case.npz", method="weighted"))
    surface = surface_dataset()
    surface.point_data["p"] = np.ones(surface.n_points)
    (tmp_path / "case").mkdir()
    surface.save(tmp_path / "case" / "boundary_1.vtp")
    (tmp_path / "case" / "fields.json").write_text(json.dumps({"surface": {"p": "p"}}))
    with pytest.raises(
        ValueError, match=r"boundary_1\.vtp: its fields are on points, and points have no area or volume"
    ):
        load_dataset(tiny_settings(tmp_path / "case", method="weighted"))
    (tmp_path / "case" / "surface_position_vtp.pt").touch()
    with pytest.raises(ValueError, match="tensors have no cell sizes"):
        load_dataset(tiny_settings(tmp_path / "case", method="weighted"))


def test_cases_of_drivaerml_train_under_the_published_statistics_without_measuring(tmp_path, monkeypatch):
    for number in (1, 2):
        case = tmp_path / "cars" / f"run_{number}"
        case.mkdir(parents=True)
        surface, volume = surface_dataset(), volume_dataset()
        surface.cell_data["pMeanTrim"] = surface.cell_data["Cp"]
        surface.cell_data["wallShearStressMeanTrim"] = np.zeros((surface.n_cells, 3), np.float32)
        volume.cell_data["CptMeanTrim"], volume.cell_data["UMeanTrim"] = volume.cell_data["Cp"], volume.cell_data["U"]
        surface.save(case / f"boundary_{number}.vtp")
        volume.save(case / f"volume_{number}.vtu")
    monkeypatch.delattr(CaseCollection, "measure")
    run(tiny_settings(tmp_path / "cars", statistics="drivaerml-tutorial", steps=1, **NO_GEOMETRY), tmp_path / "run")
    normalizer = load_run(tmp_path / "run").normalizer
    assert normalizer.position_scale == pytest.approx(1000 / 120)
    assert normalizer.fields["surface"]["pressure"].mean == (-229.772,)
    assert list(normalizer.fields["volume"]) == ["totalpcoeff", "velocity"]


def test_a_split_of_a_single_case_is_refused(folder):
    with pytest.raises(ValueError, match=r"other\.json: a split needs a folder of cases, .*case is none"):
        load_dataset(tiny_settings(folder, split="other.json"))


def exact(branch: str, centre: np.ndarray) -> dict[str, np.ndarray]:
    """The potential flow itself, not what the files say of it."""
    if branch == "volume":
        return {"velocity": BODY.velocity(centre), "pressure_coefficient": BODY.pressure_coefficient(centre)[:, None]}
    on_surface = centre / np.linalg.norm(centre / AXES, axis=1, keepdims=True)
    return {"pressure_coefficient": BODY.pressure_coefficient(on_surface)[:, None]}


def test_from_meshes_to_a_model_to_meshes_with_its_fields_and_their_metrics(trained, folder, tmp_path, capsys):
    out = tmp_path / "fields"
    options = ["--surface", folder / "boundary_1.vtp", "--volume", folder / "volume_1.vtu"]
    options += ["--geometry", folder / "body_1.stl", "--fields", folder / "fields.json", "--compare"]
    (tmp_path / "geo_ref_1.csv").write_text(f"lRef, aRef\n1.0, {AXES[1] * AXES[2] * np.pi}\n")
    options += ["--reference", tmp_path / "geo_ref_1.csv", "--speed", 1.0, "--chunk-size", 100, "--out", out]
    assert main(["predict", str(trained), *map(str, options)]) == 0
    printed = capsys.readouterr().out
    assert f"{surface_dataset().n_cells + volume_dataset().n_cells} points  " in printed
    metrics = json.loads((out / "comparison.json").read_text())
    for branch, file in (("surface", "boundary_1.vtp"), ("volume", "volume_1.vtu")):
        mesh = read_mesh(out / file)
        for name, values in exact(branch, np.asarray(mesh.position("cells"), np.float64)).items():
            sources = {kind: FieldSource(f"{kind}_{name}") for kind in ("predicted", "error")}
            fields = mesh.points(sources, location="cells").fields
            assert fields["predicted"].dtype == np.float32
            np.testing.assert_allclose(fields["predicted"] - values, fields["error"], rtol=1e-5, atol=1e-6)
            stored = metrics[f"{branch}/{name}"]
            error = fields["predicted"] - values
            np.testing.assert_allclose(stored["relative_l2"], np.linalg.norm(error) / np.linalg.norm(values), rtol=1e-5)
            np.testing.assert_allclose(stored["max"], np.abs(error).max(), rtol=1e-5)
            assert f"{stored['relative_l2']:#.4g}" in printed
    forces = json.loads((out / "forces.json").read_text())
    area = ["--area", str(AXES[1] * AXES[2] * np.pi), "--speed", "1", "--out", str(tmp_path / "again")]
    assert main(["predict", str(trained), *map(str, options[:6]), *area]) == 0
    again = json.loads((tmp_path / "again" / "forces.json").read_text())
    assert again["predicted"]["cl"] == pytest.approx(forces["predicted"]["cl"], rel=1e-3, abs=1e-4)
    # An ideal fluid does not drag a body; the rest is that of 480 flat triangles.
    assert abs(forces["reference"]["cd"]) < 0.02
    assert f"predicted: Cd {forces['predicted']['cd']:.4f}" in printed


def test_a_prediction_does_not_depend_on_what_else_is_predicted(trained, folder, tmp_path):
    for name, meshes in (("one", ["surface"]), ("both", ["surface", "volume"])):
        files = {"surface": folder / "boundary_1.vtp", "volume": folder / "volume_1.vtu"}
        options = [str(option) for mesh in meshes for option in (f"--{mesh}", files[mesh])]
        assert main(["predict", str(trained), *options, "--out", str(tmp_path / name)]) == 0
    one, both = (read_mesh(tmp_path / name / "boundary_1.vtp") for name in ("one", "both"))
    name = "predicted_pressure_coefficient"
    np.testing.assert_allclose(one.dataset.cell_data[name], both.dataset.cell_data[name], rtol=1e-4, atol=1e-5)


def test_a_mesh_that_does_not_fit_is_refused_in_one_line(trained, folder, tmp_path, capsys):
    (tmp_path / "bad.vtp").write_text("garbage")
    assert main(["predict", str(trained), "--surface", str(tmp_path / "bad.vtp"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "bad.vtp: not a .vtp file, or a damaged one" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_validation_is_logged_repeatable_and_keeps_the_best_checkpoint(tmp_path, folder):
    cases = tmp_path / "cases"
    for number in range(3):
        shutil.copytree(folder, cases / f"run_{number}")
    (cases / "split.json").write_text(json.dumps({"train": ["run_0"], "validation": ["run_1"], "test": ["run_2"]}))
    # A rate that ruins what the first steps have learned.
    changes = GEOMETRY | {
        "steps": 8,
        "validate_every": 2,
        "checkpoint_every": 100,
        "learning_rate": 0.5,
        "schedule": "constant",
    }
    path = tmp_path / "run"
    run(tiny_settings(cases, **changes), path)
    rows = RunDirectory(path).read_validation()
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    fields = [name for name in rows[0] if "/" in name]
    assert rows[0]["mean"] == pytest.approx(np.mean([rows[0][name] for name in fields]))
    best = min(rows, key=lambda row: row["mean"])["step"]
    with Checkpoints(path / "checkpoints") as checkpoints:
        assert (checkpoints.step(), checkpoints.step("best")) == (8, best)
    dataset = load_dataset(tiny_settings(cases, **changes))
    for which, step in (("latest", 8), ("best", best)):
        again = validate(load_run(path, which), list(dataset.validation_samples()))
        assert again["mean"] == pytest.approx(next(row["mean"] for row in rows if row["step"] == step), rel=1e-5)
    assert {event.name.split(".")[0] for event in (path / "tensorboard").iterdir()} == {"events"}
    assert main(["evaluate", str(path), "--checkpoint", "best", "--out", str(tmp_path / "out")]) == 0
