"""The loss curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from emmi_jax.plots.panels import save_figure

_NOT_LOSSES = {"step", "seconds", "learning_rate", "gradient_norm"}


def draw_loss(rows: Sequence[dict[str, Any]], directory: Path, validation: Sequence[dict[str, Any]] = ()) -> Path:
    """Draws the loss and its parts over the steps into `loss.png`, and below them the errors of validations, if any.

    Args:
        rows: Losses of every step.
        directory: Folder of the picture.
        validation: Relative L2 errors on the validation cases.

    Returns:
        Its path.
    """
    step = np.array([row["step"] for row in rows])
    num_panels = 2 if validation else 1
    figure = Figure(figsize=(8, 4.5 * num_panels), layout="constrained")
    axes, *below = np.atleast_1d(figure.subplots(num_panels, sharex=True))
    for panel in below:
        _draw_validation(panel, validation)
    for name in [key for key in (rows[0] if rows else ()) if key not in _NOT_LOSSES]:
        values = np.array([row.get(name, np.nan) for row in rows])
        axes.plot(step, _running_mean(values, max(1, len(values) // 50)), **_style(name, is_mean=name == "loss"))
    axes.set(yscale="log", xlabel="step", ylabel="loss, of normalized fields", title="Training loss (running mean)")
    axes.grid(alpha=0.3, which="both")
    if rows:
        axes.legend()
    return save_figure(figure, directory / "loss.png")


def _draw_validation(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    step = [row["step"] for row in rows]
    for name in [key for key in rows[0] if key not in _NOT_LOSSES]:
        values = [row.get(name, np.nan) for row in rows]
        axes.plot(step, values, marker=".", **_style(name, is_mean=name == "mean"))
    axes.set(yscale="log", xlabel="step", ylabel="relative L2 error", title="Validation")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _style(name: str, *, is_mean: bool) -> dict[str, Any]:
    if is_mean:
        return {"label": "mean of the fields", "color": "black", "linewidth": 2.0}
    return {"label": name, "linewidth": 1.2, "alpha": 0.8}


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over the last `width` values, or as many as there are."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - width, 0)
    return (total[stop] - total[start]) / (stop - start)
