"""Pictures of the flow past one ellipsoid: surface pressure from two sides, and a slice of the velocity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.potential_flow import SHELL_SCALE, Ellipsoid
from emmi_jax.plots.panels import Quantity, View, draw_comparison, magnitude
from emmi_jax.points import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_NUM_LATITUDES, _NUM_LONGITUDES = 49, 96
_SLICE_POINTS = 161


class SurfaceMesh(NamedTuple):
    """The surface of an ellipsoid: vertices [N, 3], their normals [N, 3], and triangles [K, 3]."""

    position: NDArray[np.float64]
    normal: NDArray[np.float64]
    triangles: NDArray[np.intp]


class SliceGrid(NamedTuple):
    """The plane z = 0 around an ellipsoid.

    Attributes:
        position: The points [N, 3] that are in the shell around it.
        in_shell: Which points [R, R] of the grid these are.
        ticks: Coordinates [R] of the grid along x and along y.
        level: Distance [R, R] from the centre over that of the surface.
    """

    position: NDArray[np.float64]
    in_shell: NDArray[np.bool_]
    ticks: NDArray[np.float64]
    level: NDArray[np.float64]


def surface_mesh(body: Ellipsoid) -> SurfaceMesh:
    """Meshes the surface by latitudes and longitudes."""
    polar = np.linspace(0.0, np.pi, _NUM_LATITUDES)
    azimuth = np.linspace(0.0, 2 * np.pi, _NUM_LONGITUDES, endpoint=False)
    theta, phi = np.meshgrid(polar, azimuth, indexing="ij")
    unit = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    vertices = unit.reshape(-1, 3) * body.semi_axes @ body.rotation.T
    idx = np.arange(theta.size).reshape(theta.shape)
    here, right = idx, np.roll(idx, -1, axis=1)
    lower = np.stack([here[:-1], right[:-1], here[1:]], axis=-1)
    upper = np.stack([right[:-1], right[1:], here[1:]], axis=-1)
    triangles = np.concatenate([lower.reshape(-1, 3), upper.reshape(-1, 3)])
    return SurfaceMesh(vertices, body.surface_normal(vertices), triangles)


def slice_grid(body: Ellipsoid) -> SliceGrid:
    """Lays a square grid around the body into the plane z = 0."""
    reach = 2.2 * float(body.semi_axes.max())
    ticks = np.linspace(-reach, reach, _SLICE_POINTS)
    x, y = np.meshgrid(ticks, ticks)
    position = np.stack([x, y, np.zeros_like(x)], axis=-1)
    level = np.linalg.norm(position @ body.rotation / body.semi_axes, axis=-1)
    in_shell = (level >= 1.0) & (level <= SHELL_SCALE)
    return SliceGrid(position[in_shell], in_shell, ticks, level)


def draw_surface(path: Path, title: str, mesh: SurfaceMesh, predicted: Array, exact: Array) -> Path:
    """Draws predicted and exact pressure coefficients [N] on the surface, seen from upstream and from the side."""
    quantity = Quantity(predicted, exact, "Cₚ", "viridis")
    views = [
        _surface_view(mesh, direction=(-1, 0, 0), right=(0, -1, 0), title="from upstream"),
        _surface_view(mesh, direction=(0, -1, 0), right=(1, 0, 0), title="from the side"),
    ]
    return draw_comparison(path, title, views, [quantity] * 2)


def draw_slice(path: Path, grid: SliceGrid, predicted: Array, exact: Array) -> Path:
    """Draws the predicted and the exact speed in the plane z = 0, of velocities [N, 3]."""

    def paint(axes: Axes, values: NDArray[np.floating[Any]], scale: Normalize, color_map: str) -> None:
        picture = np.full(grid.in_shell.shape, np.nan)
        picture[grid.in_shell] = values
        plane = grid.ticks, grid.ticks
        axes.pcolormesh(*plane, picture, norm=scale, cmap=color_map, shading="nearest", rasterized=True)
        axes.contourf(*plane, grid.level, levels=[0.0, 1.0], colors="0.7")
        axes.contour(*plane, grid.level, levels=[1.0], colors="black", linewidths=1.0)

    view = View(paint, "z = 0", "x / L, stream to the right", "y / L", aspect=1.0)
    speed = Quantity(magnitude(predicted), magnitude(exact), "|u| / U", "viridis")
    return draw_comparison(path, "Speed around an unseen ellipsoid", [view], [speed])


def _surface_view(
    mesh: SurfaceMesh, *, direction: tuple[int, int, int], right: tuple[int, int, int], title: str
) -> View:
    """The half of the surface that faces a viewer in `direction`, projected along it, z upwards."""
    position, normal, triangles = mesh
    facing = normal @ np.array(direction) > 0
    visible = triangles[facing[triangles].all(axis=1)]
    across = position @ np.array(right)

    def paint(axes: Axes, values: NDArray[np.floating[Any]], scale: Normalize, color_map: str) -> None:
        from matplotlib.tri import Triangulation

        triangulation = Triangulation(across, position[:, 2], visible)
        axes.tripcolor(triangulation, values, norm=scale, cmap=color_map, shading="gouraud", rasterized=True)

    axis = "xyz"[int(np.argmax(np.abs(right)))]
    sign = "−" if sum(right) < 0 else ""
    return View(paint, title, f"{sign}{axis} / L", "z / L", aspect=float(np.ptp(position[:, 2]) / np.ptp(across)))
