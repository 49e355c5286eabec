"""Commands that are killed, or find the disk full, at any change of a file: the result is whole, and can be made again.

Changes of files are counted, so the same seed hits the same ones, and hundreds of faults cost little.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch

from emmi_jax import load_run
from emmi_jax.files.locks import LOCK_FILE
from emmi_jax.runs.directory import RunDirectory
from tests.faults.children import Ended, Fault, ended, is_one_line
from tests.jobs.test_convert import GOLDEN, TUTORIAL
from tests.jobs.tiny_runs import run, tiny_settings, write_case

pytestmark = pytest.mark.faults

NUM_FAULTS = int(os.environ.get("EMMI_JAX_FAULTS", "15")) // 5
"""Of each command."""
POINTS = np.random.default_rng(1).uniform(-1, 1, size=(20, 3))
STEPS = 4
TINY = ["--num-anchors", 8, "--num-queries", 8, "--dim", 18, "--set", "model.num_heads=1", "--set", "dense_fraction=0",
        "--set", "sampling.num_test_anchors=8", "--set", 'model.physics_blocks=["self"]']  # fmt: skip


class Command(NamedTuple):
    """A command line without its output, the name of the output, and what it holds."""

    arguments: list[object]
    out: str
    content: Callable[[Path], Any]


def write_cases(folder: Path, num_cases: int) -> Path:
    for number in range(num_cases):
        rng, case = np.random.default_rng(number), folder / f"run_{number}"
        case.mkdir(parents=True)
        for name, shape in (("surface_points", (60, 3)), ("surface_pressure", (60,)), ("volume_points", (60, 3))):
            torch.save(torch.tensor(rng.normal(size=shape), dtype=torch.float32), case / f"{name}.pt")
        torch.save(torch.zeros(60, 3), case / "volume_velocity.pt")
    return folder


def fields(path: Path) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in load_run(path).encode().predict({"volume": POINTS}).items()}


def members(path: Path) -> dict[str, bytes]:
    """What a zip holds; its bytes say when it was written, too."""
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def weights(path: Path) -> dict[str, bytes]:
    leaves = jax.tree_util.tree_leaves_with_path(load_run(path).params)
    return {jax.tree_util.keystr(key): np.asarray(array).tobytes() for key, array in leaves}


def finished_cases(store: Path) -> dict[str, bytes]:
    """The files of the finished cases of a store."""
    cases = [path.parent for path in store.glob("*/case.json")]
    return {str(p.relative_to(store)): p.read_bytes() for case in cases for p in case.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    folder = tmp_path_factory.mktemp("inputs")
    run(tiny_settings(write_case(folder / "case.npz"), steps=2), folder / "run")
    (folder / "config.json").write_text(json.dumps(TUTORIAL))
    checkpoint = GOLDEN / "ab_upt_tutorial_48.th"
    cases = write_cases(folder / "cases", 2)
    return {
        "prepare": Command(["prepare", cases], "store", finished_cases),
        "convert": Command(["convert", checkpoint, "--config", folder / "config.json"], "converted", weights),
        "export": Command(["export", folder / "run"], "run.emmi", members),
        "predict": Command(["predict", folder / "run", "--points", folder / "case.npz"], "fields.npz", members),
    }


def files(folder: Path) -> set[str]:
    """Names of files, without those that have a time or a hash in their names."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if "/d/" not in name and not name.startswith("tensorboard/")}


def some_faults(num_changes: int, rng: random.Random) -> list[Fault]:
    """Kills, at a change or up to 30 ms after it, and full disks."""
    kinds = (("kill", 0.0), ("kill", 0.03), ("full", 0.0))
    return [
        Fault(rng.randrange(num_changes), kind, rng.uniform(0, latest))
        for kind, latest in itertools.islice(itertools.cycle(kinds), NUM_FAULTS)
    ]


def check_status(end: Ended, fault: Fault) -> None:
    if fault.kind == "full":
        assert end.status == 0 or (end.status == 2 and is_one_line(end.errors)), (fault, end)
    else:
        assert end.status in (-9, 0), (fault, end)
        assert not end.errors, (fault, end)


@pytest.mark.parametrize("name", ["prepare", "convert", "export", "predict"])
def test_a_command_that_is_killed_or_finds_the_disk_full_leaves_the_result_or_what_was_there(name, commands, tmp_path):
    arguments, out, content = commands[name]
    whole = ended([*arguments, "--out", tmp_path / "whole" / out], tmp_path / "whole")
    assert (whole.status, whole.errors) == (0, "")
    expected, rng = content(tmp_path / "whole" / out), random.Random(0)
    for number, fault in enumerate(some_faults(whole.num_changes, rng)):
        folder = tmp_path / str(number)
        folder.mkdir()
        path, is_file = folder / out, "." in out
        if is_file:
            path.write_bytes(b"earlier")
        check_status(ended([*arguments, "--out", path], folder, fault), fault)
        if name == "prepare":
            assert finished_cases(path).items() <= expected.items(), fault
        elif path.exists() and not (is_file and path.read_bytes() == b"earlier"):
            assert content(path) == expected, fault
        if path.is_dir() and name != "prepare":
            continue
        again = ended([*arguments, "--out", path], folder)
        assert (again.status, again.errors) == (0, ""), (fault, again)
        assert content(path) == expected, fault
        assert files(folder) == files(tmp_path / "whole"), fault
        shutil.rmtree(folder)


def test_a_run_that_is_killed_or_finds_the_disk_full_goes_on_to_the_same_fields(tmp_path):
    case = write_case(tmp_path / "case.npz")
    new = ["train", "--data", case, "--steps", STEPS, "--checkpoint-every", 2, *TINY, "--name", "run", "--out"]
    resume = ["train", "--resume", "--name", "run", "--out"]
    whole = ended([*new, tmp_path / "whole"], tmp_path / "whole")
    assert (whole.status, whole.errors) == (0, "")
    expected, folder = fields(tmp_path / "whole" / "run"), tmp_path / "out"
    folder.mkdir()
    path = folder / "run"
    for fault in [*some_faults(whole.num_changes, random.Random(0)), None]:
        if path.is_dir() and (path / "metrics.json").is_file():
            shutil.rmtree(path)
        end = ended([*(resume if path.exists() else new), folder], folder, fault)
        if fault is not None:
            check_status(end, fault)
        if path.exists():
            assert {"config.json", "context.npz"} <= files(path), fault
            check_reading(path, fault, expected)
    assert (end.status, end.errors) == (0, "")
    assert [row["step"] for row in RunDirectory(path).read_metrics()] == list(range(1, STEPS + 1))
    assert fields(path) == expected
    assert files(path) - {LOCK_FILE} == files(tmp_path / "whole" / "run")


def check_reading(path: Path, fault: Fault | None, expected: dict[str, list[Any]]) -> None:
    if not list(path.glob("checkpoints/[0-9]")):
        with pytest.raises(ValueError, match=r"no (latest )?checkpoint yet"):
            fields(path)
    elif (path / "checkpoints" / str(STEPS)).is_dir():
        assert fields(path) == expected, fault
    else:
        fields(path)
