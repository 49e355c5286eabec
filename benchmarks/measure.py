"""Times the same computation in JAX and PyTorch side by side, in one process."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import rich.console
import rich.table
import torch

from emmi_jax.ops.attention import KERNELS

# Both frameworks share the memory of the GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

NUM_THREADS = len(os.sched_getaffinity(0))
ON_GPU = jax.default_backend() == "gpu"
TORCH_DEVICE = "cuda" if ON_GPU else "cpu"
DEVICE = jax.devices()[0].device_kind if ON_GPU else f"{NUM_THREADS} threads"
CALLS_PER_SAMPLE = 10 if ON_GPU else 1
"""A time is the mean of so many calls in a row: a GPU takes them from a queue, and is idle between single calls."""
_Name = TypeVar("_Name")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def arguments(description: str, default_json: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, default=Path(default_json), help="file for the rows (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to spend on each row (%(default)s)")
    parser.add_argument("--torch-compile", action="store_true", help="time torch.compile as well")
    return parser


def to_numpy(tree: Any) -> list[np.ndarray]:
    """The arrays of a result of either framework, in float32."""
    leaves = jax.tree.leaves(tree)
    return [
        leaf.detach().float().cpu().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf, np.float32)
        for leaf in leaves
    ]


def check_equal(results: Mapping[str, Any], dtype: str) -> float:
    """Returns the largest relative L2 distance between arrays of the contestants; raises if it is too large."""
    first, *others = (to_numpy(result) for result in results.values())
    worst = 0.0
    for other in others:
        for a, b in zip(first, other, strict=True):
            worst = max(worst, float(np.linalg.norm(a - b) / np.linalg.norm(a)))
    if not worst <= TOLERANCE[dtype]:
        raise ValueError(f"the contestants {list(results)} differ by {worst:.1e} of the norm in {dtype}")
    return worst


def interleaved_medians(contestants: Mapping[_Name, Callable[[], Any]], seconds: float) -> dict[_Name, float]:
    """Returns the median seconds per call; the contestants take turns.

    The first call of a turn is not timed: the other framework's idle threads still spin on the cores, and its data fill
    the cache.
    """
    times: dict[_Name, list[float]] = {name: [] for name in contestants}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(next(iter(times.values()))) < 3:
        for name, call in contestants.items():
            wait(call())
            start = time.perf_counter()
            for _ in range(CALLS_PER_SAMPLE):
                result = call()
            wait(result)
            times[name].append((time.perf_counter() - start) / CALLS_PER_SAMPLE)
    return {name: statistics.median(values) for name, values in times.items()}


@contextlib.contextmanager
def without(kernel: str) -> Iterator[None]:
    """Has `auto` leave out an attention kernel while programs are traced."""
    served = KERNELS[kernel]
    KERNELS[kernel] = served._replace(refusal=lambda call: "is left out")
    try:
        yield
    finally:
        KERNELS[kernel] = served


def wait(result: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    jax.block_until_ready([leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)])


def peak_memory(contestants: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Returns the largest growth of resident memory during one call, in MiB; nothing on a GPU."""
    if ON_GPU:
        return {}
    return {f"{name}_peak_mib": _peak_resident_growth(call) / 2**20 for name, call in contestants.items()}


def _peak_resident_growth(call: Callable[[], Any]) -> int:
    page, peak, stop = os.sysconf("SC_PAGE_SIZE"), 0, threading.Event()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.001):
            peak = max(peak, resident())

    before = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    wait(call())
    stop.set()
    thread.join()
    return max(0, peak - before)


def machine() -> dict[str, Any]:
    """Describes the machine and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return {
        "cpu": cpu,
        "threads": NUM_THREADS,
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
    }


def report(title: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Prints the rows as a table and writes them as JSON."""
    table = rich.table.Table(title=title)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    rich.console.Console(width=120).print(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def use_all_threads() -> None:
    """Gives PyTorch as many threads as JAX uses."""
    torch.set_num_threads(NUM_THREADS)
