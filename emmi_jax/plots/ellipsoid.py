"""Pictures of the flow past one ellipsoid: surface pressure from two sides, and a slice of the velocity."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.potential_flow import SHELL_SCALE, Ellipsoid
from emmi_jax.data.samples import Predict, Sample
from emmi_jax.plots.panels import Quantity, View, draw_comparison
from emmi_jax.points import PointSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_NUM_LATITUDES, _NUM_LONGITUDES = 49, 96
_SLICE_POINTS = 161


def draw_surface(body: Ellipsoid, anchored: Sample, predict: Predict, directory: Path) -> Path:
    """Draws predicted and exact pressure coefficient on the surface, seen from upstream and from the side.

    Args:
        body: The ellipsoid.
        anchored: Its anchors and geometry.
        predict: The model.
        directory: Where the picture goes.

    Returns:
        Its path.
    """
    position, triangles = _surface_mesh(body)
    queries = {"surface": PointSet(position, {}), "volume": anchored.anchors["volume"]}
    predicted = predict(anchored._replace(queries=queries))["surface"]["pressure_coefficient"][:, 0]
    quantity = Quantity(predicted, body.pressure_coefficient(position), "$C_p$", "viridis")
    views = [
        _surface_view(body, position, triangles, direction=(-1, 0, 0), right=(0, -1, 0), title="from upstream"),
        _surface_view(body, position, triangles, direction=(0, -1, 0), right=(1, 0, 0), title="from the side"),
    ]
    a, b, c = body.semi_axes
    title = f"Surface pressure of an unseen ellipsoid, semi-axes {a:.2f}, {b:.2f}, {c:.2f}"
    return draw_comparison(directory / "surface_pressure.png", title, views, [quantity] * 2)


def draw_slice(body: Ellipsoid, anchored: Sample, predict: Predict, directory: Path) -> Path:
    """Draws predicted and exact speed in the plane z = 0 around the body.

    Args:
        body: The ellipsoid.
        anchored: Its anchors and geometry.
        predict: The model.
        directory: Where the picture goes.

    Returns:
        Its path.
    """
    reach = 2.2 * float(body.semi_axes.max())
    ticks = np.linspace(-reach, reach, _SLICE_POINTS)
    x, y = np.meshgrid(ticks, ticks)
    position = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    level = np.linalg.norm(position @ body.rotation / body.semi_axes, axis=1)
    outside = (level >= 1.0) & (level <= SHELL_SCALE)
    queries = {"surface": anchored.anchors["surface"], "volume": PointSet(position[outside], {})}
    predicted = np.linalg.norm(predict(anchored._replace(queries=queries))["volume"]["velocity"], axis=1)
    exact = np.linalg.norm(body.velocity(position[outside]), axis=1)

    def paint(axes: Axes, values: NDArray[np.floating[Any]], scale: Normalize, color_map: str) -> None:
        picture = np.full(x.size, np.nan)
        picture[outside] = values
        axes.pcolormesh(x, y, picture.reshape(x.shape), norm=scale, cmap=color_map, shading="nearest", rasterized=True)
        axes.contourf(x, y, level.reshape(x.shape), levels=[0.0, 1.0], colors="0.7")
        axes.contour(x, y, level.reshape(x.shape), levels=[1.0], colors="black", linewidths=1.0)

    view = View(paint, "z = 0", "x / L, stream to the right", "y / L", aspect=1.0)
    title = "Speed around an unseen ellipsoid"
    return draw_comparison(
        directory / "volume_velocity.png", title, [view], [Quantity(predicted, exact, "$|u| / U$", "viridis")]
    )


def _surface_mesh(body: Ellipsoid) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Vertices [N, 3] and triangles [K, 3] of the surface, a grid of latitudes and longitudes."""
    polar = np.linspace(0.0, np.pi, _NUM_LATITUDES)
    azimuth = np.linspace(0.0, 2 * np.pi, _NUM_LONGITUDES, endpoint=False)
    theta, phi = np.meshgrid(polar, azimuth, indexing="ij")
    unit = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    vertices = unit.reshape(-1, 3) * body.semi_axes @ body.rotation.T
    idx = np.arange(theta.size).reshape(theta.shape)
    here, right = idx, np.roll(idx, -1, axis=1)
    lower = np.stack([here[:-1], right[:-1], here[1:]], axis=-1)
    upper = np.stack([right[:-1], right[1:], here[1:]], axis=-1)
    return vertices, np.concatenate([lower.reshape(-1, 3), upper.reshape(-1, 3)])


def _surface_view(
    body: Ellipsoid,
    position: NDArray[np.float64],
    triangles: NDArray[np.intp],
    *,
    direction: tuple[int, int, int],
    right: tuple[int, int, int],
    title: str,
) -> View:
    """The half of the surface that faces a viewer in `direction`, projected along it, z upwards."""
    facing = body.surface_normal(position) @ np.array(direction) > 0
    visible = triangles[facing[triangles].all(axis=1)]
    across = position @ np.array(right)

    from matplotlib.tri import Triangulation

    def paint(axes: Axes, values: NDArray[np.floating[Any]], scale: Normalize, color_map: str) -> None:
        axes.tripcolor(
            Triangulation(across, position[:, 2], visible),
            values,
            norm=scale,
            cmap=color_map,
            shading="gouraud",
            rasterized=True,
        )

    axis = "xyz"[int(np.argmax(np.abs(right)))]
    sign = "−" if sum(right) < 0 else ""
    return View(paint, title, f"{sign}{axis} / L", "z / L", aspect=float(np.ptp(position[:, 2]) / np.ptp(across)))
