"""`emmi-jax export` writes a trained run to a file that gives its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import emmi_jax
from emmi_jax import deploy
from emmi_jax.cli import main
from tests.jobs.tiny_runs import run, tiny_settings, write_case


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(tiny_settings(write_case(folder / "case.npz"), steps=1), folder / "tiny")
    return folder / "tiny"


def test_a_run_on_a_single_case_brings_its_context(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "tiny.emmi"
    assert main(["export", str(trained), "--out", str(out), "--unit", "position=m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == ["encode for cpu", "query/volume for cpu"] * 2
    assert lines[-1].startswith(f"{out}: ")
    exported, surrogate = deploy.load(out), emmi_jax.load_run(trained)
    assert exported.units == {"position": "m"}
    queries = {"volume": np.linspace(-1, 1, 12).reshape(4, 3)}
    expected = surrogate.encode().predict(queries)
    found = exported.encode().predict(queries)
    assert {name: a.tolist() for name, a in found.items()} == {name: a.tolist() for name, a in expected.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--platforms", "gpu"], "platforms must be some of cpu, cuda, rocm, tpu, got 'gpu'"),
        (["--unit", "position"], "--unit must be NAME=UNIT such as position=m, got 'position'"),
        (["--unit", "wake=m"], "got 'wake'"),
        (["--checkpoint", "first"], "checkpoint must be 'latest' or 'best', got 'first'"),
    ],
)
def test_a_mistake_costs_one_line_and_no_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    out = tmp_path / "tiny.emmi"
    assert main(["export", str(trained), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_out_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained), "--out", str(tmp_path)]) == 2
    assert "is a folder, expected a file" in capsys.readouterr().err
