"""Pictures of fields on meshes: surfaces from three sides, slices of volumes, predictions over known values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from emmi_jax.meshes.mesh import Location
from emmi_jax.meshes.surfaces import fan_triangles
from emmi_jax.meshes.vtk import import_pyvista, vtk_class, vtk_messages
from emmi_jax.plots.panels import Quantity, View, draw_comparison, draw_signed, field_label, magnitude
from emmi_jax.plots.parity import draw_parity
from emmi_jax.plots.rasterize import Window, rasterize
from emmi_jax.plots.render import MAX_TRIANGLES, can_render, render_triangles
from emmi_jax.points import Array, flat_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_NUM_PIXELS = 700
_NUM_NEAR_PLANE = 8000
_MARGIN = 0.04
_LENGTHS_AROUND = 0.6
_TRUTH = "reference"
_HOLES = "0.85"


class MeshFields(NamedTuple):
    """A mesh (a `pyvista.DataSet`) with predicted fields [N, F], and known fields if there are any.

    They belong to its points or cells, which are at the positions [N, 3].
    """

    branch: str
    dataset: Any
    location: Location
    position: Array
    predicted: Mapping[str, Array]
    reference: Mapping[str, Array]


class Viewpoint(NamedTuple):
    """Position of a viewer: what points right, up and towards the viewer, each as a sign and an axis."""

    title: str
    right: tuple[int, int]
    up: tuple[int, int]
    towards: tuple[int, int]

    def project(self, position: Array) -> NDArray[np.float64]:
        """Converts positions [..., 3] to the viewer's frame."""
        axes = (self.right, self.up, self.towards)
        return np.stack([sign * np.asarray(position[..., axis], np.float64) for sign, axis in axes], axis=-1)


FROM_UPSTREAM = Viewpoint("from the front", (-1, 1), (1, 2), (-1, 0))
FROM_THE_SIDE = Viewpoint("from the side", (1, 0), (1, 2), (-1, 1))
FROM_ABOVE = Viewpoint("from above", (1, 0), (1, 1), (1, 2))


class Scene(NamedTuple):
    """A row of panels: the view, and the arrays that it paints, by name."""

    view: View
    arrays: dict[str, Array]


def draw_mesh_fields(fields: MeshFields, folder: Path, *, geometry: Array | None = None) -> list[Path]:
    """Draws each field of a mesh, and where it is known, how well it is predicted.

    Surfaces are seen from the front, from the side and from above; other meshes are cut by planes y = const and
    z = const. Vector fields are drawn by magnitude.

    Args:
        fields: The mesh with its fields.
        folder: Existing folder of the pictures, `<branch>_<field>.png` and `<branch>_<field>_parity.png`.
        geometry: Points [P, 3] of the geometry: cuts go through its middle and show its surroundings. None means the
            middle of the mesh, and most of it.

    Returns:
        The paths.
    """
    arrays = {f"predicted_{name}": magnitude(values) for name, values in fields.predicted.items()}
    arrays |= {f"reference_{name}": magnitude(values) for name, values in fields.reference.items()}
    dataset = with_arrays(fields.dataset, fields.location, arrays)
    is_surface = dataset.IsA("vtkPolyData") and dataset.GetNumberOfPolys() > 0
    scenes = _surface_scenes(dataset, fields.location) if is_surface else _slices(dataset, fields, arrays, geometry)
    paths = []
    for name, predicted in fields.predicted.items():
        words, label = name.replace("_", " "), field_label(name, predicted.shape[1])
        title = f"{words.capitalize()}, {fields.branch}"
        quantities = [
            Quantity(s.arrays[f"predicted_{name}"], s.arrays.get(f"reference_{name}"), label, "viridis") for s in scenes
        ]
        path = folder / f"{fields.branch}_{name}.png"
        paths.append(draw_comparison(path, title, [scene.view for scene in scenes], quantities, truth=_TRUTH))
        if name in fields.reference:
            path = folder / f"{fields.branch}_{name}_parity.png"
            paths.append(draw_parity(path, title, words, predicted, fields.reference[name], truth=_TRUTH))
    return paths


def draw_surface_push(path: Path, title: str, dataset: Any, values: Array, label: str) -> Path:
    """Draws where to push a surface, from the front, from the side and from above: red in, blue out.

    Args:
        path: The PNG file, written atomically.
        title: Title of the figure.
        dataset: The surface, a `pyvista.PolyData`.
        values: Values [V] at its points, positive where pushing inwards helps.
        label: What the values are.

    Returns:
        `path`.
    """
    scenes = _surface_scenes(with_arrays(dataset, "points", {"values": values}), "points")
    return draw_signed(path, title, [scene.view for scene in scenes], [s.arrays["values"] for s in scenes], label)


def with_arrays(dataset: Any, location: Location, arrays: Mapping[str, Array]) -> Any:
    """Returns a mesh with these arrays only."""
    dataset = dataset.copy(deep=False)
    dataset.clear_data()
    data = dataset.cell_data if location == "cells" else dataset.point_data
    for name, values in arrays.items():
        data[name] = np.ascontiguousarray(values)
    return dataset


def cut_planes(dataset: Any, position: Array, viewpoints: Sequence[Viewpoint], geometry: Array | None) -> list[Any]:
    """Returns cuts through the middle of the geometry, each perpendicular to a view, as far as slices show.

    Args:
        dataset: The mesh.
        position: Positions [N, 3] of its cells or points.
        viewpoints: Where the viewers of the planes stand.
        geometry: Points [P, 3] of the geometry; None for the middle of the mesh.

    Returns:
        A `pyvista.PolyData` per view.
    """
    low, high = _surroundings(position, _box(dataset.points), geometry)
    cuts = []
    for viewpoint in viewpoints:
        cut = _cut(dataset, viewpoint.towards[1], _origin(low, high, geometry))
        centres = np.asarray(cut.cell_centers().points) if cut.n_cells else np.zeros((0, 3))
        inside = np.flatnonzero(
            ((centres >= low) & (centres <= high) | (np.arange(3) == viewpoint.towards[1])).all(axis=1)
        )
        cuts.append(_polygons(cut.extract_cells(inside)) if len(inside) < cut.n_cells else cut)
    return cuts


def _cut(dataset: Any, axis: int, origin: Array) -> Any:
    with vtk_messages():
        return dataset.slice(normal="xyz"[axis], origin=origin)


def _polygons(grid: Any) -> Any:
    """Returns flat cells as `pyvista.PolyData`; the arguments of its own method depend on its version."""
    geometry = vtk_class("vtkFiltersGeometry", "vtkGeometryFilter")()
    geometry.SetInputData(grid)
    geometry.Update()
    return import_pyvista().wrap(geometry.GetOutput())


def _origin(low: Array, high: Array, geometry: Array | None) -> Array:
    """Returns a point just beside the middle, where the halves of a symmetric mesh share faces."""
    middle = (low + high) / 2 if geometry is None else np.mean(_box(geometry), axis=0)
    origin: Array = middle + 1e-6 * (high - low)
    return origin


def _surface_scenes(dataset: Any, location: Location) -> list[Scene]:
    scenes = []
    for viewpoint in viewpoints(dataset.points, (FROM_UPSTREAM, FROM_THE_SIDE, FROM_ABOVE)):
        window = _window(viewpoint, *_box(dataset.points), margin=_MARGIN)
        scenes += _painted_triangles(dataset, location, viewpoint, window, holes="white", lit=True)
    return scenes


def viewpoints(position: Array, usual: Sequence[Viewpoint]) -> Sequence[Viewpoint]:
    """Returns the usual viewpoints, or for what is flat the one that sees it whole."""
    axis = flat_axis(position)
    return usual if axis is None else [(FROM_UPSTREAM, FROM_THE_SIDE, FROM_ABOVE)[axis]]


def _slices(dataset: Any, fields: MeshFields, arrays: Mapping[str, Array], geometry: Array | None) -> list[Scene]:
    low, high = _surroundings(fields.position, _box(dataset.points), geometry)
    origin = _origin(low, high, geometry)
    scenes = []
    for viewpoint in viewpoints(fields.position, (FROM_THE_SIDE, FROM_ABOVE)):
        axis = viewpoint.towards[1]
        where = 0.0 if abs(origin[axis]) < 1e-4 * (high - low).max() else origin[axis]
        viewpoint = viewpoint._replace(title=f"{'xyz'[axis]} = {where:.3g}")
        window = _window(viewpoint, low, high, margin=0.0)
        cut = _cut(dataset, axis, origin)
        scenes += _painted_triangles(cut, fields.location, viewpoint, window, holes=_HOLES) or [
            _painted_points(fields.position, arrays, viewpoint, window, origin)
        ]
    return scenes


def _box(position: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    position = np.asarray(position)
    return position.min(axis=0).astype(np.float64), position.max(axis=0).astype(np.float64)


def _surroundings(
    position: Array, box: tuple[NDArray[np.float64], NDArray[np.float64]], geometry: Array | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The box that slices show: around the geometry as far as the mesh goes, or where most of the mesh is."""
    if geometry is None:
        low, high = np.percentile(position[:: max(1, len(position) // 100_000)], [2, 98], axis=0)
    else:
        low, high = _box(geometry)
        around = _LENGTHS_AROUND * (high - low).max()
        low, high = np.maximum(low - around, box[0]), np.minimum(high + around, box[1])
    return (low, high) if (low <= high).all() and (low < high).sum() > 1 else box


def _window(viewpoint: Viewpoint, low: Array, high: Array, *, margin: float) -> Window:
    corners = viewpoint.project(np.stack([low, high]))
    first, last = corners.min(axis=0)[:2], corners.max(axis=0)[:2]
    # A flat geometry seen edge-on still needs a window with an area.
    longest = float((last - first).max()) or 1.0
    pad = longest * np.where(last > first, margin, max(margin, 0.02))
    first, last = first - pad, last + pad
    return Window(first[0], last[0], first[1], last[1])


def _painted_triangles(
    polygons: Any, location: Location, viewpoint: Viewpoint, window: Window, *, holes: str, lit: bool = False
) -> list[Scene]:
    """The scene of the polygons, with one value per pixel that shows them; none if no pixel does.

    `lit` shades them where pyvista can render; else the colours are flat.
    """
    corners, cell = fan_triangles(polygons)
    if not len(corners):
        return []
    points = viewpoint.project(np.asarray(polygons.points))
    if lit and len(corners) <= MAX_TRIANGLES and can_render():
        index, light = render_triangles(points, corners, window, num_pixels=_NUM_PIXELS)
    else:
        index = rasterize(points[corners], window, num_pixels=_NUM_PIXELS)
        light = np.ones(index.shape)
    shown = index >= 0
    if not shown.any():
        return []
    triangle = index[shown]
    if location == "cells":
        arrays = {name: np.asarray(values)[cell[triangle]] for name, values in polygons.cell_data.items()}
    else:
        at = corners[triangle]
        arrays = {name: np.asarray(values)[at].mean(axis=1) for name, values in polygons.point_data.items()}

    def paint(axes: Axes, values: Array, scale: Normalize, color_map: str) -> None:
        picture = np.full((*index.shape, 3), to_rgb(holes))
        picture[shown] = colormaps[color_map](scale(values))[:, :3] * light[shown, None]
        axes.imshow(picture, extent=window, origin="lower")

    return [Scene(_view(viewpoint, window, paint), arrays)]


def _painted_points(
    position: Array, arrays: Mapping[str, Array], viewpoint: Viewpoint, window: Window, origin: Array
) -> Scene:
    """The scene of the points in the window nearest to a plane, for meshes without cells to cut."""
    seen = viewpoint.project(position)
    distance = np.abs(seen[:, 2] - viewpoint.project(origin)[2])
    inside = (seen[:, :2] >= [window.left, window.bottom]) & (seen[:, :2] <= [window.right, window.top])
    candidates = np.flatnonzero(inside.all(axis=1)) if inside.all(axis=1).any() else np.arange(len(seen))
    near = candidates[np.argsort(distance[candidates], kind="stable")[:_NUM_NEAR_PLANE]]

    def paint(axes: Axes, values: Array, scale: Normalize, color_map: str) -> None:
        axes.scatter(
            seen[near, 0], seen[near, 1], c=values, s=4, norm=scale, cmap=color_map, linewidths=0, rasterized=True
        )
        axes.set(xlim=(window.left, window.right), ylim=(window.bottom, window.top))

    view = _view(viewpoint._replace(title=f"near {viewpoint.title}"), window, paint)
    return Scene(view, {name: values[near] for name, values in arrays.items()})


def _view(viewpoint: Viewpoint, window: Window, paint: Any) -> View:
    across, up = (
        f"{'−' if sign < 0 else ''}{'xyz'[axis]} (mesh unit)" for sign, axis in (viewpoint.right, viewpoint.up)
    )
    return View(paint, viewpoint.title, across, up, window.height / window.width)
