"""Features of meshes: arrays of the files, and normals and distances that are computed of the surface."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.cli import main
from emmi_jax.config.design import SensitivityJob
from emmi_jax.data.load import load_dataset
from emmi_jax.data.store import Store
from emmi_jax.design import drag, evaluate, read_surface
from emmi_jax.jobs.sensitivity import differentiate_surface
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.runs.load import load_run
from tests.data.case_folders import FIELDS, write_case_folder
from tests.jobs import tiny_runs
from tests.jobs.tiny_runs import run, tiny_settings, untrained_surrogate

FEATURES = {"surface": ("normal", "part"), "volume": ("distance",), "geometry": ("normal",)}
SETTINGS: dict[str, Any] = tiny_runs.GEOMETRY | {"physics_blocks": ("perceiver", "cross"), "features": FEATURES}
SETTINGS |= {"steps": 2, "batch_size": 1}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases, whose surfaces have an array `part`."""
    folder = tmp_path_factory.mktemp("data") / "cases"
    folder.mkdir()
    first = write_case_folder(folder / "run_1")
    (first / "body_1.stl").unlink()
    (first / "fields.json").unlink()
    sources = {**FIELDS, "surface": {**FIELDS["surface"], "part": "patch"}}
    (folder / "fields.json").write_text(json.dumps(sources))
    surface = read_mesh(first / "boundary_1.vtp").dataset
    surface.cell_data["patch"] = (np.arange(surface.n_cells) % 3).astype(np.float32)
    surface.save(first / "boundary_1.vtp")
    for number in (2, 3):
        other = shutil.copytree(first, folder / f"run_{number}")
        for name in ("boundary", "volume"):
            file = next(other.glob(f"{name}_1.*"))
            file.rename(other / file.name.replace("_1.", f"_{number}."))
    split = {"train": ["run_1"], "validation": ["run_2"], "test": ["run_3"]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture(scope="module")
def trained(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "cases"
    run(tiny_settings(cases, **SETTINGS), path)
    return path


def test_normals_and_distances_are_those_of_the_surface(cases: Path) -> None:
    dataset = load_dataset(tiny_settings(cases, **SETTINGS))
    assert dataset.features == {
        "surface": {"normal": 3, "part": 1},
        "volume": {"distance": 1},
        "geometry": {"normal": 3},
    }
    sample = dataset.train_sample(0, 0)
    features, position = sample.anchors["surface"].features, sample.anchors["surface"].position
    assert features is not None
    assert set(sample.anchors["surface"].fields) == {"pressure_coefficient"}
    np.testing.assert_allclose(np.linalg.norm(features[:, :3], axis=1), 1, rtol=1e-6)
    assert ((features[:, :3] * position).sum(axis=1) > 0).all()
    assert set(features[:, 3]) <= {0.0, 1.0, 2.0}
    distance = sample.queries["volume"].features
    assert distance is not None
    assert 0.1 < distance.min() < distance.max() < 2
    geometry = sample.geometry
    assert geometry is not None
    assert ((np.asarray(geometry.features) * geometry.position).sum(axis=1) > 0).all()


def test_evaluation_prediction_and_training_see_the_same_features(trained: Path, cases: Path, tmp_path: Path) -> None:
    assert main(["evaluate", str(trained), "--out", str(tmp_path / "evaluation")]) == 0
    evaluated = json.loads((tmp_path / "evaluation" / "evaluation_test.json").read_text())["mean"]
    meshes = ["--surface", str(cases / "run_3" / "boundary_3.vtp"), "--volume", str(cases / "run_3" / "volume_3.vtu")]
    out = tmp_path / "meshes"
    assert main(["predict", str(trained), *meshes, "--compare", "--out", str(out)]) == 0
    compared = json.loads((out / "comparison.json").read_text())
    for name, metrics in compared.items():
        np.testing.assert_allclose(metrics["relative_l2"], evaluated[name]["relative_l2"], rtol=1e-4)
    assert "predicted_part" not in read_mesh(out / "boundary_3.vtp").dataset.cell_data
    surrogate = load_run(trained)
    assert surrogate.model.config.supernode_pooling.input_features_dim == 3
    assert surrogate.context is None


def test_a_store_has_what_is_computed_and_trains_the_same_model(trained: Path, cases: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    computed = ["--feature", "surface/normal", "--feature", "volume/distance"]
    assert main(["prepare", str(cases), "--out", str(store), *computed]) == 0
    assert dict(Store(str(store)).shapes("run_1")["surface"].fields) == {
        "pressure_coefficient": 1,
        "part": 1,
        "normal": 3,
    }
    run(tiny_settings(store, **SETTINGS), tmp_path / "run")
    assert load_run(tmp_path / "run").features == load_run(trained).features
    ours, theirs = (load_run(path).normalizer.features for path in (tmp_path / "run", trained))
    for branch, scales in ours.items():
        for name, scale in scales.items():
            np.testing.assert_allclose(scale.std, theirs[branch][name].std, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no part", "the model takes the feature 'part' of 'surface': no array 'patch' on cells"),
        ("geometry", "the model takes features of the geometry, normal, which the surface mesh has: leave out"),
    ],
)
def test_one_line_says_what_a_mesh_lacks(
    change: str, message: str, trained: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    surface = read_mesh(cases / "run_3" / "boundary_3.vtp").dataset
    surface.save(tmp_path / "body.stl")
    if change == "no part":
        del surface.cell_data["patch"]
    surface.save(tmp_path / "surface.vtp")
    options = ["--surface", str(tmp_path / "surface.vtp"), "--volume", str(cases / "run_3" / "volume_3.vtu")]
    options += ["--geometry", str(tmp_path / "body.stl")] if change == "geometry" else []
    assert main(["predict", str(trained), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_derivatives_take_the_features_of_the_cells_of_a_surface(cases: Path, tmp_path: Path) -> None:
    features = {"surface": {"part": 1}, "geometry": {"part": 1}}
    surrogate = untrained_surrogate({"surface": {"pressure_coefficient": 1}}, -2.0, 2.0, features)
    file, sources = cases / "run_1" / "boundary_1.vtp", {"surface": {"part": FieldSource("patch")}}
    job = SensitivityJob(run=Path("run"), surface=file, out=tmp_path, area=1.0, speed=1.0)
    differentiate_surface(job, surrogate, sources, console=Console(file=io.StringIO()))
    found = json.loads((tmp_path / "sensitivity.json").read_text())["drag"]
    surface = read_surface(file)
    part = np.arange(surface.num_cells) % 3
    of_drag = drag(speed=1.0, area=1.0)
    values = [evaluate(surrogate, surface, of_drag, features=dict.fromkeys(features, p)) for p in (part, -part)]
    assert found == pytest.approx(values[0], rel=1e-4)
    assert found != pytest.approx(values[1], rel=1e-2)


@pytest.mark.parametrize("text", ["normal", "/part", "surface/"])
def test_features_of_a_store_have_a_branch_and_a_name(
    text: str, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(cases), "--out", str(tmp_path / "store"), "--feature", text]) == 2
    assert f"--feature takes BRANCH/NAME, such as surface/normal, got {text!r}" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_tensors_beside_those_of_the_fields_are_features(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = {"points": rng.uniform(-1, 1, (60, 3)), "velocity": rng.normal(size=(60, 3)), "distance": rng.random(60)}
    for name, array in arrays.items():
        torch.save(torch.tensor(array, dtype=torch.float32), tmp_path / f"volume_{name}.pt")
    settings = tiny_settings(tmp_path, features={"volume": ("distance",)})
    dataset = load_dataset(settings)
    assert (dataset.fields, dataset.features) == ({"volume": {"velocity": 3}}, {"volume": {"distance": 1}})
    points = dataset.train_points["volume"]
    idx = [int(np.abs(arrays["points"] - position).sum(axis=1).argmin()) for position in points.position]
    np.testing.assert_allclose(points.features[:, 0], arrays["distance"][idx], rtol=1e-6)
    before = dataset.fingerprint
    torch.save(torch.zeros(60), tmp_path / "volume_distance.pt")
    assert load_dataset(settings).fingerprint != before
    with pytest.raises(ValueError, match="the data have no array 'part'"):
        load_dataset(tiny_settings(tmp_path, features={"volume": ("part",)}))
