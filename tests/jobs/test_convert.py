import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emmi_jax import AbUptConfig
from emmi_jax.cli import main
from emmi_jax.convert.ab_upt import _table
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.data.normalization import Normalizer
from emmi_jax.jobs.convert import convert_checkpoint, preset_architecture, read_architecture
from emmi_jax.jobs.info import file_shapes, run_shapes
from emmi_jax.training.settings import TrainSettings

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


def test_a_tutorial_checkpoint_becomes_a_run_that_predicts(tutorial_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    run, points, out = tmp_path / "run", tmp_path / "points.npz", tmp_path / "fields.npz"
    checkpoint = str(GOLDEN / "ab_upt_tutorial_48.th")
    assert main(["convert", checkpoint, "--config", str(tutorial_config), "--out", str(run)]) == 0
    golden = np.load(GOLDEN / "ab_upt_tutorial_48.npz", allow_pickle=False)
    arrays = {"geometry": golden["in/geometry_position"]}
    for branch in ("surface", "volume"):
        arrays[branch] = golden[f"in/{branch}_query_position"][0]
        arrays[f"{branch}_anchors"] = golden[f"in/{branch}_anchor_position"][0]
    np.savez(points, **arrays)
    assert main(["predict", str(run), "--points", str(points), "--out", str(out)]) == 0
    fields = np.load(out)
    for branch, names in TUTORIAL["fields"].items():
        for name in names:
            predicted = fields[f"{branch}_{name}"]
            assert predicted.shape == golden[f"out/{branch}_query_{name}"].shape
            assert np.isfinite(predicted).all()


def test_a_converted_run_is_trained_on_and_keeps_its_model_and_scales(
    small_weights: tuple[Path, AbUptConfig], tmp_path: Path
) -> None:
    weights, config = small_weights
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model": config.to_dict(), "normalizer": _normalizer().to_dict()}))
    assert (
        main(["convert", str(weights), "--config", str(path), "--layout", "1.x", "--out", str(tmp_path / "run")]) == 0
    )
    options = ["--batch-size", "1", "--num-anchors", "8", "--num-queries", "4"]
    arguments = ["train", "--out", str(tmp_path), "--name", "run", "--resume", "--steps", "2", *options]
    assert main(arguments) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["model"] == config.to_dict()
    assert stored["settings"]["steps"] == 2
    assert stored["normalizer"]["position_scale"] == 7.0
    (tmp_path / "run" / "metrics.json").unlink()
    assert main(["train", "--out", str(tmp_path), "--name", "run", "--resume"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == stored
    assert (tmp_path / "run" / "metrics.json").is_file()


def _normalizer() -> Normalizer:
    sizes = TrainSettings(batch_size=1, num_anchors=4, num_queries=4).sizes
    dataset = EllipsoidDataset(sizes, position_range=100.0, num_train_cases=2, num_test_cases=1)
    return replace(dataset.normalizer, position_scale=7.0)


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
        read_architecture(path)


def test_info_lists_the_published_number_of_parameters(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = preset_architecture("drivaerml-tutorial").config
    (run / "config.json").write_text(json.dumps({"model": config.to_dict()}))
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
    convert_checkpoint(weights, run, read_architecture(path), layout=None)
    count = {
        name: sum(np.prod(s) for s in f.values())
        for name, f in (("run", run_shapes(run)), ("file", file_shapes(weights)))
    }
    assert count["run"] == count["file"]


def test_info_of_nothing_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["info", str(tmp_path / "nothing")]) == 2
    assert "no such run or file" in capsys.readouterr().err
