"""Settings, configurations and logs of any type and size are taken, or refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from emmi_jax.config import TrainSettings
from emmi_jax.config.model import ModelOptions
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.jobs.convert import preset_config
from emmi_jax.plots.loss import draw_loss
from emmi_jax.runs.directory import RunConfig, RunDirectory
from emmi_jax.training.recipes import parse_assignment
from emmi_jax.training.settings import model_config

FUZZ = settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FIELDS = {"volume": {"velocity": 3, "pressure": 1}}
PARTS = {"": TrainSettings, "sampling.": type(TrainSettings().sampling), "model.": ModelOptions}
PARTS["optimizer."] = type(TrainSettings().optimizer)
NAMES = [prefix + field.name for prefix, part in PARTS.items() for field in dataclasses.fields(part)]
NAMES += [f"model.supernode_pooling.{name}" for name in ("radius", "k", "max_degree", "mode")]
NAMES += ["model.decoder_depths.volume", "loss_weights.volume/velocity", "nosuch", "a..b", ".", "seed.x"]
TEXTS = [
    *(
        "1" + "0" * 11,
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "-1",
        "0",
        "3",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "1e-320",
    ),
    *("true", "none", "''", "x", "[]", "[1]", "[[1]]", "[{a=1}]", "{}", "{a={b=[1]}}", "[true]", "['x']", "['self',1]"),
    *("1979-05-27", "07:32:00", "9223372036854775808", "'\\u0000'", "[nan]", "{self=1}", "[" * 3000),
]
JUNK: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**400, 1e308, "", "x", "1.5", "nan", [], [1], [[1]], {}, {"a": 1}, [None], {"": {}}),
]


def refused(error: ValueError) -> bool:
    return "\n" not in str(error) and len(str(error)) < 1500


@seed(0)
@FUZZ
@given(name=st.sampled_from(NAMES), text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=20)))
def test_a_setting_is_taken_or_refused_in_one_line(name: str, text: str) -> None:
    problem = None
    try:
        found = TrainSettings().updated(dict([parse_assignment(f"{name}={text}")]))
        model_config(found, FIELDS)
        hash(found)
    except ValueError as error:
        problem = error
    assert problem is None or refused(problem)
    if problem is None:
        assert TrainSettings.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("divergence_free=[[1]]", r"divergence_free must be a sequence of names, got \[\[1\]\]"),
        ("sampling.num_anchors=100000000000", "num_anchors must be at most 67108864, got 100000000000"),
        ("model.layer_scale=1" + "0" * 400, "layer_scale must be a finite number"),
        ("model.geometry_depth=1000000000", "geometry_depth must be at most 1000"),
        ("optimizer.b1=nan", "nan is not a finite number"),
    ],
)
def test_impossible_settings_are_quoted(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(TrainSettings().updated(dict([parse_assignment(text)])), FIELDS)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


CONFIG = dataclasses.replace(
    preset_config("drivaerml-tutorial"), settings=TrainSettings(), split={"a": "train"}, data_fingerprint="x"
).to_dict()


@seed(0)
@FUZZ
@given(place=st.sampled_from(places(CONFIG)), junk=st.sampled_from([*JUNK, "nothing"]))
def test_a_configuration_of_a_run_is_taken_or_refused_in_one_line(
    place: tuple[Any, ...], junk: Any, tmp_path: Path
) -> None:
    values = copy.deepcopy(CONFIG)
    parent = values
    for key in place[:-1]:
        parent = parent[key]
    if place and junk == "nothing":
        del parent[place[-1]]
    elif place:
        parent[place[-1]] = junk
    (tmp_path / "config.json").write_text(json.dumps(values if place else junk))
    problem = None
    try:
        config = RunConfig.read(tmp_path / "config.json")
        hash(config.model)
        config.foam(None, None)
        _ = config.normalizer.means
    except ValueError as error:
        problem = error
    assert problem is None or (refused(problem) and "config.json" in str(problem))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("normalizer"), "RunConfig lacks the key 'normalizer'"),
        (lambda values: values["normalizer"].update(fields={}), "the statistics lack .*, they are those of no field"),
        (lambda values: values["normalizer"]["fields"].pop("volume"), "the statistics lack volume/"),
    ],
    ids=["no scales", "no fields", "no branch"],
)
def test_scales_that_are_missing_are_named(change: Any, message: str, tmp_path: Path) -> None:
    change(values := copy.deepcopy(CONFIG))
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"config.json: not the configuration of a run: {message}"):
        RunConfig.read(tmp_path / "config.json")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e39, "1", True, None, [1.0]])
def test_impossible_scales_are_refused(number: Any) -> None:
    for kind in ("mean", "std", "limit"):
        with pytest.raises(ValueError, match=kind):
            FieldScale(**{"mean": (0.0,), "std": (1.0,), kind: (number,)})
    with pytest.raises(ValueError, match="position_low"):
        Normalizer(position_low=(number, 0.0), position_scale=1.0, fields={})
    with pytest.raises(ValueError, match="position_scale"):
        Normalizer(position_low=(0.0, 0.0), position_scale=number, fields={})


def test_junk_in_a_log_is_skipped_and_the_rest_is_kept(tmp_path: Path) -> None:
    run, row = RunDirectory(tmp_path), {"step": 1, "loss": 2.0}
    junk = ["", "{", "[1]", "3", '{"loss": 1}', '{"step": "x"}', '{"step": 1, "loss": [1]}', "[" * 5000, "\x00"]
    lines = [json.dumps(row), *junk, json.dumps({"step": 2}), json.dumps({"step": 3, "loss": 1.0})]
    run.metrics_log.write_bytes("\n".join(lines).encode() + b'\n\xff\xfe\n{"step": 4, "lo')
    assert [found["step"] for found in run.read_metrics()] == [1, 2, 3]
    assert run.truncate_metrics(2) == [row, {"step": 2}]
    draw_loss(run.read_metrics(), tmp_path)
    draw_loss([], tmp_path)
