"""Contents that VTK's readers of surfaces drop from a file without a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.content import cell_arrays
from emmi_jax.meshes.plain import STL_HEADER, binary_stl_size, is_stl_text

_ROUNDED = (".stl", ".ply", ".obj")
_COARSE, _COARSE_EDGE = 1e-5, 1e-2
"""Spacing of float32, as a share of the size of a mesh and of its edges, from which its shape suffers."""
_NUM_CORNERS = 100_000

_KNOWN_PLY = re.compile(
    r"n?[xyz]|(diffuse_)?(red|green|blue)|alpha|[rgba]|[uvst]|texture_[uv]|intensity|confidence|vertex_ind(ices|ex)"
)


def lost_by_reader(path: Path, dataset: Any) -> tuple[str, ...]:
    """Returns a line for everything that was lost when a file was read.

    That is triangles without area, and numbers at the vertices and faces of a `.ply` file, of which VTK knows few.

    Args:
        path: The file.
        dataset: What was read of it, a `pyvista.DataSet`.
    """
    suffix, lost = path.suffix.lower(), []
    if suffix == ".stl" and (number := _num_facets(path)) > dataset.n_cells:
        lost.append(f"{number - dataset.n_cells:,} of {number:,} triangles, which have no area")
    if suffix == ".stl" and (excess := _excess_bytes(path)):
        lost.append(f"{excess:,} bytes behind the triangles")
    if suffix == ".ply" and (names := _unknown_properties(path)):
        lost.append(f"the properties {', '.join(names)}, which are not read from .ply files")
    return tuple(lost)


def lost_digits(path: Path, dataset: Any) -> tuple[str, ...]:
    """Returns a line if the coordinates of a `pyvista.DataSet` are float32 and too far from the origin for that."""
    points = np.asarray(dataset.points)
    if points.dtype != np.float32:
        return ()
    # NumPy reduces one column many times as fast as all of them at once.
    low, high = (np.array([reduce(column) for column in points.T]) for reduce in (np.min, np.max))
    spacing, size = float(np.spacing(np.abs([low, high]).max())), float((high - low).max())
    edge = _typical_edge(dataset, points)
    if spacing <= min(_COARSE * size, _COARSE_EDGE * edge):
        return ()
    suffix = path.suffix.lower()
    how = f"{suffix} files are read as float32" if suffix in _ROUNDED else "they are float32"
    what, length = ("size of the mesh", size) if spacing > _COARSE * size else ("length of edges", edge)
    share = spacing / length if length else np.inf
    return (
        f"digits of the coordinates: {how}, whose spacing there is {spacing:.2g}, {share:.1g} of the {what}: move it "
        "to the origin",
    )


def _typical_edge(dataset: Any, points: NDArray[np.float32]) -> float:
    """Returns the median distance of corners that follow one another in the first cells; infinite if there are none."""
    if not dataset.IsA("vtkPolyData") and not dataset.IsA("vtkUnstructuredGrid"):
        return float(np.inf)
    cells = dataset.GetPolys() if dataset.IsA("vtkPolyData") else dataset.GetCells()
    corners = cell_arrays(cells)[0][:_NUM_CORNERS]
    if len(corners) < 2:
        return float(np.inf)
    return float(np.median(np.linalg.norm(np.diff(points[corners].astype(np.float64), axis=0), axis=1)))


def _num_facets(path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(STL_HEADER)
        number = int.from_bytes(header[STL_HEADER - 4 :], "little")
        if path.stat().st_size >= binary_stl_size(header) and (number or not header.startswith(b"solid")):
            return number
        file.seek(0)
        return sum(1 for line in file if re.match(rb"\s*facet\s", line, re.IGNORECASE))


def _excess_bytes(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(1024)
    size = binary_stl_size(head)
    return 0 if is_stl_text(head) or size == STL_HEADER else path.stat().st_size - size


def _unknown_properties(path: Path) -> list[str]:
    """Returns the properties that a header names and VTK does not know."""
    names = []
    with path.open("rb") as file:
        for line in file:
            words = line.decode("latin-1").split()
            keyword = words[0].lower() if words else ""
            if keyword == "property" and not _KNOWN_PLY.fullmatch(words[-1].lower()):
                names.append(words[-1])
            if keyword == "end_header":
                break
    return names
