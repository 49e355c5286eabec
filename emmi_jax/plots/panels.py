"""Panels that show a prediction beside the truth: predicted, exact, difference, and their colours."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text

from emmi_jax.files.atomic import atomic_path
from emmi_jax.files.names import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from emmi_jax.points import Array

_DOTS_PER_INCH = 130
_PANEL_WIDTH = 3.6
_PANEL_HEIGHTS = (1.1, 4.5)
_MAX_TEXT = 200


class View(NamedTuple):
    """One row of panels: how to paint values [N] into axes, its labels, and its height over its width."""

    paint: Callable[[Axes, Array, Normalize, str], None]
    title: str
    x_label: str
    y_label: str
    aspect: float = 0.8


class Quantity(NamedTuple):
    """A scalar at the painted points: predicted values [N], exact values or None, label, and colour map."""

    predicted: Array
    exact: Array | None
    label: str
    color_map: str


class Panel(NamedTuple):
    """A column of panels: its name, values [N] per row, and colours."""

    name: str
    values: Sequence[Array]
    scale: Normalize
    color_map: str


def draw_comparison(
    path: Path, title: str, views: Sequence[View], quantities: Sequence[Quantity], *, truth: str = "exact"
) -> Path:
    """Draws one row per view: predicted and exact values under one colour scale, and their difference.

    All rows share their scales. Without exact values there is one panel per row, the prediction.

    Args:
        path: The PNG file, written atomically.
        title: Title of the figure.
        views: The rows.
        quantities: The same quantity for each view, at its points.
        truth: What to call the exact values.

    Returns:
        `path`.
    """
    return _draw_panels(path, title, views, _panels(quantities, truth), _bar_labels(quantities))


def draw_signed(path: Path, title: str, views: Sequence[View], values: Sequence[Array], label: str) -> Path:
    """Draws one row per view of a quantity whose sign matters: red where it is positive, blue where it is negative.

    Args:
        path: The PNG file, written atomically.
        title: Title of the figure.
        views: The rows.
        values: The quantity [N] for each view, at its points.
        label: What the colours mean.

    Returns:
        `path`.
    """
    panel = Panel("", values, _scale_around_zero(np.concatenate(values)), "RdBu_r")
    return _draw_panels(path, title, views, [panel], (label,))


def _draw_panels(path: Path, title: str, views: Sequence[View], panels: Sequence[Panel], labels: Sequence[str]) -> Path:
    """Draws one row per view and one column per panel; the first two share a colour bar."""
    num_columns = len(panels)
    low, high = _PANEL_HEIGHTS
    heights = [min(max(_PANEL_WIDTH * view.aspect, low), high) + 0.7 for view in views]
    figure = Figure(figsize=(2.2 + _PANEL_WIDTH * num_columns, 0.6 + sum(heights)), layout="compressed")
    figure.suptitle(title)
    grid: Any = figure.subplots(len(views), num_columns, squeeze=False, height_ratios=heights)
    for row, view, *columns in zip(grid, views, *(panel.values for panel in panels), strict=True):
        for axes, panel, values in zip(row, panels, columns, strict=True):
            view.paint(axes, values, panel.scale, panel.color_map)
            axes.set_aspect("equal")
            axes.locator_params(nbins=5)
            axes.set_title(", ".join(filter(None, (panel.name, view.title))), fontsize="medium")
            axes.set_xlabel(view.x_label)
        row[0].set_ylabel(view.y_label)
    for panel, columns, label in zip(panels[::2], (grid[:, :2], grid[:, 2:]), labels, strict=False):
        colors = ScalarMappable(panel.scale, panel.color_map)
        figure.colorbar(colors, ax=list(columns.flat), label=label, pad=0.015, aspect=20 * len(views), extend="both")
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG file atomically; titles and labels show names as they are, not as formulas."""
    for text in _words(figure):
        text.set(parse_math=False, text=printable(text.get_text())[:_MAX_TEXT])
    with atomic_path(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names may be of any length, and without glyphs
        figure.savefig(partial, dpi=_DOTS_PER_INCH, bbox_inches="tight")
    return path


def magnitude(values: Array) -> Array:
    """Returns the values [N] of a scalar field [N, 1], or the norms [N] of a vector field [N, F]."""
    norms: Array = values[:, 0] if values.shape[1] == 1 else np.linalg.norm(values, axis=1)
    return norms


def field_label(name: str, num_channels: int) -> str:
    """Returns the label of a field's magnitude."""
    words = name.replace("_", " ")
    return words if num_channels == 1 else f"|{words}|"


def _words(figure: Figure) -> Iterator[Text]:
    """Yields all text but the numbers at the ticks, some of which are formulas."""
    yield from figure.texts
    for axes in figure.axes:
        yield from (axes.title, axes.xaxis.label, axes.yaxis.label)
        if (legend := axes.get_legend()) is not None:
            yield from legend.get_texts()


def _panels(quantities: Sequence[Quantity], truth: str) -> list[Panel]:
    predicted = [quantity.predicted for quantity in quantities]
    exact = [quantity.exact for quantity in quantities if quantity.exact is not None]
    shared, color_map = _scale(np.concatenate(exact or predicted)), quantities[0].color_map
    panels = [Panel("predicted", predicted, shared, color_map)]
    if exact:
        differences = [mine - true for mine, true in zip(predicted, exact, strict=True)]
        around_zero = _scale_around_zero(np.concatenate(differences))
        panels.append(Panel(truth, exact, shared, color_map))
        panels.append(Panel(f"predicted − {truth}", differences, around_zero, "RdBu_r"))
    return panels


def _bar_labels(quantities: Sequence[Quantity]) -> tuple[str, str]:
    return quantities[0].label, f"difference of {quantities[0].label}"


def _scale(values: Array) -> Normalize:
    low, high = np.percentile(values, [0.5, 99.5])
    return Normalize(low, high)


def _scale_around_zero(values: Array) -> Normalize:
    reach = max(float(np.percentile(np.abs(values), 99.5)), 1e-12)
    return Normalize(-reach, reach)
