"""Pictures of a point cloud: predicted and exact fields at the test points near the middle plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.samples import Predict, Sample
from emmi_jax.plots.panels import Quantity, View, draw_comparison
from emmi_jax.points import Array, PointSet, take_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_NUM_POINTS = 4000
_MARGIN = 2.0


def draw_fields(points: PointSet, branch: str, anchored: Sample, predict: Predict, directory: Path) -> list[Path]:
    """Draws every field at the points nearest to the plane through the median y, projected along y.

    Args:
        points: Test points with exact fields.
        branch: Name of the branch.
        anchored: Anchors of the case.
        predict: The model.
        directory: Where the pictures go.

    Returns:
        Their paths, one a field.
    """
    distance = np.abs(points.position[:, 1] - np.median(points.position[:, 1]))
    near = take_points(points, np.argsort(distance, kind="stable")[:_NUM_POINTS])
    fields = predict(anchored._replace(queries={branch: near}))[branch]
    view = _side_view(near.position)
    return [
        draw_comparison(
            directory / f"{branch}_{name}.png",
            f"{name.replace('_', ' ')} at {len(near.position)} test points near the middle plane",
            [view],
            [_magnitude(name, fields[name], exact)],
        )
        for name, exact in near.fields.items()
    ]


def _magnitude(name: str, predicted: Array, exact: Array) -> Quantity:
    label = name.replace("_", " ")
    if exact.shape[1] == 1:
        return Quantity(predicted[:, 0], exact[:, 0], label, "viridis")
    return Quantity(np.linalg.norm(predicted, axis=1), np.linalg.norm(exact, axis=1), f"|{label}|", "viridis")


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
