"""Kills, a full disk, readers beside a writer and two writers: the run or the store is whole, and goes on."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emmi_jax import load_run
from emmi_jax.runs.directory import RunDirectory
from tests.jobs.tiny_runs import write_case

pytestmark = pytest.mark.faults

TINY = ["--num-anchors", "8", "--num-queries", "8", "--dim", "18", "--set", "model.num_heads=1",
        "--set", "sampling.num_test_anchors=8", "--set", 'model.physics_blocks=["self"]']  # fmt: skip
STEPS = 60
NUM_KILLS = int(os.environ.get("EMMI_JAX_KILLS", "3"))
COMMAND = [sys.executable, "-c", "import sys; from emmi_jax.cli import main; sys.exit(main())"]


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=150)
    return process.returncode, errors


def new_run(folder: Path, out: Path, steps: int = STEPS) -> list[object]:
    case = write_case(folder / "case.npz")
    return ["train", "--data", case, "--out", out, "--name", "run", "--steps", steps, "--checkpoint-every", 2, *TINY]


def test_readers_and_a_second_writer_beside_a_writer_change_nothing(tmp_path):
    writer = start(*new_run(tmp_path, tmp_path, steps=200))
    run, num_read, second = tmp_path / "run", 0, None
    while writer.poll() is None:
        with contextlib.suppress(ValueError):  # not a run yet, or no checkpoint yet
            load_run(run)
            num_read += 1
        if num_read and second is None:
            second = start("train", "--out", tmp_path, "--name", "run", "--resume")
        time.sleep(0.01)
    status, errors = end(writer)
    assert status == 0, errors
    assert num_read
    refused, line = end(second)
    assert (refused, "is in use by process" in line, line.count("\n")) == (2, True, 1) or refused == 0
    assert [row["step"] for row in RunDirectory(run).read_metrics()] == list(range(1, 201))


def test_a_run_killed_at_any_moment_goes_on(tmp_path):
    rng, command = random.Random(0), new_run(tmp_path, tmp_path)
    resume = ["train", "--out", tmp_path, "--name", "run", "--resume"]
    for _ in range(NUM_KILLS):
        process = start(*(resume if (tmp_path / "run").exists() else command))
        time.sleep(rng.uniform(2, 9))
        process.send_signal(signal.SIGKILL)
        end(process)
        if (tmp_path / "run").exists():
            assert {"config.json", "context.npz"} <= {path.name for path in (tmp_path / "run").iterdir()}
    status, errors = end(start(*(resume if (tmp_path / "run").exists() else command)))
    assert status == 0, errors
    assert [row["step"] for row in RunDirectory(tmp_path / "run").read_metrics()] == list(range(1, STEPS + 1))
    print(f"{NUM_KILLS} kills, all handled")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_while_saving_ends_with_a_line_and_keeps_what_was_saved(small_disk, tmp_path):
    status, errors = end(start(*new_run(tmp_path, small_disk)))
    assert status == 2
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line]
    assert len(lines) == 1, lines
    assert "error: " in lines[0]
    assert json.loads((small_disk / "run" / "config.json").read_text())
