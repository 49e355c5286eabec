"""Contents of a mesh file beside the mesh and its fields: what is left out is named, and chooses nothing."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.vtk import GHOSTS, import_pyvista

_HIDDEN_CELL = 1 | 8 | 32  # a duplicate of another part, refined elsewhere, blanked
_HIDDEN_POINT = 2
_POINT_TYPES, _LINE_TYPES = (0, 1, 2), (3, 4, 21, 35, 68, 75)
_FACE_TYPES = (5, 6, 7, 8, 9, 22, 23, 28, 30, 34, 36, 69, 70, 76, 77)
_KINDS = ("vertices", "lines", "polygons", "volume cells")
_NO_FIELD = re.compile(
    r"(point|cell|vertex)?normals?|tcoords?|texturecoordinates|uvs?|rgba?|colou?rs?|vtk(original|ghost|valid).*|"
    r"(global|pedigree)?(point|node|cell|element|face|patch|proc|part|zone|block|group|object|material)?ids?|"
    r"(proc|rank|stlsolidlabeling)"
)


def field_names(dataset: Any, location: str) -> list[str]:
    """Returns the names of the arrays on `points` or `cells` that may be fields.

    Normals, texture coordinates, colours, numbers of entities and whatever is not floating-point are no fields.
    """
    is_cells = location == "cells"
    data = dataset.cell_data if is_cells else dataset.point_data
    attributes = dataset.GetCellData() if is_cells else dataset.GetPointData()
    roles = (attributes.GetNormals(), attributes.GetTCoords(), attributes.GetGlobalIds(), attributes.GetPedigreeIds())
    no_fields = {array.GetName() for array in roles if array is not None}
    return [
        name
        for name in data.keys()  # noqa: SIM118 - not a mapping
        if name not in no_fields
        and not _NO_FIELD.fullmatch(re.sub(r"[\s_]", "", name.lower()))
        and np.asarray(data[name]).dtype.kind == "f"
    ]


def main_content(dataset: Any) -> tuple[Any, tuple[str, ...]]:
    """Returns a mesh of the cells of its highest dimension that are neither hidden nor ghosts, and what was left out.

    Triangle strips are cut into triangles, which have the values of their strip. An array without a location belongs to
    the points or to the cells if there are as many of only one of them.

    Args:
        dataset: A `pyvista.DataSet`; it is not changed.

    Returns:
        The mesh, and one line for each kind of content that was left out.
    """
    dataset = _located(dataset)
    dims, is_hidden = _dims(dataset), _is_hidden(dataset)
    left_out = []
    is_kept = ~is_hidden
    if num_hidden := int(np.count_nonzero(is_hidden)):
        left_out.append(f"{num_hidden:,} of {len(is_hidden):,} cells, which are ghosts or blanked")
    if is_kept.any():
        highest = int(dims[is_kept].max())
        for dim in range(highest):
            if number := int(np.count_nonzero(is_kept & (dims == dim))):
                there = np.count_nonzero(is_kept & (dims == highest))
                left_out.append(f"{number:,} {_KINDS[dim]} beside {there:,} {_KINDS[highest]}")
        is_kept &= dims == highest
    if dataset.IsA("vtkPolyData"):
        if not is_kept.all() or dataset.GetNumberOfStrips():
            dataset = _of_polydata(dataset, is_kept)
    elif not is_kept.all():
        dataset = extracted(dataset, np.flatnonzero(is_kept))
    return dataset, tuple(left_out)


def cell_dim(dataset: Any) -> int:
    """Returns the highest dimension of the cells of a mesh; 0 without any."""
    return int(_dims(dataset).max(initial=0))


def used_points(dataset: Any) -> Any:
    """Returns a mesh of faces alone as polygons with the points that they use; another one as it is."""
    if (
        dataset.IsA("vtkPolyData")
        or not hasattr(dataset, "celltypes")
        or not dataset.n_cells
        or not np.isin(dataset.celltypes, (5, 7, 9)).all()
    ):
        return dataset
    return cut_out(dataset, *cell_arrays(dataset.GetCells()), slice(None))


def cut_out(dataset: Any, corners: NDArray[np.int64], offsets: NDArray[np.int64], cells: slice, *, dim: int = 2) -> Any:
    """Returns some cells, of these corners, as polygons or lines with their arrays and the points that they use."""
    made, used = compact_polydata(dataset.points, corners, offsets, dim=dim)
    for data, own, rows in ((dataset.point_data, made.point_data, used), (dataset.cell_data, made.cell_data, cells)):
        for name in data.keys():  # noqa: SIM118 - not a mapping
            own[name] = np.asarray(data[name])[rows]
    return made


def extracted(dataset: Any, cells: NDArray[np.int64]) -> Any:
    """Returns some cells as a `pyvista.UnstructuredGrid`, without the numbers that pyvista gives them."""
    part = dataset.extract_cells(cells)
    for kind in ("Cell", "Point"):
        name, which = f"vtkOriginal{kind}Ids", f"{kind.lower()}_data"
        if name not in getattr(dataset, which):
            getattr(part, which).pop(name, None)
    return part


def cell_arrays(cells: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the corners of all cells of a `vtkCellArray`, and where each starts and ends among them."""
    to_numpy = importlib.import_module("vtkmodules.util.numpy_support").vtk_to_numpy
    connectivity, offsets = (to_numpy(a) for a in (cells.GetConnectivityArray(), cells.GetOffsetsArray()))
    return connectivity.astype(np.int64, copy=False), offsets.astype(np.int64, copy=False)


def polydata(points: Any, connectivity: NDArray[np.int64], offsets: NDArray[np.int64], *, dim: int = 2) -> Any:
    """Returns a `pyvista.PolyData` of polygons, or of lines if `dim` is 1, of vertices if it is 0."""
    sizes = np.diff(offsets)
    flat = np.insert(connectivity, offsets[:-1], sizes)
    made = import_pyvista().PolyData()
    made.points = points
    setattr(made, ("verts", "lines", "faces")[dim], flat)
    return made


def compact_polydata(
    points: Any, connectivity: NDArray[np.int64], offsets: NDArray[np.int64], *, dim: int = 2
) -> tuple[Any, NDArray[np.int64]]:
    """Returns the `polydata` of cells with the points that they use, and the numbers of these."""
    used, corner = np.unique(connectivity, return_inverse=True)
    return polydata(np.asarray(points)[used], corner.reshape(-1), offsets, dim=dim), used


def _located(dataset: Any) -> Any:
    """Gives the arrays of a file that are said to belong to the whole a location, where their length tells it."""
    counts = {"point": dataset.n_points, "cell": dataset.n_cells}
    if counts["point"] == counts["cell"] or not dataset.field_data.keys():
        return dataset
    located = dataset.copy(deep=False)
    for name in dataset.field_data.keys():  # noqa: SIM118 - not a mapping
        values = np.asarray(dataset.field_data[name])
        for which, data in (("point", located.point_data), ("cell", located.cell_data)):
            if values.dtype.kind == "f" and 1 < len(values) == counts[which] and name not in data:
                data[name] = values
                located.field_data.remove(name)
    return located


def _dims(dataset: Any) -> NDArray[np.int8]:
    """Returns the dimension of every cell, [N]."""
    if dataset.IsA("vtkPolyData"):
        numbers = (dataset.GetNumberOfVerts(), dataset.GetNumberOfLines(), dataset.GetNumberOfPolys())
        return np.repeat(np.array([0, 1, 2, 2], np.int8), (*numbers, dataset.GetNumberOfStrips()))
    if not hasattr(dataset, "celltypes"):  # a structured grid has one kind of cells
        return np.full(dataset.n_cells, 3, np.int8)
    of_type = np.full(256, 3, np.int8)
    for dim, types in enumerate((_POINT_TYPES, _LINE_TYPES, _FACE_TYPES)):
        of_type[list(types)] = dim
    return of_type[np.asarray(dataset.celltypes)]


def _is_hidden(dataset: Any) -> NDArray[np.bool_]:
    is_hidden = np.zeros(dataset.n_cells, bool)
    if GHOSTS in dataset.cell_data:
        is_hidden |= (np.asarray(dataset.cell_data[GHOSTS]) & _HIDDEN_CELL) != 0
    if GHOSTS in dataset.point_data:
        is_hidden_point = (np.asarray(dataset.point_data[GHOSTS]) & _HIDDEN_POINT) != 0
        if is_hidden_point.any():
            corners, offsets = cell_arrays(dataset.cast_to_unstructured_grid().GetCells())
            cell = np.repeat(np.arange(dataset.n_cells), np.diff(offsets))
            is_hidden[cell[is_hidden_point[corners]]] = True
    return is_hidden


def _of_polydata(dataset: Any, is_kept: NDArray[np.bool_]) -> Any:
    """Returns the polygons and strips that are kept as polygons; or else the lines, or else the vertices."""
    connectivity, sizes, rows, first, dim = [], [], [], 0, 0
    for number, cells in enumerate((dataset.GetVerts(), dataset.GetLines(), dataset.GetPolys(), dataset.GetStrips())):
        corners, offsets = cell_arrays(cells)
        here = is_kept[first : first + len(offsets) - 1]
        own, num_corners = first + np.flatnonzero(here), np.diff(offsets)
        corners = corners[np.repeat(here, num_corners)]
        num_corners = num_corners[here]
        if number == 3 and len(own):
            pieces = [_strip_triangles(strip) for strip in np.split(corners, np.cumsum(num_corners)[:-1])]
            corners, own = np.concatenate(pieces).reshape(-1), np.repeat(own, [len(piece) for piece in pieces])
            num_corners = np.full(len(own), 3)
        dim = min(number, 2) if len(own) else dim
        connectivity.append(corners)
        sizes.append(num_corners)
        rows.append(own)
        first += len(offsets) - 1
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    made = polydata(dataset.points, np.concatenate(connectivity), offsets, dim=dim)
    made.GetPointData().ShallowCopy(dataset.GetPointData())
    for name in dataset.cell_data.keys():  # noqa: SIM118 - not a mapping
        made.cell_data[name] = np.asarray(dataset.cell_data[name])[np.concatenate(rows)]
    return made


def _strip_triangles(corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cuts a strip into triangles of one orientation, [T, 3]."""
    triangles = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
    triangles[1::2] = triangles[1::2, ::-1]
    return triangles
