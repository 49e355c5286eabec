"""Full disks, readers beside a writer, and two writers: one line, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emmi_jax import load_run
from emmi_jax.data.store import Store
from emmi_jax.runs.directory import RunDirectory
from tests.faults.children import Child, ended, is_one_line
from tests.faults.test_kills import TINY, finished_cases, write_cases
from tests.jobs.tiny_runs import write_case

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of as many KiB as the parameter says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("small_disk", [400], indirect=True)
def test_a_full_disk_ends_training_with_one_line_and_the_run_goes_on_when_there_is_room(small_disk, tmp_path):
    case = write_case(tmp_path / "case.npz")
    new = ["train", "--data", case, "--out", small_disk, "--name", "run", "--steps", 20, "--checkpoint-every", 2, *TINY]
    end = ended(new, small_disk)
    assert end.status == 2, end
    assert is_one_line(end.errors), end
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    resume = ["train", "--out", small_disk, "--name", "run", "--resume"]
    again = ended(resume if (small_disk / "run").is_dir() else new, small_disk)
    assert (again.status, again.errors) == (0, ""), again
    assert [row["step"] for row in RunDirectory(small_disk / "run").read_metrics()] == list(range(1, 21))


@pytest.mark.parametrize("small_disk", [60], indirect=True)
def test_a_full_disk_ends_prepare_with_one_line_and_the_store_is_completed_when_there_is_room(small_disk, tmp_path):
    cases = write_cases(tmp_path / "cases", 6)
    command = ["prepare", cases, "--out", small_disk / "store"]
    end = ended(command, small_disk)
    assert end.status == 2, end
    assert is_one_line(end.errors), end
    kept = finished_cases(small_disk / "store")
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert ended(command, small_disk)[:2] == (0, "")
    assert kept.items() <= finished_cases(small_disk / "store").items()
    assert len(Store(str(small_disk / "store")).names) == 6


def test_readers_and_a_second_writer_beside_training_change_nothing(tmp_path):
    case = write_case(tmp_path / "case.npz")
    writer = Child(["train", "--data", case, "--out", tmp_path, "--name", "run", "--steps", 30, "--checkpoint-every", 1,
                    *TINY], tmp_path / "first")  # fmt: skip
    run, num_read, second = tmp_path / "run", 0, None
    while writer.process.is_alive():
        with contextlib.suppress(ValueError):  # not a run yet, or no checkpoint yet
            load_run(run)
            num_read += 1
        if num_read and second is None:
            second = Child(["train", "--out", tmp_path, "--name", "run", "--resume"], tmp_path / "second")
        time.sleep(0.05)
    assert writer.end()[:2] == (0, "")
    assert num_read
    refused = second.end()
    assert refused.status == 0 or (refused.status == 2 and "is in use by process" in refused.errors), refused
    assert [row["step"] for row in RunDirectory(run).read_metrics()] == list(range(1, 31))


def test_of_two_that_prepare_one_store_one_does_and_the_other_ends_with_one_line(tmp_path):
    cases, store = write_cases(tmp_path / "cases", 8), tmp_path / "store"
    both = [Child(["prepare", cases, "--out", store], tmp_path / name) for name in ("first", "second")]
    ends = [child.end() for child in both]
    assert 0 in [end.status for end in ends], ends
    for end in ends:
        assert end.status == 0 or is_one_line(end.errors), ends
    assert json.loads((store / "store.json").read_text())["cases"] == Store(str(store)).names
    assert len(Store(str(store)).names) == 8
