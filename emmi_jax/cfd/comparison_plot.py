"""Panels that set a prediction beside the truth: predicted, exact, difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from emmi_jax.cfd.cases import Array


class View(NamedTuple):
    """One row of panels: how to paint values [N] into axes, and what it shows."""

    paint: Callable[[Axes, Array, Normalize, str], None]
    title: str
    x_label: str
    y_label: str


class Quantity(NamedTuple):
    """A scalar at the painted points: predicted and exact values [N], name and unit, colour map."""

    predicted: Array
    exact: Array
    label: str
    color_map: str


def draw_comparison(path: Path, title: str, views: list[View], quantities: list[Quantity]) -> Path:
    """Draws a row of three panels for each view: predicted and exact under one colour scale, and their difference.

    Args:
        path: The PNG file.
        title: Title of the figure.
        views: The rows.
        quantities: One quantity a view.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(13, 1.0 + 3.6 * len(views)), layout="compressed")
    figure.suptitle(title)
    grid = figure.subplots(len(views), 3, squeeze=False)
    for row, view, quantity in zip(grid, views, quantities, strict=True):
        shared, around_zero = _scale(quantity.exact), _scale_around_zero(quantity.predicted - quantity.exact)
        panels = [
            ("predicted", quantity.predicted, shared, quantity.color_map),
            ("exact", quantity.exact, shared, quantity.color_map),
            ("predicted − exact", quantity.predicted - quantity.exact, around_zero, "RdBu_r"),
        ]
        for axes, (name, values, scale, color_map) in zip(row, panels, strict=True):
            view.paint(axes, values, scale, color_map)
            axes.set_aspect("equal")
            axes.locator_params(nbins=5)
            axes.set(title=f"{name}, {view.title}", xlabel=view.x_label)
        row[0].set_ylabel(view.y_label)
        figure.colorbar(
            ScalarMappable(shared, quantity.color_map), ax=list(row[:2]), label=quantity.label, pad=0.01, extend="both"
        )
        label = f"difference of {quantity.label}"
        figure.colorbar(ScalarMappable(around_zero, "RdBu_r"), ax=row[2], label=label, pad=0.02, extend="both")
    figure.savefig(path, dpi=130)
    return path


def _scale(values: Array) -> Normalize:
    low, high = np.percentile(values, [0.5, 99.5])
    return Normalize(low, high)


def _scale_around_zero(values: Array) -> Normalize:
    reach = max(float(np.percentile(np.abs(values), 99.5)), 1e-12)
    return Normalize(-reach, reach)
