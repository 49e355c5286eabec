"""`emmi-jax prepare` of a million hexahedra against a plain script of pyvista and TensorStore, in turns, as medians.

The plain script reads, computes centres and volumes with VTK, and writes zarr arrays of the rows in their order; it
measures no statistics, checks nothing and shuffles nothing.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvista
import tensorstore as ts
from rich.console import Console
from vtkmodules.vtkIOXML import vtkXMLUnstructuredGridWriter

from benchmarks.cell_centres import boxes, hexahedra
from emmi_jax.config.jobs import PrepareJob
from emmi_jax.jobs.prepare import prepare
from emmi_jax.meshes.vtk import read_dataset

ARRAYS = ("UMeanTrim", "CptMeanTrim")


def write_case(folder: Path, grid: Any, *, is_compressed: bool) -> Path:
    """Writes a `.vtu` file as DrivAerML's: float32, appended raw or compressed by zlib."""
    x, rng = np.asarray(grid.cell_centers().points), np.random.default_rng(0)
    velocity = 30 * np.stack([np.sin(5 * x[:, 0]), np.cos(4 * x[:, 1]), x[:, 2]], axis=1) + rng.normal(size=x.shape)
    for name, values in zip(ARRAYS, (velocity, x[:, 0] + 0.01 * rng.normal(size=len(x))), strict=True):
        grid.cell_data[name] = values.astype(np.float32)
    grid.points = np.asarray(grid.points, np.float32)
    folder.mkdir(parents=True)
    writer = vtkXMLUnstructuredGridWriter()
    writer.SetFileName(str(folder / "volume_1.vtu"))
    writer.SetInputData(grid)
    writer.SetDataModeToAppended()
    writer.EncodeAppendedDataOff()
    writer.SetCompressorTypeToZLib() if is_compressed else writer.SetCompressorTypeToNone()
    writer.Write()
    return folder / "volume_1.vtu"


def plain(file: Path, store: Path) -> None:
    shutil.rmtree(store, ignore_errors=True)
    grid: Any = pyvista.read(file)
    arrays = {name: np.asarray(grid.cell_data[name]) for name in ARRAYS}
    arrays["position"] = np.asarray(grid.cell_centers(vertex=False).points)
    arrays["volume"] = np.asarray(grid.compute_cell_sizes(length=False, area=False)["Volume"])
    for name, values in arrays.items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / name)}}
        array = ts.open(spec, create=True, dtype="float32", shape=values.shape).result()
        array.write(values.astype(np.float32)).result()


def ours(data: Path, store: Path) -> None:
    shutil.rmtree(store, ignore_errors=True)
    prepare(PrepareJob(data=data, out=str(store)), console=Console(file=io.StringIO()))


def medians(repeats: int, functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Times functions in turns by the clock; the first turn is not counted."""
    clock: dict[str, list[float]] = {key: [] for key in functions}
    for turn in range(repeats + 1):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            if turn:
                clock[key].append(time.perf_counter() - start)
    return {key: statistics.median(times) for key, times in clock.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=100, help="cells along a side (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for shape, grid in (("boxes", boxes(options.side)), ("warped", hexahedra(options.side))):
            for kind in ("raw", "zlib"):
                data = Path(folder, shape, kind)
                file = write_case(data / "run_1", grid, is_compressed=kind == "zlib")
                store = Path(folder, "store")
                functions = {"VTK's reader": partial(read_dataset, file, ARRAYS)}
                functions |= {"plain": partial(plain, file, store), "prepare": partial(ours, data, store)}
                found = medians(options.repeats, functions)
                words = ", ".join(f"{key} {seconds:.2f} s" for key, seconds in found.items())
                print(f"{shape}, {kind}: {words}; plain / prepare {found['plain'] / found['prepare']:.2f}", flush=True)


if __name__ == "__main__":
    main()
