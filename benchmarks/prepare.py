"""`emmi-jax prepare` of a million hexahedra against a plain script of pyvista and TensorStore, and another checkout.

The plain script reads, computes centres and volumes with VTK, and writes zarr arrays of the rows in their order; it
measures no statistics, checks nothing and shuffles nothing. Each contestant has its own process; they take turns.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ARRAYS = ("UMeanTrim", "CptMeanTrim")


def write_case(folder: Path, grid: Any, *, is_compressed: bool) -> Path:
    """Writes a `.vtu` file as DrivAerML's: float32, appended raw or compressed by zlib."""
    x, rng = np.asarray(grid.cell_centers().points), np.random.default_rng(0)
    velocity = 30 * np.stack([np.sin(5 * x[:, 0]), np.cos(4 * x[:, 1]), x[:, 2]], axis=1) + rng.normal(size=x.shape)
    for name, values in zip(ARRAYS, (velocity, x[:, 0] + 0.01 * rng.normal(size=len(x))), strict=True):
        grid.cell_data[name] = values.astype(np.float32)
    grid.points = np.asarray(grid.points, np.float32)
    folder.mkdir(parents=True)
    writer = importlib.import_module("vtkmodules.vtkIOXML").vtkXMLUnstructuredGridWriter()
    writer.SetFileName(str(folder / "volume_1.vtu"))
    writer.SetInputData(grid)
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()
    writer.SetCompressorTypeToZLib() if is_compressed else writer.SetCompressorTypeToNone()
    writer.Write()
    return folder / "volume_1.vtu"


def plain(file: Path, store: Path) -> None:
    pyvista, ts = importlib.import_module("pyvista"), importlib.import_module("tensorstore")
    grid: Any = pyvista.read(file)
    arrays = {name: np.asarray(grid.cell_data[name]) for name in ARRAYS}
    arrays["position"] = np.asarray(grid.cell_centers(vertex=False).points)
    arrays["volume"] = np.asarray(grid.compute_cell_sizes(length=False, area=False)["Volume"])
    for name, values in arrays.items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / name)}}
        array = ts.open(spec, create=True, dtype="float32", shape=values.shape).result()
        array.write(values.astype(np.float32)).result()


def centroids(file: Path, store: Path) -> None:
    importlib.import_module("emmi_jax.meshes.mesh").read_mesh(file).position("cells")


def prepare(file: Path, store: Path) -> None:
    console = importlib.import_module("rich.console").Console(file=io.StringIO())
    job = importlib.import_module("emmi_jax.jobs.prepare")  # older checkouts have its configuration here
    job.prepare(job.PrepareJob(data=file.parents[1], out=str(store)), console=console)


WORK = {"plain": plain, "prepare": prepare, "centroids": centroids}


def serve() -> None:
    """Does the work that is asked for, line by line, and answers with seconds of the clock and of the processor."""
    for line in sys.stdin:
        work, file, store = json.loads(line)
        shutil.rmtree(store, ignore_errors=True)
        start = time.perf_counter(), time.process_time()
        WORK[work](Path(file), Path(store))
        print(json.dumps([time.perf_counter() - start[0], time.process_time() - start[1]]), flush=True)


def started(checkout: Path) -> subprocess.Popen[str]:
    """Starts a process with the package of a checkout."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def asked(process: subprocess.Popen[str], *words: str) -> list[float]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("a process without pipes")
    print(json.dumps(words), file=process.stdin, flush=True)
    seconds: list[float] = json.loads(process.stdout.readline())
    return seconds


def main() -> None:
    measure, cells = (importlib.import_module(f"benchmarks.{name}") for name in ("measure", "cell_centres"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/prepare.json"))
    parser.add_argument("--side", type=int, default=100, help="cells along a side (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--other", type=Path, help="another checkout, such as a worktree of f56988c")
    options, rows = parser.parse_args(), list[dict[str, Any]]()
    contestants = {"now": started(Path())} | ({"other": started(options.other)} if options.other else {})
    turns = {"plain": ("plain", "now")}
    turns |= {f"{work}, {name}": (work, name) for work in ("prepare", "centroids") for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        for shape, grid in (("boxes", cells.boxes(options.side)), ("warped", cells.hexahedra(options.side))):
            for kind in ("raw", "zlib"):
                file = write_case(Path(folder, shape, kind, "run_1"), grid, is_compressed=kind == "zlib")
                times: dict[str, list[list[float]]] = {title: [] for title in turns}
                for turn in range(options.repeats + 1):  # the first is not counted
                    for title, (work, name) in turns.items():
                        seconds = asked(contestants[name], work, str(file), str(Path(folder, name)))
                        times[title] += [seconds] if turn else []
                for title, found in times.items():
                    clock, processor = (round(statistics.median(of), 3) for of in zip(*found, strict=True))
                    rows.append({"cells": shape, "file": kind, "work": title, "clock": clock, "processor": processor})
    for process in contestants.values():
        process.terminate()
    measure.report(f"seconds for {options.side**3:,} hexahedra, medians of {options.repeats} turns", rows, options.json)


if __name__ == "__main__":
    serve() if "--serve" in sys.argv else main()
