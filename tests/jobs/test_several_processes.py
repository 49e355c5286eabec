"""One run of two processes: stopped, killed and resumed by another number, it ends like an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from emmi_jax import load_run
from tests.jobs.tiny_runs import run, tiny_settings, write_case

REPOSITORY = Path(__file__).parents[2]
STEPS = 9
SETTINGS = {"steps": STEPS, "batch_size": 4, "num_anchors": 8, "checkpoint_every": 3}

PROGRAM = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from emmi_jax.data.point_cloud import PointCloudDataset
from emmi_jax.jobs import train as job
from emmi_jax.config import DeviceOptions, TrainJob
from emmi_jax.training.processes import connected, is_main
from tests.jobs.tiny_runs import tiny_settings
from tests.jobs.test_several_processes import SETTINGS

path, case, address, num, own, mesh, fsdp, fault, at_step, resume = sys.argv[1:]
train_sample = PointCloudDataset.train_sample

def with_fault(dataset, seed, number):
    global fault
    if fault != "none" and own == "1" and number // SETTINGS["batch_size"] == int(at_step):
        number_of_signal, fault = getattr(signal, fault), "none"
        os.kill(os.getpid(), number_of_signal)
    return train_sample(dataset, seed, number)

PointCloudDataset.train_sample = with_fault
job.draw_pictures = lambda *args: []
with connected(address, int(num), int(own)):
    asked = TrainJob(resume=resume == "resume", devices=DeviceOptions(mesh=mesh, fsdp=fsdp == "fsdp"))
    settings, console = tiny_settings(Path(case), **SETTINGS), Console(quiet=True)
    outcome = job.train(settings, Path(path), asked, console=console)
sys.exit(0 if outcome.signal_number is None else 128 + outcome.signal_number)
"""


def run_processes(
    path: Path, num: int, devices: int, mesh: str, *, fsdp: bool = False, fault: str = "none", at_step: int = 0,
    resume: bool = True,
) -> list[tuple[int, str]]:  # fmt: skip
    """Trains in `num` processes of some devices each, of which number 1 has a fault; returns statuses and stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    case = str(path.parent / "case.npz")
    rest = [mesh, "fsdp" if fsdp else "whole", fault, str(at_step), "resume" if resume else "new"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), case, address, str(num), str(own), *rest],
            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        for own in range(num)
    ]  # fmt: skip
    return [(process.returncode, errors) for process in processes for _, errors in [process.communicate(timeout=300)]]


def newest(path: Path) -> int:
    return max(int(step.name) for step in (path / "checkpoints").iterdir() if step.name.isdecimal())


def losses(path: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def test_a_run_stopped_killed_and_resumed_by_other_numbers_of_processes_ends_like_an_undisturbed_one(tmp_path):
    path, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    run(tiny_settings(write_case(tmp_path / "case.npz"), **SETTINGS), undisturbed)
    stopped = run_processes(path, 2, 2, "data=2,tokens=2", fault="SIGTERM", at_step=2, resume=False)
    assert [status for status, _ in stopped] == [128 + signal.SIGTERM] * 2, stopped
    assert 2 <= newest(path) < 6
    (status, errors), (killed, _) = run_processes(path, 2, 1, "tokens=2", fsdp=True, fault="SIGKILL", at_step=7)
    assert (status, killed) == (1, -signal.SIGKILL), errors
    assert "continue with --resume" in errors
    assert 2 <= newest(path) < STEPS
    run(tiny_settings(tmp_path / "case.npz", **SETTINGS), path, resume=True)
    assert list(losses(path)) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(losses(path).values()), list(losses(undisturbed).values()), rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), load_run(path).params, load_run(undisturbed).params
    )
