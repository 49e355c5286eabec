"""EnSight Gold in C binary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.cells import polyhedron_faces, taken
from emmi_jax.meshes.content import cell_arrays
from emmi_jax.meshes.ensight import POLYGON, POLYHEDRON, SHAPES
from emmi_jax.meshes.parts import join

_KINDS = {1: "scalar", 3: "vector", 6: "tensor symm", 9: "tensor asym"}
_NAMES = {kind: name for name, (kind, _) in SHAPES.items()} | {POLYGON: "nsided", POLYHEDRON: "nfaced"}


def write_ensight(path: Path, folder: Path, parts: Sequence[tuple[str, Sequence[Any]]]) -> None:
    """Writes a case file, and its geometry and variables to a folder beside it.

    Args:
        path: The case file.
        folder: The folder, which exists; the format cannot quote its name.
        parts: Name and pieces, `pyvista.DataSet`s, of each part.

    Raises:
        ValueError: A cell is of a kind that the format does not have.
    """
    grids = [
        (name or f"part{i}", join(pieces)[0].cast_to_unstructured_grid()) for i, (name, pieces) in enumerate(parts)
    ]
    orders = [np.argsort(np.asarray(grid.celltypes), kind="stable") for _, grid in grids]
    with (folder / "geometry").open("wb") as file:
        for line in ("C Binary", "emmi_jax", "", "node id assign", "element id assign"):
            file.write(_line(line))
        for number, ((name, grid), order) in enumerate(zip(grids, orders, strict=True), start=1):
            file.write(_line("part") + _ints([number]) + _line(name.replace("/", "_")) + _line("coordinates"))
            file.write(_ints([grid.n_points]) + _columns(np.asarray(grid.points)))
            _write_elements(path, file, grid, order)
    lines = []
    for location in ("element", "node"):
        names = list(dict.fromkeys(name for _, grid in grids for name in _data(grid, location).keys()))  # noqa: SIM118
        taken = set(names)
        for name in names:
            lines += _write_variable(folder, name, location, grids, orders, taken)
    head = ["FORMAT", "type: ensight gold", "", "GEOMETRY", f"model: {folder.name}/geometry", "", "VARIABLE"]
    path.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


def _write_elements(path: Path, file: IO[bytes], grid: Any, order: NDArray[np.int64]) -> None:
    kinds = np.asarray(grid.celltypes)
    corners, offsets = cell_arrays(grid.GetCells())
    for kind in np.unique(kinds):
        if int(kind) not in _NAMES:
            raise ValueError(f"{path}: EnSight has no cells of VTK's type {kind}: choose another file type")
        cells = order[kinds[order] == kind]
        file.write(_line(_NAMES[int(kind)]) + _ints([len(cells)]))
        if kind == POLYHEDRON:
            face_corners, ends, number = polyhedron_faces(grid, cells)
            file.write(_ints(number) + _ints(np.diff(ends)) + _ints(face_corners + 1))
            continue
        own, ends = taken(corners, offsets, cells)
        file.write((_ints(np.diff(ends)) if kind == POLYGON else b"") + _ints(own + 1))


def _write_variable(
    folder: Path,
    name: str,
    location: str,
    grids: Sequence[tuple[str, Any]],
    orders: Sequence[NDArray[np.int64]],
    taken: set[str],
) -> list[str]:
    """Writes an array, or its columns where the format has no such number of them; returns lines of the case file.

    A name that the format cannot hold becomes one that is not taken, and takes it.
    """
    shown = re.sub(r"[^\w.-]+", "_", name)
    values = {i: np.asarray(_data(g, location)[name]) for i, (_, g) in enumerate(grids) if name in _data(g, location)}
    if any(array.dtype.kind not in "fiu" for array in values.values()):
        return []
    values = {i: array.reshape(len(array), -1) for i, array in values.items()}
    width = next(iter(values.values())).shape[1]
    columns = [slice(None)] if width in _KINDS else [slice(i, i + 1) for i in range(width)]
    lines = []
    for column in columns:
        own = shown if column == slice(None) else f"{shown}_{column.start}"
        if own != name:
            others = (f"{own}_{number}" for number in count(2))
            own = own if own not in taken else next(other for other in others if other not in taken)
            taken.add(own)
        file_name = f"{own}_{location}"
        with (folder / file_name).open("wb") as file:
            file.write(_line(own))
            for i, array in values.items():
                file.write(_line("part") + _ints([i + 1]))
                if location == "node":
                    file.write(_line("coordinates") + _columns(array[:, column]))
                    continue
                kinds = np.asarray(grids[i][1].celltypes)[orders[i]]
                for kind in np.unique(kinds):
                    file.write(_line(_NAMES[int(kind)]) + _columns(array[orders[i]][kinds == kind][:, column]))
        kind_name = _KINDS[width if column == slice(None) else 1]
        lines.append(f"{kind_name} per {location}: {own} {folder.name}/{file_name}")
    return lines


def _data(grid: Any, location: str) -> Any:
    return grid.cell_data if location == "element" else grid.point_data


def _line(text: str) -> bytes:
    return text.encode(errors="replace")[:79].ljust(80, b"\0")


def _ints(values: Any) -> bytes:
    return np.asarray(values, "<i4").tobytes()


def _columns(values: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values.T, "<f4").tobytes()
