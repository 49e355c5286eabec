"""Pages of fields on meshes: surfaces as they are, and slices of volumes, coarsened where they are large."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.mesh import Location
from emmi_jax.meshes.surfaces import fan_triangles
from emmi_jax.plots.meshes import FROM_ABOVE, FROM_THE_SIDE, MeshFields, cut_planes, viewpoints, with_arrays
from emmi_jax.plots.page import Choice, Shape, write_page
from emmi_jax.plots.panels import field_label, magnitude
from emmi_jax.points import Array

MAX_TRIANGLES = 150_000
"""More are coarsened, as a browser gets slow."""

_MAX_POINTS = 30_000
_FIRST_BINS = 128
_TRUTH = "reference"


def write_mesh_page(fields: MeshFields, folder: Path, *, geometry: Array | None = None, surface: Any = None) -> Path:
    """Writes a page of all fields of a mesh, with references and errors where they are known; vectors by magnitude.

    Args:
        fields: The mesh with its fields; a surface is shown whole, another mesh in two planes through the middle.
        folder: Existing folder of the page, `<branch>.html`.
        geometry: Points [P, 3] of the geometry: planes go through its middle and show its surroundings.
        surface: A `pyvista.PolyData` to show in grey beside the planes.

    Returns:
        The path.
    """
    arrays, choices = dict[str, Array](), dict[str, tuple[str, bool]]()
    for name, predicted in fields.predicted.items():
        label, values = field_label(name, predicted.shape[1]), magnitude(predicted)
        arrays[f"predicted_{name}"], choices[f"predicted_{name}"] = values, (f"{label}, predicted", False)
        if name in fields.reference:
            exact = magnitude(fields.reference[name])
            arrays[f"reference_{name}"], choices[f"reference_{name}"] = exact, (f"{label}, {_TRUTH}", False)
            arrays[f"error_{name}"] = values - exact
            choices[f"error_{name}"] = (f"{label}, predicted − {_TRUTH}", True)
    dataset = with_arrays(fields.dataset, fields.location, arrays)
    is_surface = dataset.IsA("vtkPolyData") and dataset.GetNumberOfPolys() > 0
    cuts = (
        [dataset]
        if is_surface
        else cut_planes(dataset, fields.position, viewpoints(fields.position, (FROM_THE_SIDE, FROM_ABOVE)), geometry)
    )
    shape, on_shape, notes = _triangles(cuts, fields.location)
    shape = shape._replace(is_lit=is_surface)
    if shape.corners is not None and not len(shape.corners):
        shape, on_shape, notes = _points(fields.position, arrays)
    body = None
    if not is_surface and surface is not None:
        body, _, _ = _triangles([surface], "cells")
    title = f"{fields.branch.capitalize()}: {', '.join(name.replace('_', ' ') for name in fields.predicted)}"
    shown = [Choice(name, on_shape[key], is_signed) for key, (name, is_signed) in choices.items()]
    return write_page(folder / f"{fields.branch}.html", title, shape, shown, notes=notes, body=body)


def write_push_page(path: Path, title: str, dataset: Any, values: Mapping[str, Array]) -> Path:
    """Writes a page of where to push a surface: red in, blue out.

    Args:
        path: The HTML file.
        title: Title of the page.
        dataset: The surface, a `pyvista.PolyData`.
        values: Values [V] at its points by name.

    Returns:
        `path`.
    """
    shape, shown, notes = _triangles([with_arrays(dataset, "points", values)], "points")
    notes = ["Red: push in to lower it; blue: pull out.", *notes]
    return write_page(path, title, shape, [Choice(name, shown[name], is_signed=True) for name in values], notes=notes)


def _triangles(datasets: list[Any], location: Location) -> tuple[Shape, dict[str, Array], list[str]]:
    """Returns the triangles of all polygons, the values on each, and what was changed to show them."""
    points, corners, parts, start = [], [], list[dict[str, Array]](), 0
    for dataset in datasets:
        here, cell = fan_triangles(dataset)
        if location == "cells":
            parts.append({name: np.asarray(v)[cell] for name, v in dataset.cell_data.items()})
        else:
            parts.append({name: np.asarray(v)[here].mean(axis=1) for name, v in dataset.point_data.items()})
        points.append(np.asarray(dataset.points))
        corners.append(here + start)
        start += dataset.n_points
    shape = Shape(np.concatenate(points), np.concatenate(corners))
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _coarse(shape, values)


def _coarse(shape: Shape, values: dict[str, Array]) -> tuple[Shape, dict[str, Array], list[str]]:
    """Merges neighbouring points until there are few enough triangles; each has the value of the nearest before."""
    if shape.corners is None or len(shape.corners) <= MAX_TRIANGLES:
        return shape, values, []
    from scipy.spatial import cKDTree

    # The number of triangles grows with the square of the number of bins.
    first = _binned(shape.points, shape.corners, _FIRST_BINS)
    num_bins = _FIRST_BINS * (MAX_TRIANGLES / max(1, len(first.corners))) ** 0.5
    while True:
        few = _binned(shape.points, shape.corners, int(num_bins))
        if len(few.corners) <= MAX_TRIANGLES:
            break
        num_bins *= 0.8
    _, nearest = cKDTree(_centres(shape.points, shape.corners)).query(_centres(few.points, few.corners))
    note = f"Coarsened for this page only: {len(few.corners):,} of {len(shape.corners):,} triangles are shown."
    return Shape(*few), {name: v[nearest] for name, v in values.items()}, [note]


class _Triangles(NamedTuple):
    points: Array
    corners: NDArray[np.int64]


def _binned(points: Array, corners: NDArray[np.int64], num_bins: int) -> _Triangles:
    """Merges the points in each cube of a grid with so many along the longest side.

    VTK's filters for this crash (vtkBinnedDecimation) or bend planes (vtkQuadricClustering).
    """
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    size = float(extent.max()) / num_bins
    cube = ((points - low) / size).astype(np.int64) @ np.array([1, num_bins + 1, (num_bins + 1) ** 2])
    _, merged = np.unique(cube, return_inverse=True)
    merged = merged.reshape(-1)
    count = np.bincount(merged)
    means = np.stack([np.bincount(merged, weights=points[:, axis]) / count for axis in range(3)], axis=1)
    kept = merged[corners]
    kept = kept[(kept != np.roll(kept, 1, axis=1)).all(axis=1)]
    same = np.sort(kept, axis=1) @ np.array([1, len(means), len(means) ** 2])
    _, first = np.unique(same, return_index=True)
    return _Triangles(means, kept[first])


def _points(position: Array, arrays: Mapping[str, Array]) -> tuple[Shape, dict[str, Array], list[str]]:
    """Returns some of the points, for meshes without cells to cut."""
    chosen = np.arange(len(position))
    notes = []
    if len(position) > _MAX_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(position), _MAX_POINTS, replace=False))
        notes = [f"Only on this page, {_MAX_POINTS:,} of {len(position):,} points are shown."]
    return Shape(position[chosen], None), {name: values[chosen] for name, values in arrays.items()}, notes


def _centres(points: Array, corners: NDArray[np.int64]) -> Array:
    centres: Array = np.asarray(points)[corners].mean(axis=1)
    return centres
