"""Predicted against known values, point by point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from emmi_jax.plots.panels import save_figure
from emmi_jax.points import Array

_NUM_POINTS = 200_000
_NUM_BINS = 90
_MARKERS = (("o", "C0"), ("D", "C1"))


def draw_parity(path: Path, title: str, label: str, predicted: Array, known: Array, *, truth: str = "exact") -> Path:
    """Draws a histogram of predicted over known values, one panel per channel, with the line where they are equal.

    Args:
        path: The PNG file, written atomically.
        title: Title of the figure.
        label: Name of the field.
        predicted: Values [N, F]; above 200,000 points, an evenly spaced subset is drawn.
        known: Values [N, F].
        truth: What to call the known values.

    Returns:
        `path`.
    """
    step = -(-len(predicted) // _NUM_POINTS)
    predicted, known = predicted[::step], known[::step]
    num_channels = predicted.shape[1]
    suffixes = {1: [""], 3: [" x", " y", " z"]}.get(num_channels, [f" {channel}" for channel in range(num_channels)])
    figure = Figure(figsize=(1.2 + 4.1 * num_channels, 4.7), layout="compressed")
    figure.suptitle(f"{title}: {len(predicted):,}{' of the' if step > 1 else ''} points")
    grid = figure.subplots(1, num_channels, squeeze=False)[0]
    pairs = list(zip(known.T, predicted.T, strict=True))
    bins = [_bins(*pair) for pair in pairs]
    counts = [np.histogram2d(x, y, bins=(edges, edges))[0] for (x, y), edges in zip(pairs, bins, strict=True)]
    scale = LogNorm(1, max(2.0, *(count.max() for count in counts)))
    for axes, suffix, edges, count in zip(grid, suffixes, bins, counts, strict=True):
        axes.pcolormesh(edges, edges, np.where(count > 0, count, np.nan).T, norm=scale, cmap="viridis", rasterized=True)
        axes.plot(edges[[0, -1]], edges[[0, -1]], color="black", linewidth=0.8, linestyle="--")
        axes.set(aspect="equal", xlabel=f"{label}{suffix}, {truth}", ylabel=f"{label}{suffix}, predicted")
        axes.locator_params(nbins=5)
    figure.colorbar(ScalarMappable(scale, "viridis"), ax=list(grid), label="points in a bin", pad=0.01)
    return save_figure(figure, path)


class Coefficient(NamedTuple):
    """A number per case: its label, predicted values [N, draws], and known values [N] by what they are."""

    label: str
    predicted: Array
    known: Mapping[str, Array]


def draw_coefficients(path: Path, coefficients: Sequence[Coefficient]) -> Path:
    """Draws predicted over known numbers with the line where they are equal: a panel per number, a mark per case.

    A mark is the mean over the draws of anchors, and its bar reaches from the lowest to the highest of them.

    Args:
        path: The PNG file, written atomically.
        coefficients: The panels.

    Returns:
        `path`.
    """
    figure = Figure(figsize=(0.6 + 4.4 * len(coefficients), 4.6), layout="compressed")
    grid = figure.subplots(1, len(coefficients), squeeze=False)[0]
    for axes, (label, predicted, known) in zip(grid, coefficients, strict=True):
        mean = predicted.mean(axis=1)
        reach = np.abs(np.stack([predicted.min(axis=1), predicted.max(axis=1)]) - mean)
        for (kind, values), (marker, color) in zip(known.items(), _MARKERS, strict=False):
            axes.errorbar(values, mean, reach, fmt=marker, ms=5, mfc="none", color=color, elinewidth=0.8, label=kind)
        ends = np.concatenate([predicted.ravel(), *known.values()])
        pad = 0.05 * np.ptp(ends) or max(1.0, np.abs(ends).max()) * 1e-3
        ends = np.array([ends.min() - pad, ends.max() + pad])
        axes.plot(ends, ends, color="black", linewidth=0.8, linestyle="--")
        axes.set(aspect="equal", xlim=ends, ylim=ends, xlabel=f"{label}, known", ylabel=f"{label}, predicted")
        axes.locator_params(nbins=5)
        axes.legend(loc="upper left")
    num_cases = len(coefficients[0].predicted)
    figure.suptitle("1 case" if num_cases == 1 else f"{num_cases} cases")
    return save_figure(figure, path)


def _bins(known: Array, predicted: Array) -> Array:
    """Bin edges that leave out a thousandth at both ends, so that outliers do not shrink the rest."""
    low, high = np.percentile(np.concatenate([known, predicted]), [0.1, 99.9])
    pad = 0.03 * (high - low) or max(1.0, abs(high)) * 1e-3
    return np.linspace(low - pad, high + pad, _NUM_BINS + 1)
