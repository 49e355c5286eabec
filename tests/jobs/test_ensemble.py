"""Runs joined in an ensemble: its mean and deviations, its members, and what cannot be joined."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import deploy
from emmi_jax.cli import main
from emmi_jax.design import drag, sensitivity
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run
from tests.design.cases import ellipsoid
from tests.jobs.tiny_runs import run, tiny_settings

MEMBERS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(MEMBERS):
        run(tiny_settings(None, steps=1, seed=seed, batch_size=1), folder / f"run_{seed}")
    return [folder / f"run_{seed}" for seed in range(MEMBERS)]


@pytest.fixture(scope="module")
def joined(runs: list[Path]) -> Path:
    path = runs[0].parent / "joined"
    assert main(["ensemble", *map(str, runs), "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def points() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(50, 3))
    surface = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return {"surface": surface, "volume": 2 * surface}


def changed(path: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Copies a run, with another configuration."""
    opened = RunDirectory.open(shutil.copytree(path, copy))
    values = opened.read_config().to_dict()
    change(values)
    opened.write_config(type(opened.read_config()).from_dict(values))


def test_an_ensemble_streams_the_mean_and_the_deviation_of_what_its_members_predict(joined, runs, points):
    each = [load_run(path).encode(points=points, geometry=points["surface"]).predict(points) for path in runs]
    encoded = load_run(joined).encode(points=points, geometry=points["surface"])
    found = encoded.predict(points, chunk_size=16)
    for name in each[0]:
        values = np.stack([one[name] for one in each])
        np.testing.assert_allclose(found[name], values.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(found[f"{name}_deviation_members"], values.std(axis=0, ddof=1), atol=1e-5)
    for chunk in encoded.stream_each(points, chunk_size=16):
        for field, values in chunk.fields.items():
            rows = slice(chunk.start, chunk.start + values.shape[2])
            for member, one in enumerate(each):
                np.testing.assert_allclose(values[member, 0], one[f"{chunk.branch}_{field}"][rows], atol=1e-5)


def test_a_member_has_the_parameters_of_its_run(joined, runs, tmp_path):
    for number, (member, path) in enumerate(zip(load_run(joined).members, runs, strict=True)):
        alone = load_run(path)
        assert_same_params(member, alone)
        assert main(["ensemble", str(joined), "--member", str(number), "--out", str(tmp_path / f"{number}")]) == 0
        assert_same_params(load_run(tmp_path / f"{number}"), alone)


def assert_same_params(one, other) -> None:
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), one.params, other.params))
    assert not one.others
    assert one.normalizer == other.normalizer


def test_members_and_draws_are_kept_apart(joined, points):
    ensemble = load_run(joined)
    shown, queries = {"points": points, "geometry": points["surface"]}, {"volume": points["volume"]}
    found = ensemble.encode_draws(2, **shown, seed=5).predict(queries)
    values = np.stack(
        [
            [member.encode(**shown, seed=seed).predict(queries)["volume_velocity"] for seed in (5, 6)]
            for member in ensemble.members
        ]
    )
    np.testing.assert_allclose(found["volume_velocity"], values.mean(axis=(0, 1)), atol=1e-5)
    between = values.mean(axis=1).std(axis=0, ddof=1)
    np.testing.assert_allclose(found["volume_velocity_deviation_members"], between, atol=1e-5)
    within = np.sqrt(values.var(axis=1, ddof=1).mean(axis=0))
    np.testing.assert_allclose(found["volume_velocity_deviation_draws"], within, atol=1e-5)


def test_an_iterable_of_queries_is_run_through_once(joined, points):
    encoded = load_run(joined).encode(points=points, geometry=points["surface"])
    whole = encoded.predict({"volume": points["volume"]}, chunk_size=16)
    reads = []

    def blocks():
        for start in range(0, 50, 7):
            reads.append(start)
            yield points["volume"][start : start + 7]

    chunks = list(encoded.stream({"volume": blocks()}, chunk_size=16))
    assert reads == list(range(0, 50, 7))
    streamed = np.concatenate([chunk.fields["velocity"] for chunk in chunks])
    np.testing.assert_array_equal(streamed, whole["volume_velocity"])


def test_the_derivative_of_an_ensemble_is_the_mean_of_its_members(joined):
    surface, volume = ellipsoid(), np.random.default_rng(1).uniform(1, 2, (40, 3))
    ensemble, functional = load_run(joined), drag(speed=1.0, area=1.0)
    found = sensitivity(ensemble, surface, functional, points={"volume": volume})
    each = [sensitivity(member, surface, functional, points={"volume": volume}) for member in ensemble.members]
    assert found.value == pytest.approx(np.mean([one.value for one in each]))
    np.testing.assert_allclose(found.vertices, np.mean([one.vertices for one in each], axis=0), atol=1e-7)


def test_runs_that_differ_in_more_than_their_weights_are_refused(joined, runs, tmp_path, capsys):
    changed(runs[1], tmp_path / "wide", lambda values: values["model"].update(dim=48))
    changed(runs[1], tmp_path / "scaled", lambda values: values["normalizer"].update(position_scale=2.0))
    out = str(tmp_path / "out")
    for words, message in (
        ([runs[0], tmp_path / "wide"], "wide has model.dim = 48, "),
        ([runs[0], tmp_path / "scaled"], "scaled has normalizer.position_scale = "),
        ([runs[0]], "an ensemble needs at least two models"),
        ([runs[0], tmp_path / "none"], "none is not a run"),
        ([joined, "--member", "3"], "member must be one of 0 to 2, got 3"),
    ):
        assert main(["ensemble", *map(str, words), "--out", out]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_exported_ensemble_predicts_what_it_does_and_each_member(joined, points, tmp_path):
    assert main(["export", str(joined), "--out", str(tmp_path / "model.emmi")]) == 0
    live, exported = load_run(joined), deploy.load(tmp_path / "model.emmi")
    assert exported.num_members == MEMBERS
    shown = {"points": points, "geometry": points["surface"], "seed": 2}
    found, expected = (model.encode(**shown).predict(points) for model in (exported, live))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)
    each = [member.encode(**shown).predict(points)["volume_velocity"] for member in live.members]
    chunk = next(iter(exported.encode(**shown).stream_each({"volume": points["volume"]})))
    np.testing.assert_allclose(chunk.fields["velocity"][:, 0], each, atol=1e-5)


def test_what_takes_one_model_says_so(joined, tmp_path, capsys):
    for words in (
        ["train", "--init-from", str(joined), "--members", "2", "--out", str(tmp_path), "--name", "more"],
        ["train", "--resume", "--out", str(joined.parent), "--name", joined.name],
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "has 3 members: expected --members 3, got 2" in error or "num_members" in error
        assert error.count("\n") == 1


def test_a_joined_run_is_trained_on_what_any_member_was_trained_on(runs, tmp_path):
    for number, split in enumerate(({"a": "train", "b": "test"}, {"a": "test", "b": "train", "c": "test"})):
        changed(runs[number], tmp_path / f"run_{number}", lambda values, split=split: values.update(split=split))
    assert main(["ensemble", str(tmp_path / "run_0"), str(tmp_path / "run_1"), "--out", str(tmp_path / "both")]) == 0
    config = RunDirectory.open(tmp_path / "both").read_config()
    assert config.split == {"a": "train", "b": "train", "c": "test"}
