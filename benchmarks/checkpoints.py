"""What the checksums of a checkpoint cost: ``python -m benchmarks.checkpoints``.

Arrays of the shapes of a model and its optimizer's two moments are saved with and without checksums in turns. `blocked`
is how long training waits, `whole` how long until all is on the disk, `cpu` how long threads computed for it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks import measure
from emmi_jax.runs import checkpoints


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/checkpoints.json")
    parser.add_argument("--dim", type=int, default=1152, help="width of the layers (%(default)s)")
    parser.add_argument("--layers", type=int, default=26, help="number of layers (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="saves of each kind (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to save; by default for temporary files")
    options = parser.parse_args()
    rng, shape = np.random.default_rng(0), (options.dim, options.dim)
    trees = {
        name: {str(n): jax.device_put(rng.normal(size=shape).astype(np.float32)) for n in range(options.layers)}
        for name in ("params", "mu", "nu")
    }
    kinds = {"without": _no_checksums, "with": nullcontext}
    times: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in kinds}
    for number in range(options.rounds + 1):
        for kind in list(kinds) if number % 2 else list(reversed(kinds)):
            with kinds[kind]():
                found = _save(trees, options.folder)
            times[kind] += [found] if number else []  # the first compiles
    rows = [_row(kind, times) for kind in kinds]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) / 2**20
    measure.report(f"A checkpoint of {size:.0f} MiB, {measure.DEVICE}; medians", rows, options.json)


def _save(trees: Any, folder: Path | None) -> tuple[float, ...]:
    # New arrays: those that were copied from a device once keep the copy.
    trees = jax.block_until_ready(jax.tree.map(lambda leaf: leaf + 0, trees))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with checkpoints.Checkpoints(Path(place)) as writer:
            start, computed = time.perf_counter(), time.process_time()
            writer.save(1, trees)
            blocked = time.perf_counter() - start
        return blocked, time.perf_counter() - start, time.process_time() - computed


def _row(kind: str, times: dict[str, list[tuple[float, ...]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"checksums": kind}
    for number, name in enumerate(("blocked", "whole", "cpu")):
        samples = {each: [found[number] for found in times[each]] for each in (kind, "without")}
        row[f"{name}_ms"] = 1e3 * statistics.median(samples[kind])
        # Pairs were saved one after another, so the state of the machine cancels.
        row[f"{name}_ratio"] = statistics.median(np.divide(*samples.values()) if kind != "without" else [1.0])
    return row


def _no_checksums() -> AbstractContextManager[Any]:
    return mock.patch.object(checkpoints, "begin_checksums", return_value=dict)


if __name__ == "__main__":
    main()
