import sys
from types import SimpleNamespace

from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.trackers import trackers


def test_metrics_reach_tensorboard_and_weights_and_biases(tmp_path, monkeypatch):
    calls: list[tuple] = []
    session = SimpleNamespace(
        log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append(("finish",))
    )
    wandb = SimpleNamespace(init=lambda **options: calls.append(("init", options)) or session)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    path = tmp_path / "first"
    path.mkdir()
    with trackers(RunDirectory(path), {"steps": 3}, wandb_project="cars") as opened:
        for track in opened:
            track(1, {"train/loss": 0.5})
    options = {"project": "cars", "id": "first", "resume": "allow", "config": {"steps": 3}}
    assert calls == [("init", options), (1, {"train/loss": 0.5}), ("finish",)]
    (events,) = (path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
