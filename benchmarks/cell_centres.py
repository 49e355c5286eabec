"""Centroids and volumes of a million cells: ours against VTK's, in one process, as ratios of medians."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyvista

from emmi_jax.meshes.cells import measure_cells
from emmi_jax.meshes.mesh import read_mesh

_FACES = [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [2, 3, 7, 6], [0, 4, 7, 3], [1, 2, 6, 5]]


def hexahedra(side: int) -> Any:
    lines = [np.linspace(0.0, 1.0, side + 1)] * 3
    grid = pyvista.StructuredGrid(*np.meshgrid(*lines, indexing="ij")).cast_to_unstructured_grid()
    grid.points = np.asarray(grid.points) + np.random.default_rng(0).uniform(-0.1, 0.1, grid.points.shape) / side
    return grid


def polyhedra(side: int) -> Any:
    grid = hexahedra(side)
    corners = np.asarray(grid.cells).reshape(-1, 9)[:, 1:]
    faces = np.insert(corners[:, np.array(_FACES)], 0, 4, axis=2).reshape(len(corners), -1)
    stream = np.insert(np.insert(faces, 0, 6, axis=1), 0, 31, axis=1)
    return pyvista.UnstructuredGrid(stream.ravel(), np.full(len(corners), 42, np.uint8), grid.points)


def vtk_cells(dataset: Any) -> None:
    dataset.cell_centers(vertex=False)
    dataset.compute_cell_sizes(length=False)


def medians(repeats: int, *functions: Callable[[], object]) -> list[float]:
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return list(map(statistics.median, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=100, help="hexahedra along each side")
    parser.add_argument("--polyhedra-side", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name, grid in (
        (f"{options.side**3:,} hexahedra", hexahedra(options.side)),
        (f"{options.polyhedra_side**3:,} polyhedra", polyhedra(options.polyhedra_side)),
    ):
        ours, theirs = medians(
            options.repeats, lambda grid=grid: measure_cells(grid), lambda grid=grid: vtk_cells(grid)
        )
        print(f"{name}: centroids and volumes {ours:.2f} s, VTK {theirs:.2f} s, ratio {ours / theirs:.2f}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "volume.vtu")
            grid.save(file)
            ours, theirs = medians(
                options.repeats,
                lambda file=file: measure_cells(read_mesh(file).dataset),
                lambda file=file: vtk_cells(read_mesh(file).dataset),
            )
        print(f"{name}: with reading a .vtu file {ours:.2f} s, VTK {theirs:.2f} s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
