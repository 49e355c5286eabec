"""What is declared of a setting is what its check, its option, its docstring and the help say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from emmi_jax.cli.options import command
from emmi_jax.config import Config, TrainJob, TrainSettings
from emmi_jax.config.setting import declared, setting
from emmi_jax.data.case_split import PUBLISHED_SPLITS
from emmi_jax.data.published import STATISTICS
from emmi_jax.training.plan import resolve
from emmi_jax.training.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Brush(Config):
    """What paints."""

    width: float = setting(0.5, "Width in m.", positive=True, option="--width")


@dataclass(frozen=True, kw_only=True)
class Job(Config):
    """What to paint."""

    wall: Path = setting(dataclasses.MISSING, "The wall.", option="", metavar="WALL")
    coats: int = setting(2, "Coats of paint.", low=1, high=9)
    corner: tuple[float, float, float] = setting((0.0, 0.0, 1.0), "Where to start.", metavar="X,Y,Z")
    colours: tuple[str, ...] = setting((), "Colours; may be repeated.", option="--colour")
    finish: str = setting("matt", "matt or gloss.", choices=("matt", "gloss"))
    brush: dict[str, Any] = setting(dict, "Changes of the brush.", of=Brush)


def paint(*words: str) -> tuple[Job | None, str]:
    """Returns the job that a command line asks for, and what is printed."""
    asked = []

    def run(job: Job) -> None:
        """Paint a wall."""
        asked.append(job)

    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command(run, (Brush(), Brush(width=2.0))))
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return (asked or [None])[0], result.output


def test_a_command_line_becomes_the_job():
    job, _ = paint("w", "--coats", "3", "--corner", "1,2,3", "--colour", "red", "--colour", "blue", "--width", "1")
    assert job == Job(wall=Path("w"), coats=3, corner=(1, 2, 3), colours=("red", "blue"), brush={"width": 1.0})
    assert paint("w")[0] == Job(wall=Path("w"))


def test_help_says_what_is_declared(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = " ".join(paint("--help")[1].split())
    for expected in (
        "Paint a wall.",
        "The wall. [required]",
        "Coats of paint. [default: 2; x>=1]",
        "--corner X,Y,Z Where to start. [default: 0,0,1]",
        "Width in m; default 0.5, or 2 with --data.",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coats": 10}, "coats must be at most 9, got 10"),
        ({"coats": 1.5}, "coats must be an integer >= 1, got 1.5"),
        ({"finish": "wet"}, "finish must be one of matt, gloss, got 'wet'"),
        ({"colours": "red"}, "colours must be a sequence of names, got 'red'"),
    ],
)
def test_a_value_out_of_what_is_declared_is_quoted(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Job(wall=Path("w"), **values)


def test_a_vector_of_other_than_three_numbers_is_refused_by_its_option():
    with pytest.raises(
        ValueError, match=re.escape("--corner must be three numbers with commas between them, got '1,2'")
    ):
        paint("w", "--corner", "1,2")


def test_a_docstring_lists_settings_with_their_ranges_and_those_of_bases():
    assert "coats: Coats of paint. From 1 to 9." in (Job.__doc__ or "")
    assert "steps: Optimiser steps. From 1 to 100000000." in (TrainSettings.__doc__ or "")


def configs(cls: type[Config] = Config) -> Iterator[type[Config]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from configs(sub)


def test_every_setting_is_a_sentence_and_no_class_has_more_than_ten_of_its_own():
    for config in configs():
        own = [name for name in config.__annotations__ if name in {f.name for f in dataclasses.fields(config)}]
        assert len(own) <= 10, config
        for field in dataclasses.fields(config):
            if (spec := declared(field)) is not None:
                assert spec.help.endswith("."), (config, field.name)


def test_published_names_are_those_that_help_lists():
    help_of = {
        field.name: declared(field).help for cls in (TrainSettings, TrainJob) for field in dataclasses.fields(cls)
    }
    assert all(name in help_of["split"] for name in PUBLISHED_SPLITS)
    assert all(name in help_of["statistics"] for name in STATISTICS)
    assert help_of["recipe"] == f"Settings for a data set: {', '.join(RECIPES)}."


def test_a_run_is_planned_from_defaults_recipe_file_and_options(tmp_path):
    (file := tmp_path / "mine.toml").write_text("steps = 7\nbatch_size = 3\n")
    job = TrainJob(
        recipe="bodies",
        config=file,
        settings={"data": "cases", "batch_size": 4},
        assignments=("model.dim=48",),
        out=tmp_path,
    )
    settings, path = resolve(job, lambda data, foam: ("surface", "volume"))
    assert (settings.loss, settings.steps, settings.batch_size, settings.model["dim"]) == ("rmse", 7, 4, 48)
    assert settings.data == str(Path("cases").resolve())
    assert path == tmp_path / "cases-1"
