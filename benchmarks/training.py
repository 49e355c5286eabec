"""Trains at the published sizes on a mesh of devices: ``python -m benchmarks.training --mesh data=1 data=2 tokens=2``.

The batch has a case for each device of the axis `data`, so that a perfect mesh keeps the seconds of a step; devices of
the axis `tokens` share a case, so that they divide them. One process, or several with ``--coordinator``. With
``--workers 4``, so many processes on the host draw the batches and search for the neighbours of the supernodes.

With ``--implementations flash cudnn``, the kernels take turns on each mesh.

With ``--torch``, a loop in PyTorch trains the same model on the same batches, in turns with ours: both with AdamW and
the neighbours from the host. For two processor cores, cut the sizes down: ``--torch --set sampling.num_anchors=1024
sampling.num_geometry_points=4096 sampling.num_supernodes=1024 sampling.num_test_supernodes=1024``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emmi_jax.config import TrainSettings
from emmi_jax.data.cases import Case
from emmi_jax.data.load import load_dataset
from emmi_jax.data.point_cloud import PointCloudDataset
from emmi_jax.data.samples import Dataset
from emmi_jax.data.store import write_case
from emmi_jax.data.stored_case import SPLIT_FILE, STORE_FILE, VERSION
from emmi_jax.files.atomic import write_json
from emmi_jax.files.zarr import ArrayFolder
from emmi_jax.meshes.cells import POSITIONS
from emmi_jax.points import PointSet
from emmi_jax.training.devices import Devices, Layout
from emmi_jax.training.processes import connected, is_main
from emmi_jax.training.recipes import parse_assignment, read_recipe
from emmi_jax.training.settings import model_config
from emmi_jax.training.trainer import TrainSetup

FIELDS = {
    "surface": {"pressure": 1, "wallshearstress": 3},
    "volume": {"totalpcoeff": 1, "velocity": 3, "vorticity": 3},
}
TURNS = 3
COLLECTIVES = ("nccl", "all-reduce", "all-gather", "reduce-scatter", "collective-permute")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/training.json"), help="(%(default)s)")
    parser.add_argument("--mesh", nargs="+", default=["data=1"], help="meshes; '+fsdp' shards the state as well")
    parser.add_argument("--implementations", nargs="+", default=["auto"], help="timed in turns (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="steps to time, in thirds (%(default)s)")
    parser.add_argument("--points", type=int, default=2_000_000, help="points per branch of the case (%(default)s)")
    parser.add_argument("--store", type=Path, help="read the case from a store, made here if there is none")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw the batches (%(default)s)")
    parser.add_argument("--set", nargs="*", default=[], help="settings over those of the recipe drivaerml")
    parser.add_argument("--torch", action="store_true", help="train in PyTorch as well, on one device, and compare")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    options = parser.parse_args()
    with connected(options.coordinator, options.num_processes, options.process_id):
        from benchmarks import measure  # uses the devices

        data = _case(options.points) if options.store is None else _store(options.store, options.points)
        changes = dict(map(parse_assignment, options.set))
        if options.torch:
            from benchmarks import torch_loop

            trainer = _trainer("data=1", data, {**torch_loop.SETTINGS, **changes}, max(options.workers, 1))
            rows = [torch_loop.compare(trainer, options.steps)]
        else:
            rows = [row for mesh in options.mesh for row in _rows(mesh, data, options, changes)]
        if is_main():
            settings = f"recipe drivaerml {' '.join(options.set)}, {options.workers} workers"
            title = f"{settings}, {jax.process_count()} processes, {measure.DEVICE}"
            measure.report(title, rows, options.json)


def _case(num_points: int) -> dict[str, PointSet]:
    rng = np.random.default_rng(0)

    def normal(channels: int) -> np.ndarray:
        return rng.standard_normal((num_points, channels), np.float32)

    return {
        # In a box of this size, a ball of the pooling's radius holds about max_degree points.
        branch: PointSet(
            rng.uniform(0, 5 if branch == "surface" else 1000, (num_points, 3)).astype(np.float32),
            {name: normal(channels) for name, channels in fields.items()},
        )
        for branch, fields in FIELDS.items()
    }


def _store(folder: Path, num_points: int) -> Path:
    if not folder.exists():
        cases = {"train": num_points, "test": 1000}
        head = {"version": VERSION, "positions": POSITIONS, "dtype": "float32", "cases": list(cases), "sources": {}}
        write_json(folder / STORE_FILE, head)
        for name, size in cases.items():
            write_case(ArrayFolder(str(folder)), name, Case(_case(size), None), dtype="float32", source="")
        write_json(folder / SPLIT_FILE, {name: [name] for name in cases})
    return folder


def _trainer(text: str, data: dict[str, PointSet] | Path, changes: dict[str, Any], workers: int) -> TrainSetup:
    mesh, _, fsdp = text.partition("+")
    layout = Layout.parse(mesh, fsdp=bool(fsdp))
    recipe = {key: value for key, value in read_recipe("drivaerml").items() if key not in ("statistics", "split")}
    settings = TrainSettings().updated(recipe, {"batch_size": layout.data or 1, "steps": 10_000}, changes)
    if isinstance(data, Path):
        settings = settings.updated({"data": str(data)})
        dataset: Dataset = load_dataset(settings)
    else:
        dataset = PointCloudDataset(data, settings.sampling)
    config, devices = model_config(settings, dataset.fields), Devices.make(settings, layout)
    return TrainSetup.make(settings, dataset, devices, config, normalizer=None, workers=workers)


def _rows(text: str, data: dict[str, PointSet] | Path, options: Any, changes: dict[str, Any]) -> list[dict[str, Any]]:
    runs = [
        _Run(text, _trainer(text, data, changes | {"model.implementation": name}, options.workers), options.steps)
        for name in options.implementations
    ]
    for _ in range(TURNS):
        for run in runs:
            run.measure()
    return [run.row() for run in runs]


class _Run:
    """A compiled step with its state and batches, and the times of its turns."""

    def __init__(self, mesh: str, trainer: TrainSetup, steps: int) -> None:
        self.mesh, self.trainer, self.steps = mesh, trainer, -(-steps // TURNS)
        self.state = trainer.init_state()
        batch = trainer.put(trainer.draw(0))
        self.compiled = trainer.train_step.lower(self.state, batch).compile()  # type: ignore[attr-defined]
        self.warm_up = 5 + trainer.workers  # the first batch of a worker waits for its start
        self.batches = trainer.batches(0, TURNS * (self.steps + self.warm_up + 1) + 10)
        self.losses: list[float] = []
        self.seconds: dict[str, list[float]] = {"step": [], "step without data": []}

    def measure(self) -> None:
        for name, batches in (
            ("step", self.batches),
            ("step without data", itertools.repeat(next(self.batches))),
        ):
            self.state, losses, seconds = _timed(self.compiled, self.state, batches, self.steps, self.warm_up)
            self.seconds[name].append(seconds)
            self.losses += losses if name == "step" else []

    def row(self) -> dict[str, Any]:
        settings, memory = self.trainer.settings, self.compiled.memory_analysis()
        step, without_data = (statistics.median(seconds) for seconds in self.seconds.values())
        shares = _profile(self.compiled, self.state, self.batches)
        self.batches.close()
        implementation = self.trainer.model.config.implementation
        print(f"{self.mesh} {implementation}: {1000 * step:.1f} ms", flush=True)
        return {
            "mesh": self.mesh,
            "implementation": implementation,
            "cases": settings.batch_size,
            "anchors_per_branch": settings.sampling.num_anchors,
            "ms_per_step": 1000 * step,
            "waiting_for_data_%": 100 * (1 - without_data / step),
            "in_collectives_%": shares,
            "state_mib": memory.argument_size_in_bytes / 2**20,
            "activations_gib": memory.temp_size_in_bytes / 2**30,
            "loss_of_step_5": self.losses[4],
            "loss_of_last_step": self.losses[-1],
        }


def _timed(
    compiled: Any, state: Any, batches: Iterator[Any], steps: int, warm_up: int
) -> tuple[Any, list[float], float]:
    """Returns the state, the losses and the seconds a step after some to warm up; reads each loss a step late."""
    losses: list[float] = []
    pending, start = None, 0.0
    for number in range(warm_up + steps):
        if number == warm_up:
            start = time.perf_counter()
        state, metrics = compiled(state, next(batches))
        if pending is not None:
            losses.append(float(pending))
        pending = metrics["loss"]
    losses.append(float(pending))
    return state, losses, (time.perf_counter() - start) / steps


def _profile(compiled: Any, state: Any, batches: Iterator[Any]) -> float:
    """Returns the share of the time of a step in which a device exchanges data with others, in percent."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(5):
                state, metrics = compiled(state, next(batches))
            jax.block_until_ready(metrics)
            elapsed = time.perf_counter() - start
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = [p for p in jax.profiler.ProfileData.from_file(str(file)).planes if "/device:" in p.name]
        busy = sum(
            event.duration_ns
            for line in (planes[0].lines if planes else [])
            if line.name.startswith("Stream")
            for event in line.events
            if any(name in event.name.lower() for name in COLLECTIVES)
        )
    return busy / 1e9 / elapsed * 100


if __name__ == "__main__":
    main()
