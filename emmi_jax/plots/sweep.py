"""Numbers over a condition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from emmi_jax.plots.panels import save_figure
from emmi_jax.points import Array


def draw_sweep(
    path: Path, label: str, values: Array, numbers: Mapping[str, Array], known: Mapping[str, Array] | None = None
) -> Path:
    """Draws numbers over the values of a condition, one panel per number.

    Args:
        path: The PNG file, written atomically.
        label: The condition and its unit.
        values: Its values [N].
        numbers: Predicted numbers [N] by name.
        known: Known values of these numbers, NaN where they are unknown.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(0.6 + 4.4 * len(numbers), 3.6), layout="constrained")
    grid = figure.subplots(1, len(numbers), squeeze=False)[0]
    for axes, (name, predicted) in zip(grid, numbers.items(), strict=True):
        axes.plot(values, predicted, marker=".", label="predicted")
        if known is not None and not np.isnan(known[name]).all():
            axes.plot(values, known[name], "o", mfc="none", label="known")
            axes.legend()
        axes.set(xlabel=label, ylabel=name)
        axes.grid(alpha=0.3)
    return save_figure(figure, path)
