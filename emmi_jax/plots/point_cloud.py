"""Pictures of a point cloud: predicted and known fields, near the middle plane if there are many points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.plots.panels import Quantity, View, draw_comparison, field_label, magnitude
from emmi_jax.points import Array, flat_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_NUM_POINTS = 4000
_NEAREST = f"the {_NUM_POINTS} test points nearest to the middle plane"
_MARGIN = 2.0


def near_middle_plane(position: Array) -> NDArray[np.intp]:
    """Returns the indices of the 4000 positions [N, 3] that are nearest to the plane through the median y.

    Points that are flat along another axis are seen along that one.
    """
    *_, along = _axes(position)
    distance = np.abs(position[:, along] - np.median(position[:, along]))
    return np.argsort(distance, kind="stable")[:_NUM_POINTS]


def draw_fields(path: Path, name: str, position: Array, predicted: Array, known: Array) -> Path:
    """Draws a field, projected along y, or along the axis in which the points are flat.

    Args:
        path: The PNG file.
        name: Name of the field.
        position: Positions [N, 3].
        predicted: Values [N, F].
        known: Values [N, F].
    """
    points = f"{len(position)} test points" if len(position) < _NUM_POINTS else _NEAREST
    title = f"{name.replace('_', ' ')} at {points}"
    quantity = Quantity(magnitude(predicted), magnitude(known), field_label(name, known.shape[1]), "viridis")
    return draw_comparison(path, title, [_side_view(position)], [quantity], truth="reference")


def _side_view(position: Array) -> View:
    """A scatter of two axes, zoomed to where most points are."""
    across, up, _ = _axes(position)
    low, high = np.percentile(position, _MARGIN, axis=0), np.percentile(position, 100 - _MARGIN, axis=0)
    pad = np.where(high > low, 0.0, 0.01 * float((high - low).max() or 1.0))
    low, high = low - pad, high + pad

    def paint(axes: Axes, values: NDArray[np.floating[Any]], scale: Normalize, color_map: str) -> None:
        x, y = position[:, across], position[:, up]
        axes.scatter(x, y, c=values, s=4, norm=scale, cmap=color_map, linewidths=0, rasterized=True)
        axes.set(xlim=(low[across], high[across]), ylim=(low[up], high[up]))

    aspect = float((high[up] - low[up]) / (high[across] - low[across]))
    title = "side view" if (across, up) == (0, 2) else f"along {'xyz'[3 - across - up]}"
    return View(paint, title, "xyz"[across], "xyz"[up], aspect=aspect)


def _axes(position: Array) -> tuple[int, int, int]:
    """Returns the axes that point right, up and towards the viewer."""
    flat = flat_axis(position)
    return (1, 2, 0) if flat == 0 else (0, 1, 2) if flat == 2 else (0, 2, 1)
