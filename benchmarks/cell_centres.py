"""Centroids and volumes of a million cells: ours against VTK's, in turns in one process, as ratios of medians."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyvista

from emmi_jax.meshes.cells import measure_cells
from emmi_jax.meshes.mesh import read_mesh

_FACES = [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [2, 3, 7, 6], [0, 4, 7, 3], [1, 2, 6, 5]]


def boxes(side: int) -> Any:
    lines = [np.linspace(0.0, 1.0, side + 1)] * 3
    return pyvista.StructuredGrid(*np.meshgrid(*lines, indexing="ij")).cast_to_unstructured_grid()


def hexahedra(side: int) -> Any:
    grid = boxes(side)
    grid.points = np.asarray(grid.points) + np.random.default_rng(0).uniform(-0.1, 0.1, grid.points.shape) / side
    return grid


def polyhedra(side: int) -> Any:
    grid = hexahedra(side)
    corners = np.asarray(grid.cells).reshape(-1, 9)[:, 1:]
    faces = np.insert(corners[:, np.array(_FACES)], 0, 4, axis=2).reshape(len(corners), -1)
    stream = np.insert(np.insert(faces, 0, 6, axis=1), 0, 31, axis=1)
    return pyvista.UnstructuredGrid(stream.ravel(), np.full(len(corners), 42, np.uint8), grid.points)


def vtk_centres(dataset: Any) -> None:
    dataset.cell_centers(vertex=False)


def vtk_cells(dataset: Any) -> None:
    vtk_centres(dataset)
    dataset.compute_cell_sizes(length=False)


def report(name: str, repeats: int, **functions: Callable[[], object]) -> None:
    """Times functions in turns; the time of the processor is steadier than the clock on a busy machine."""
    clock: dict[str, list[float]] = {key: [] for key in functions}
    processor: dict[str, list[float]] = {key: [] for key in functions}
    for _ in range(repeats):
        for key, function in functions.items():
            start = time.perf_counter(), time.process_time()
            function()
            clock[key].append(time.perf_counter() - start[0])
            processor[key].append(time.process_time() - start[1])
    for kind, times in (("clock", clock), ("processor", processor)):
        found = {key: statistics.median(times[key]) for key in functions}
        words = ", ".join(f"{key} {value:.2f} s (ratio {found['ours'] / value:.2f})" for key, value in found.items())
        print(f"{name}, {kind}: {words}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=100, help="hexahedra along each side")
    parser.add_argument("--polyhedra-side", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name, grid in (
        (f"{options.side**3:,} boxes", boxes(options.side)),
        (f"{options.side**3:,} warped hexahedra", hexahedra(options.side)),
        (f"{options.polyhedra_side**3:,} polyhedra", polyhedra(options.polyhedra_side)),
    ):
        functions = {"ours": measure_cells, "vtk_centres": vtk_centres, "vtk_centres_and_volumes": vtk_cells}
        report(name, options.repeats, **{key: partial(f, grid) for key, f in functions.items()})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "volume.vtu")
            grid.save(file)
            read = {key: partial(lambda f, file: f(read_mesh(file).dataset), f, file) for key, f in functions.items()}
            report(f"{name} with reading a .vtu file", options.repeats, **read)


if __name__ == "__main__":
    main()
