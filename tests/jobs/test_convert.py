import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, load_run
from emmi_jax.cli import main
from emmi_jax.config import Sampling
from emmi_jax.convert import ab_upt_to_torch
from emmi_jax.convert.ab_upt import _table
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.jobs.convert import convert, preset_config, read_config
from emmi_jax.jobs.info import file_shapes, run_shapes
from emmi_jax.models.init import init_params
from emmi_jax.points import PointSet
from emmi_jax.runs.directory import RunConfig
from tests.tolerances import TOLERANCES, assert_close

GOLDEN = Path(__file__).parents[1] / "golden"
TUTORIAL = {
    "dim": 48,
    "num_heads": 3,
    "fields": {
        "surface": {"pressure": 1, "wallshearstress": 3},
        "volume": {"totalpcoeff": 1, "velocity": 3, "vorticity": 3},
    },
    "physics_blocks": ["perceiver", "self", "cross", "self"],
    "decoder_depths": {"surface": 1, "volume": 2},
    "supernode_pooling": {"radius": 2.0},
}


@pytest.fixture
def short_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emmi_jax.data.ellipsoids.NUM_TEST_QUERIES", 16)
    monkeypatch.setattr("emmi_jax.jobs.train.draw_pictures", lambda *args: [])


@pytest.fixture
def tutorial_config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TUTORIAL))
    return path


@pytest.fixture
def small_weights(tmp_path: Path) -> tuple[Path, AbUptConfig]:
    """A safetensors file of a model for the ellipsoid data, made without torch."""
    safetensors = pytest.importorskip("safetensors.numpy")
    config = AbUptConfig(
        dim=12, num_heads=1, fields=EllipsoidDataset.fields, physics_blocks=("joint",), decoder_depths={}
    )
    rng = np.random.default_rng(0)
    state = {}
    for target in _table(config, "1.x").values():
        shape = [dim.factor for dim in reversed(target.shape)]
        state[target.names[0]] = 0.1 * rng.standard_normal(shape).astype(np.float32)
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(state, path)
    return path, config


def test_recorded_fields_are_reproduced_by_a_converted_run(tutorial_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    run = tmp_path / "run"
    checkpoint = str(GOLDEN / "ab_upt_tutorial_48.th")
    assert main(["convert", checkpoint, "--config", str(tutorial_config), "--out", str(run)]) == 0
    golden = np.load(GOLDEN / "ab_upt_tutorial_48.npz", allow_pickle=False)
    surrogate = load_run(run)
    encoded = surrogate.encode(
        anchors={branch: golden[f"in/{branch}_anchor_position"][0] for branch in TUTORIAL["fields"]},
        geometry=Geometry(golden["in/geometry_position"], golden["in/geometry_supernode_idx"]),
    )
    queries = {branch: golden[f"in/{branch}_query_position"][0] for branch in TUTORIAL["fields"]}
    fields = {name: [] for name in encoded.predict(queries)}
    for chunk in encoded.stream(queries, chunk_size=4):
        for name, values in chunk.fields.items():
            fields[f"{chunk.branch}_{name}"].append(values)
    assert len(fields) == 5
    for branch, names in TUTORIAL["fields"].items():
        for name in names:
            expected = golden[f"out/{branch}_query_{name}"]
            assert_close(np.concatenate(fields[f"{branch}_{name}"]), expected, TOLERANCES["float32"].forward)


def test_a_converted_run_samples_as_its_preset() -> None:
    assert preset_config("drivaerml-tutorial").sampling == Sampling(
        num_anchors=16_384,
        num_queries=0,
        num_test_anchors=16_384,
        num_geometry_points=65_536,
        num_supernodes=16_384,
        num_test_supernodes=16_384,
    )


WITH_FEATURES = (
    {"supernode_pooling": {"k": 2, "radius": None, "input_features_dim": 2}},
    {"feature_dims": {"surface": 2}},
)


def converted_run(path: Path, **changes: Any) -> Any:
    """Converts random weights to a run at this path, and returns them."""
    pytest.importorskip("torch")
    torch_file = pytest.importorskip("safetensors.numpy")
    config = AbUptConfig(
        dim=12,
        num_heads=1,
        fields={"surface": {"p": 1}},
        physics_blocks=("perceiver", "self"),
        decoder_depths={},
        **changes,
    )
    params = init_params(AnchoredBranchedUPT(config), seed=1)
    state = {name: np.asarray(tensor) for name, tensor in ab_upt_to_torch(params, config, layout="main").items()}
    weights, values = path.with_suffix(".safetensors"), path.with_suffix(".json")
    torch_file.save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, weights)
    values.write_text(json.dumps(config.to_dict()))
    convert(weights, path, read_config(values), layout=None)
    return params


@pytest.mark.parametrize("changes", [{"condition_dim": 3}, *WITH_FEATURES])
def test_a_converted_run_with_a_condition_or_features_opens_again(changes: dict, tmp_path: Path) -> None:
    params = converted_run(tmp_path / "run", **changes)
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path / "run").params, params)


def test_a_converted_run_with_features_takes_them_as_one_array(tmp_path: Path) -> None:
    changes = {"feature_dims": {"surface": 2}, **WITH_FEATURES[0]}
    converted_run(tmp_path / "run", **changes)
    surrogate = load_run(tmp_path / "run")
    assert surrogate.features == {"surface": {"features": 2}, "geometry": {"features": 2}}
    rng = np.random.default_rng(0)
    arrays = {"position": rng.uniform(0, 100, (30, 3)), "features": rng.normal(size=(30, 2))}
    shown = {"geometry": rng.uniform(0, 100, (20, 3)), "geometry_features": rng.normal(size=(20, 2))}
    np.savez(tmp_path / "points.npz", **arrays, **shown)
    command = ["predict", str(tmp_path / "run"), "--points", str(tmp_path / "points.npz"), "--out"]
    assert main([*command, str(tmp_path / "fields.npz")]) == 0
    points = PointSet(arrays["position"], {}, features=arrays["features"])
    geometry = PointSet(shown["geometry"], {}, features=shown["geometry_features"])
    encoded = surrogate.encode(points={"surface": points}, geometry=geometry)
    queries = {"surface": arrays["position"]}
    expected = encoded.predict(queries, query_features={"surface": arrays["features"]})["surface_p"]
    np.testing.assert_allclose(np.load(tmp_path / "fields.npz")["p"], expected, rtol=1e-5)


@pytest.mark.usefixtures("short_reports")
def test_a_run_starts_from_a_converted_one_and_keeps_its_model_and_scales(
    small_weights: tuple[Path, AbUptConfig], tmp_path: Path
) -> None:
    weights, config = small_weights
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_run_config(config).to_dict()))
    assert (
        main(["convert", str(weights), "--config", str(path), "--layout", "1.x", "--out", str(tmp_path / "run")]) == 0
    )
    options = ["--batch-size", "1", "--num-anchors", "8", "--num-queries", "4", "--checkpoint-every", "1"]
    train = ["train", "--out", str(tmp_path), "--name"]
    assert main([*train, "tuned", "--init-from", str(tmp_path / "run"), "--steps", "2", *options]) == 0
    tuned = tmp_path / "tuned"
    stored = json.loads((tuned / "config.json").read_text())
    assert stored["model"] == config.to_dict()
    assert (stored["settings"]["steps"], stored["is_fine_tuned"]) == (2, True)
    assert stored["normalizer"]["position_scale"] == 7.0
    first = json.loads((tuned / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    (tuned / "metrics.json").unlink()
    assert main([*train, "tuned", "--resume"]) == 0
    assert json.loads((tuned / "config.json").read_text()) == stored
    assert (tuned / "metrics.json").is_file()
    # A run that was tuned is a run to start from too; what it has learned is where the next one begins.
    assert main([*train, "again", "--init-from", str(tuned), "--steps", "1", *options]) == 0
    assert json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[0])["loss"] != first
    assert main([*train, "run", "--resume"]) == 2


@pytest.mark.usefixtures("short_reports")
def test_a_fine_tuned_run_that_ends_before_its_first_checkpoint_resumes_from_the_weights_it_started_with(
    small_weights: tuple[Path, AbUptConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, config = small_weights
    path = tmp_path / "config.json"
    path.write_text(json.dumps(_run_config(config).to_dict()))
    main(["convert", str(weights), "--config", str(path), "--layout", "1.x", "--out", str(tmp_path / "run")])
    options = ["--batch-size", "1", "--num-anchors", "8", "--num-queries", "4", "--steps", "2"]
    train = ["train", "--out", str(tmp_path), "--name"]
    for name in ("tuned", "broken"):
        with monkeypatch.context() as patch:
            if name == "broken":
                patch.setattr("emmi_jax.training.loop._Logs.record", _fail)
            main([*train, name, "--init-from", str(tmp_path / "run"), *options])
    assert main([*train, "broken", "--resume"]) == 0
    jax.tree.map(
        np.testing.assert_array_equal, load_run(tmp_path / "broken").params, load_run(tmp_path / "tuned").params
    )


def _fail(*args: object) -> None:
    raise ValueError("the disk is full")


def _run_config(model: AbUptConfig) -> RunConfig:
    fields = {
        branch: {name: FieldScale(mean=(0.1,) * c, std=(2.0,) * c) for name, c in names.items()}
        for branch, names in model.fields.items()
    }
    normalizer = Normalizer(position_low=(-4.8,) * 3, position_scale=7.0, fields=fields)
    sampling = Sampling(num_anchors=4, num_queries=4, num_test_anchors=8)
    return RunConfig(model=model, normalizer=normalizer, sampling=sampling, sources={})


def test_weights_that_do_not_fit_are_listed_and_leave_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "run"
    checkpoint = str(GOLDEN / "ab_upt_tutorial_48.th")
    assert main(["convert", checkpoint, "--preset", "drivaerml-tutorial", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "missing: blocks.5.mlp.fc2.weight" in error
    assert "misshapen: volume_decoder.weight" in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.th", "--preset", "drivaerml-tutorial"], "nothing.th: no such file"),
        (["nothing.th"], "exactly one of --preset and --config"),
        (["nothing.th", "--preset", "drivaer"], "no preset 'drivaer'; there are drivaerml-tutorial"),
        (["nothing.th", "--config", "nothing.json"], "nothing.json: no such file"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["convert", *arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("no json", "not JSON"), ("[1]", "expected a JSON object"), ('{"dim": 4}', "num_heads"), ('{"dm": 4}', "'dim'")],
)
def test_a_bad_configuration_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path)


def test_info_lists_the_published_number_of_parameters(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(preset_config("drivaerml-tutorial").to_dict()))
    assert main(["info", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "8,751,179" in printed
    assert "physics_blocks 1 … 5" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_info_counts_a_file_as_the_run_made_of_it(small_weights: tuple[Path, AbUptConfig], tmp_path: Path) -> None:
    weights, config = small_weights
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    run = tmp_path / "run"
    convert(weights, run, read_config(path), layout=None)
    count = {
        name: sum(np.prod(s) for s in f.values())
        for name, f in (("run", run_shapes(run)), ("file", file_shapes(weights)))
    }
    assert count["run"] == count["file"]


def test_info_of_nothing_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["info", str(tmp_path / "nothing")]) == 2
    assert "no such run or file" in capsys.readouterr().err
