"""Pictures of intervals: coverage against level, and error against deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from emmi_jax.plots.panels import save_figure
from emmi_jax.points import Array


def draw_coverage(
    path: Path, levels: Sequence[float], covered: Mapping[str, Array], bounds: Sequence[tuple[float, float]]
) -> Path:
    """Draws the share of cases that intervals cover against their level, with the band of the guarantee.

    Args:
        path: The PNG file, written atomically.
        levels: The levels [L].
        covered: Shares [L] or [calibrations, L] by quantity; of several calibrations a bar shows the range.
        bounds: Lowest and highest share that the guarantee gives at each level.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(5.4, 5.0), layout="compressed")
    axes, at = figure.subplots(), np.asarray(levels)
    low, high = np.asarray(bounds).T
    axes.fill_between(at, low, high, color="0.9", label="guarantee")
    axes.plot(at, at, color="black", linewidth=0.8, linestyle="--")
    for number, (name, shares) in enumerate(covered.items()):
        each = np.atleast_2d(shares)
        mean, shift = each.mean(axis=0), 0.004 * (number - (len(covered) - 1) / 2)
        reach = np.abs(np.stack([each.min(axis=0), each.max(axis=0)]) - mean)
        axes.errorbar(at + shift, mean, reach, fmt="o", ms=4, mfc="none", elinewidth=0.8, label=name)
    axes.set(xlabel="level", ylabel="share of cases covered", title="Coverage against level")
    axes.legend(loc="upper left")
    return save_figure(figure, path)


def draw_errors_over_deviations(path: Path, label: str, error: Array, deviation: Array) -> Path:
    """Draws |error| over deviation, case by case, with the lines of one and two deviations.

    Args:
        path: The PNG file, written atomically.
        label: What was predicted.
        error: Errors [N].
        deviation: Deviations [N].

    Returns:
        `path`.
    """
    figure = Figure(figsize=(5.4, 5.0), layout="compressed")
    axes = figure.subplots()
    axes.scatter(deviation, np.abs(error), s=8, alpha=0.5)
    end = np.array([0.0, float(np.max(deviation, initial=0.0)) or 1.0])
    for number in (1, 2):
        axes.plot(end, number * end, color="black", linewidth=0.8, linestyle=("--", ":")[number - 1])
    axes.set(xlabel=f"deviation of {label}", ylabel=f"|error| of {label}", title=f"{len(error):,} cases")
    return save_figure(figure, path)
