import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from emmi_jax.cli import main
from emmi_jax.config import TrainJob
from emmi_jax.data.load import load_dataset
from emmi_jax.data.point_cloud import PointCloudDataset
from emmi_jax.data.samples import Sample
from emmi_jax.files.locks import locked
from emmi_jax.jobs.train import show_plan, train
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run
from tests.jobs.tiny_runs import run, tiny_settings, write_case

TOO_DENSE = {"dense_fraction": 1.0, "num_anchors": 20, "num_queries": 5}
"""Twice as many points as there are to train on."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("data") / "case.npz")


@pytest.fixture(scope="module")
def finished(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    run(tiny_settings(case), path, pictures=True)
    return path


def losses(path: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in RunDirectory(path).read_metrics()]


def assert_same_result(path: Path, expected: Path) -> None:
    assert losses(path) == losses(expected)
    jax.tree.map(np.testing.assert_array_equal, load_run(path).params, load_run(expected).params)
    test, expected_test = (json.loads((p / "metrics.json").read_text())["test"] for p in (path, expected))
    assert test == expected_test


def test_a_run_leaves_its_files(finished):
    names = {p.name for p in finished.iterdir()}
    pictures = {"loss.png", "volume_pressure.png", "volume_velocity.png"}
    files = {"checkpoints", "config.json", "metrics.jsonl", "metrics.json", "context.npz", "tensorboard"}
    assert names == files | pictures


def test_a_run_can_learn_a_field_without_divergence(case, tmp_path):
    run(tiny_settings(case, divergence_free=("velocity",), steps=2), tmp_path / "run")
    trained = load_run(tmp_path / "run")
    assert trained.model.config.vector_potentials == {"volume": ("velocity",)}
    assert len(set(trained.normalizer.fields["volume"]["velocity"].std)) == 1
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path / "run"))


def test_metrics_are_those_of_the_model_and_of_the_baselines(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"test", "train_seconds", "num_params"}
    assert set(metrics["test"]) == {"volume/pressure", "volume/velocity"}
    for row in metrics["test"].values():
        assert set(row) == {"relative_l2", "mean_predictor", "nearest_neighbors"}
        assert all(0 < value < 10 for value in row.values())
    assert metrics["num_params"] == sum(p.size for p in jax.tree.leaves(load_run(finished).params))


def test_every_step_is_logged_once(finished):
    rows = RunDirectory(finished).read_metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "volume/pressure", "volume/velocity", "learning_rate", "gradient_norm", "seconds"} < set(rows[0])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(case, finished, tmp_path):
    run(tiny_settings(case), tmp_path / "again")
    assert_same_result(tmp_path / "again", finished)
    run(tiny_settings(case, seed=1), tmp_path / "other")
    assert losses(tmp_path / "other")[0] != losses(finished)[0]


def test_a_run_killed_after_a_checkpoint_resumes_to_the_same_result(case, finished, tmp_path):
    path = tmp_path / "killed"
    script = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "import emmi_jax.training.loop as loop\n"
        "from tests.jobs.tiny_runs import run, tiny_settings\n"
        "record = loop._Logs.record\n"
        "def die(logs, step, metrics):\n"
        "    if step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    record(logs, step, metrics)\n"
        "loop._Logs.record = die\n"
        f"run(tiny_settings(Path({str(case)!r})), Path({str(path)!r}))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with Checkpoints(path / "checkpoints") as checkpoints:
        assert checkpoints.step() in (2, 4)  # the newest may still have been on its way
    outcome, _ = run(tiny_settings(case), path, resume=True)
    assert outcome.signal_number is None
    assert_same_result(path, finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_that_resumes_to_the_same_result(number, case, finished, tmp_path, monkeypatch):
    path, settings, handler = tmp_path / "stopped", tiny_settings(case, checkpoint_every=100), signal.getsignal(number)
    train_sample = PointCloudDataset.train_sample

    def signal_at_step_3(dataset: PointCloudDataset, seed: int, sample_number: int) -> Sample:
        if sample_number == 3 * settings.batch_size:
            os.kill(os.getpid(), number)
        return train_sample(dataset, seed, sample_number)

    with monkeypatch.context() as patch:
        patch.setattr(PointCloudDataset, "train_sample", signal_at_step_3)
        outcome, printed = run(settings, path)
    assert outcome.signal_number == number
    assert "stopped after step" in printed
    assert signal.getsignal(number) is handler
    assert not (path / "metrics.json").exists()
    assert 1 <= len(losses(path)) < 6
    run(settings, path, resume=True)
    assert_same_result(path, finished)


def test_resuming_a_finished_run_only_reports_again(case, finished, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(finished, path)
    (path / "metrics.json").unlink()
    run(tiny_settings(case), path, resume=True)
    assert_same_result(path, finished)


def test_resuming_with_other_settings_names_the_key(case, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"settings\.optimizer\.learning_rate = 0\.004, now it is 0\.01"):
        run(tiny_settings(case, learning_rate=0.01), finished, resume=True)
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_resuming_on_changed_data_is_refused(case, finished, tmp_path):
    data, path = tmp_path / "case.npz", shutil.copytree(finished, tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    config["settings"]["data"] = str(data)
    (path / "config.json").write_text(json.dumps(config))
    arrays = dict(np.load(case))
    np.savez(data, **arrays)
    assert load_dataset(tiny_settings(data)).fingerprint == config["data_fingerprint"]
    np.savez(data, **arrays | {"pressure": arrays["pressure"] + 1})
    with pytest.raises(ValueError, match="not the data that the run was started with"):
        run(tiny_settings(data), path, resume=True)


def test_a_run_goes_on_when_its_data_have_moved_and_its_context_is_lost(case, finished, tmp_path):
    path, moved = tmp_path / "run", tmp_path / "elsewhere" / "car.npz"
    shutil.copytree(finished, path)
    moved.parent.mkdir()
    shutil.copy(case, moved)
    (path / "context.npz").unlink()
    with pytest.raises(ValueError, match=r"context\.npz is missing: train --resume makes it"):
        load_run(path)
    run(tiny_settings(moved), path, resume=True)
    assert RunDirectory(path).read_config().settings.data == str(moved)
    jax.tree.map(np.testing.assert_array_equal, load_run(path).context, load_run(finished).context)
    with pytest.raises(FileNotFoundError, match="--data says where the data of the run are now"):
        run(tiny_settings(tmp_path / "nowhere.npz"), path, resume=True)


def test_a_run_that_lost_the_weights_it_started_from_is_not_trained_from_others(case, finished, tmp_path):
    path = tmp_path / "run"
    train(tiny_settings(case, steps=2), path, TrainJob(init_from=finished), console=Console(quiet=True))
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(ValueError, match="no checkpoint to start from"):
        run(tiny_settings(case, steps=2), path, resume=True)


def test_a_run_in_use_is_not_resumed(case, finished):
    with locked(finished), pytest.raises(ValueError, match="in use by process"):
        run(tiny_settings(case), finished, resume=True)


def test_a_run_killed_among_its_dense_steps_resumes_to_the_same_result(case, finished, tmp_path):
    settings, path = tiny_settings(case, dense_fraction=0.5), tmp_path / "run"
    run(settings, path)
    trained = load_run(path).params
    shutil.rmtree(path / "checkpoints" / "6")
    run(settings, path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, load_run(path).params, trained)
    rows = [(p / "metrics.jsonl").read_text().splitlines() for p in (path, finished)]
    is_same = [json.loads(a)["loss"] == json.loads(b)["loss"] for a, b in zip(*rows, strict=True)]
    assert is_same == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    "changes", [{"dim": 25}, {"dim": 8}, {"num_anchors": 1000}, {"physics_blocks": ("cross",)}, TOO_DENSE]
)
def test_unusable_settings_leave_nothing_behind(case, tmp_path, changes):
    with pytest.raises(ValueError, match=r"\w"):
        run(tiny_settings(case, **changes), tmp_path / "runs" / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint_finite(case, tmp_path):
    settings = tiny_settings(case, learning_rate=1e30, clip_norm=1e30, steps=20, checkpoint_every=1)
    expected = (
        r"training diverged at step (\d+), cases case.npz, last checkpoint (\d+); try a smaller --learning-rate: "
    )
    with pytest.raises(ValueError, match=expected) as raised:
        run(settings, tmp_path / "run")
    step, last = map(int, re.search(expected, str(raised.value)).groups())
    assert last == step - 1
    assert all(np.all(np.isfinite(p)) for p in jax.tree.leaves(load_run(tmp_path / "run").params))


def test_the_whole_model_trains_on_the_ellipsoids(tmp_path, monkeypatch):
    monkeypatch.setattr("emmi_jax.data.ellipsoids.NUM_TEST_QUERIES", 16)
    _, printed = run(tiny_settings(None, steps=2, geometry_depth=1), tmp_path / "run", pictures=True)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["test"]["volume/velocity"]) == {"relative_l2", "mean_predictor", "nearest_case"}
    assert {p.name for p in (tmp_path / "run").glob("*.png")} == {
        "loss.png",
        "surface_pressure.png",
        "volume_velocity.png",
    }
    assert not (tmp_path / "run" / "context.npz").exists()
    assert "40 to test on" in printed
    assert "nearest case" in printed


def test_a_run_is_used_with_its_averaged_parameters_and_goes_on_with_both(case, tmp_path):
    changes = {"ema_decay": 0.5, "name": "lion", "accumulation": 2, "schedule": "constant"}
    settings, path = tiny_settings(case, **changes), tmp_path / "run"
    run(settings, path)
    with Checkpoints(path / "checkpoints") as checkpoints:
        surrogate = load_run(path)
        kept = checkpoints.restore({"params": surrogate.params, "ema": surrogate.params}).items
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), kept["params"], kept["ema"])
    assert max(jax.tree.leaves(differences)) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, surrogate.params, kept["ema"])
    checkpoint = path / "checkpoints" / "6"
    shutil.rmtree(checkpoint)
    run(settings, path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, load_run(path).params, kept["ema"])


def test_a_plan_shows_settings_model_and_cost_and_writes_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    printed = io.StringIO()
    show_plan(tiny_settings(case), TrainJob(), console=Console(file=printed, width=80))
    text = printed.getvalue()
    for expected in (
        '"num_anchors": 6',
        "physics_blocks 0",
        "dtype      float32",
        "GFLOP",
        "MiB",
        "48 points to train on",
        "devices    1 of",
    ):
        assert expected in text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "model.dim=100"], "dim must be divisible by num_heads, got dim=100 and num_heads=3"),
        (["--set", "model.decoder_depths={surface=1}"], "decoder_depths names branch 'surface'"),
        (["--set", "model.implementation=cudnn"], "cudnn"),
        (["--mesh", "data=3"], "the mesh data=3,tokens=1 needs 3 devices, there are"),
        (["--num-anchors", "1000"], "1000"),
        (["--set", "loss_weights={'volume/speed' = 1.0}"], "loss_weights names the unknown fields ['volume/speed']"),
        (["--divergence-free", "pressure"], "volume/pressure has 1 channels"),
    ],
)
def test_a_model_or_layout_that_is_impossible_is_refused_before_data_are_measured(
    options, message, case, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("emmi_jax.jobs.train.make_normalizer", None)
    assert (
        main(
            ["train", "--data", str(case), "--out", str(tmp_path), "--num-anchors", "6", "--num-queries", "4", *options]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
