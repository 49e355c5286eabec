"""What a model takes beside positions comes from the data to the fields, by every command that it works with."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from emmi_jax import deploy
from emmi_jax.cli import main
from emmi_jax.data.load import load_dataset, make_normalizer
from emmi_jax.points import PointSet
from emmi_jax.runs.load import load_run
from tests.jobs.tiny_runs import run, tiny_settings

FEATURES = {"volume": ("distance", "part")}


def write_case(path: Path, num_points: int = 60) -> dict[str, np.ndarray]:
    """A case whose pressure depends on what lies beside the positions."""
    rng = np.random.default_rng(0)
    position = rng.uniform(-1, 1, (num_points, 3))
    part = np.eye(2)[rng.integers(2, size=num_points)]
    distance = np.abs(position[:, 0])
    arrays = {"position": position, "distance": distance, "part": part, "pressure": part[:, 0] + 40 * distance}
    np.savez(path, **arrays)
    return arrays


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "case.npz"
    write_case(path)
    return path


@pytest.fixture(scope="module")
def trained(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "features"
    run(tiny_settings(case, features=FEATURES, steps=2), path, pictures=True)
    return path


def test_a_run_names_its_features_with_their_scales(trained: Path) -> None:
    surrogate = load_run(trained)
    assert surrogate.features == {"volume": {"distance": 1, "part": 2}}
    assert surrogate.model.config.feature_dims == {"volume": 3}
    assert surrogate.model.config.fields == {"volume": {"pressure": 1}}
    assert surrogate.normalizer.features["volume"]["part"].std != (1.0, 1.0)
    assert surrogate.context is not None
    assert surrogate.context.anchor_features["volume"].shape == (8, 3)


def test_the_file_of_the_case_exported_and_live_gives_the_same_fields(
    trained: Path, case: Path, tmp_path: Path
) -> None:
    arrays = np.load(case)
    assert main(["predict", str(trained), "--points", str(case), "--out", str(tmp_path / "fields.npz")]) == 0
    fields = np.load(tmp_path / "fields.npz")["pressure"]
    queries, by_name = {"volume": arrays["position"]}, {"volume": {name: arrays[name] for name in ("part", "distance")}}
    surrogate = load_run(trained)
    np.testing.assert_allclose(
        surrogate.encode().predict(queries, query_features=by_name, chunk_size=7)["volume_pressure"], fields, rtol=1e-5
    )
    joined = {"volume": np.concatenate([arrays["distance"][:, None], arrays["part"]], axis=1)}
    assert main(["export", str(trained), "--out", str(tmp_path / "model.emmi")]) == 0
    exported = deploy.load(tmp_path / "model.emmi")
    assert exported.features == surrogate.features
    for given, size in ((by_name, "auto"), (joined, 7)):
        found = exported.encode().predict(queries, query_features=given, chunk_size=size)
        np.testing.assert_allclose(found["volume_pressure"], fields, rtol=1e-5)
    swapped = {"volume": joined["volume"] + 1}
    assert not np.allclose(surrogate.encode().predict(queries, query_features=swapped)["volume_pressure"], fields)
    # Other anchors than those of the run's context, as many as the file has no program of its own for.
    few = {"anchors": {"volume": arrays["position"][:7]}, "anchor_features": {"volume": joined["volume"][:7]}}
    live, found = (
        model.encode(**few).predict(queries, query_features=joined)["volume_pressure"]
        for model in (surrogate, exported)
    )
    np.testing.assert_allclose(found, live, rtol=1e-5)
    assert not np.allclose(live, fields)
    with pytest.raises(ValueError, match="the model takes features of the anchor volume"):
        exported.encode(anchors=few["anchors"])


def test_drawn_anchors_bring_the_features_of_the_points_that_they_are_drawn_from(trained: Path, case: Path) -> None:
    arrays, surrogate = np.load(case), replace(load_run(trained), context=None)
    position, features = arrays["position"], np.concatenate([arrays["distance"][:, None], arrays["part"]], axis=1)
    idx = np.random.default_rng(3).choice(len(position), 8, replace=False)
    queries, query_features = {"volume": position}, {"volume": features}
    drawn = surrogate.encode(points={"volume": PointSet(position, {}, features=features)}, seed=3)
    given = surrogate.encode(anchors={"volume": position[idx]}, anchor_features={"volume": features[idx]})
    expected = given.predict(queries, query_features=query_features)["volume_pressure"]
    np.testing.assert_array_equal(drawn.predict(queries, query_features=query_features)["volume_pressure"], expected)


def test_gradients_of_training_reach_the_weights_of_features(trained: Path, case: Path, tmp_path: Path) -> None:
    run(tiny_settings(case, features=FEATURES, steps=1), tmp_path / "run")
    first, second = (load_run(path).params["volume_features"] for path in (tmp_path / "run", trained))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), first, second)))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"volume": ("normal",)}, "features of 'volume': the data have no array 'normal', only ['distance', 'part'"),
        ({"surface": ("normal",)}, "features name 'surface', but the data have the branches ['volume']"),
        ({"volume": ("distance", "part", "pressure")}, "no field left to predict"),
        ({"volume": "part"}, "features of 'volume' must be a sequence of names, got 'part'"),
        ({"geometry": ("part",)}, "features name 'geometry', but the data have the branches ['volume']"),
    ],
)
def test_features_that_the_data_lack_are_refused(
    features: dict, message: str, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[features]\n" + "\n".join(f"{b} = {json.dumps(names)}" for b, names in features.items()))
    assert main(["train", "--data", str(case), "--config", str(settings), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("part", "no array 'part': the model takes the feature 'part' of 'position'"),
        ("distance", "no array 'dist"),
    ],
)
def test_one_line_says_which_array_is_missing(
    left_out: str, message: str, trained: Path, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "points.npz", **{n: a for n, a in np.load(case).items() if n != left_out})
    command = ["predict", str(trained), "--points", str(tmp_path / "points.npz"), "--out", str(tmp_path / "out.npz")]
    assert main(command) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (None, "the model takes features of the query volume: distance (1), part (2), got none"),
        ({"volume": {"part": np.zeros((4, 2))}}, "the array 'distance' is missing, found ['part']"),
        ({"volume": np.zeros((4, 2))}, "features of the query volume must be numbers of shape [4, 3]"),
        ({"volume": np.full((4, 3), np.nan)}, "must hold finite numbers"),
        ({"volume": np.zeros((4, 3)), "wake": np.zeros((4, 3))}, "query_features of ['wake'] are given"),
    ],
)
def test_features_of_queries_that_do_not_fit_are_refused(
    features: dict | None, message: str, trained: Path, tmp_path: Path
) -> None:
    queries = {"volume": np.zeros((4, 3))}
    with pytest.raises(ValueError, match=re.escape(message)):
        load_run(trained).encode().predict(queries, query_features=features)


def test_a_dry_run_and_info_say_what_the_model_takes(
    trained: Path, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(trained)]) == 0
    assert "features   volume: distance (1), part (2)" in capsys.readouterr().out
    options = ["--data", str(case), "--set", "features.volume=['part']", "--steps", "1", "--dim", "24"]
    options += ["--num-anchors", "6", "--num-queries", "4", "--batch-size", "1"]
    assert main(["train", *options, "--dry-run", "--set", "model.num_heads=2", "--out", str(tmp_path)]) == 0
    assert "features   volume: part (2)" in capsys.readouterr().out


def test_features_keep_their_places_whatever_the_order_of_statistics_and_settings(
    trained: Path, case: Path, tmp_path: Path
) -> None:
    swapped = tiny_settings(case, features={"volume": ("part", "distance")}, statistics=str(trained / "config.json"))
    own, known = (make_normalizer(s, load_dataset(s)) for s in (swapped, replace(swapped, statistics=None)))
    assert list(own.features["volume"]) == ["part", "distance"]
    np.testing.assert_allclose(own.features["volume"]["part"].std, known.features["volume"]["part"].std)
    command = ["train", "--init-from", str(trained), "--data", str(case), "--out", str(tmp_path), "--steps", "1"]
    assert main([*command, "--set", "features.volume=['part','distance']"]) == 2
    assert not list(tmp_path.iterdir())


def test_statistics_without_a_feature_are_refused(trained: Path, case: Path) -> None:
    settings = tiny_settings(case, features={"volume": ("pressure",)}, statistics=str(trained / "config.json"))
    with pytest.raises(ValueError, match="the statistics lack volume/distance"):
        make_normalizer(settings, load_dataset(settings))
    known = load_run(trained).normalizer
    with pytest.raises(ValueError, match="the statistics lack the feature 'normal' of 'volume', the data 3"):
        known.for_features({"volume": {"normal": 3}})
    with pytest.raises(ValueError, match="the statistics have 2 channels for the feature 'part'"):
        known.for_features({"volume": {"part": 3}})
