"""Pictures of a point cloud: predicted and known fields, near the middle plane if there are many points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.plots.panels import Quantity, View, draw_comparison, field_label, magnitude
from emmi_jax.points import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_NUM_POINTS = 4000
_NEAREST = f"the {_NUM_POINTS} test points nearest to the middle plane"
_MARGIN = 2.0


def near_middle_plane(position: Array) -> NDArray[np.intp]:
    """Returns the indices of the 4000 positions [N, 3] that are nearest to the plane through the median y."""
    distance = np.abs(position[:, 1] - np.median(position[:, 1]))
    return np.argsort(distance, kind="stable")[:_NUM_POINTS]


def draw_fields(path: Path, name: str, position: Array, predicted: Array, known: Array) -> Path:
    """Draws a field, projected along y.

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
    """A scatter of x and z, zoomed to where most points are."""
    low, high = np.percentile(position, _MARGIN, axis=0), np.percentile(position, 100 - _MARGIN, axis=0)

    def paint(axes: Axes, values: NDArray[np.floating[Any]], scale: Normalize, color_map: str) -> None:
        axes.scatter(
            position[:, 0], position[:, 2], c=values, s=4, norm=scale, cmap=color_map, linewidths=0, rasterized=True
        )
        axes.set(xlim=(low[0], high[0]), ylim=(low[2], high[2]))

    aspect = float((high[2] - low[2]) / (high[0] - low[0])) if high[0] > low[0] else 1.0
    return View(paint, "side view", "x", "z", aspect=aspect)
