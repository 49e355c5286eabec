"""Draws the figures of the pages, each for light and for dark pages: `python docs/figures/draw.py`.

Lengths are in inches. At the width of a phone an inch is about 75 pixels, so text of 9 points stays readable.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path as MplPath

from emmi_jax import (
    AnchorAttentionConfig,
    CrossAnchorAttention,
    JointAnchorAttention,
    SelfAnchorAttention,
    TokenSpec,
)
from emmi_jax.tokens import token_slices

WIDTH = 4.8
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


class Colors(NamedTuple):
    """The colours of a page; branches keep theirs from figure to figure."""

    page: str
    text: str
    faint: str
    line: str
    box: str
    surface: str
    volume: str
    geometry: str
    accent: str

    def of(self, group: str) -> str:
        """Returns the colour of a group of tokens."""
        return {"surface": self.surface, "volume": self.volume}.get(group.partition("_")[0], self.geometry)


LIGHT = Colors("#ffffff", "#1f2430", "#e9ebf1", "#7a8194", "#f4f5f9", "#3f51b5", "#00897b", "#ef8a17", "#c2185b")
DARK = Colors("none", "#e6e8ef", "#343948", "#9aa1b5", "#2a2f3d", "#8c9eff", "#4db6ac", "#ffb74d", "#f48fb1")


def canvas(height: float, colors: Colors) -> tuple[Figure, Axes]:
    """Returns a figure whose coordinates are inches."""
    figure = Figure(figsize=(WIDTH, height), facecolor=colors.page)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    colors: Colors,
    where: tuple[float, float, float, float],
    text: str,
    color: str | None = None,
    note: str = "",
) -> None:
    """Draws a rounded box (x, y, width, height) with a text, and a note below the text."""
    x, y, width, height = where
    edge = color or colors.line
    style = "round,pad=0,rounding_size=0.07"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc=colors.box, ec=edge, lw=1.4))
    middle = y + height / 2
    if note:
        axes.text(
            x + width / 2, y + height - 0.1, note, color=edge, fontsize=7.5, ha="center", va="bottom", style="italic"
        )
        middle -= 0.09
    axes.text(x + width / 2, middle, text, color=colors.text, fontsize=9, ha="center", va="center", linespacing=1.25)


def arrow(
    axes: Axes,
    colors: Colors,
    start: tuple[float, float],
    end: tuple[float, float],
    *,
    color: str | None = None,
    dashed: bool = False,
) -> None:
    """Draws an arrow."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>,head_length=4,head_width=2.6",
            color=color or colors.line,
            lw=1.4,
            ls=(0, (3, 2)) if dashed else "-",
            shrinkA=0,
            shrinkB=0,
        )
    )


def elbow(axes: Axes, colors: Colors, way: Sequence[tuple[float, float]], *, color: str) -> None:
    """Draws an arrow around corners."""
    axes.plot(*zip(*way[:-1], strict=True), color=color, lw=1.4, solid_joinstyle="round")
    arrow(axes, colors, way[-2], way[-1], color=color)


def remark(axes: Axes, colors: Colors, middle: tuple[float, float], text: str) -> None:
    """Writes a remark beside what is drawn."""
    axes.text(*middle, text, color=colors.line, fontsize=9, ha="center", va="center", style="italic", linespacing=1.3)


def title(
    axes: Axes, colors: Colors, x: float, y: float, text: str, *, color: str | None = None, ha: str = "center"
) -> None:
    """Writes a heading."""
    axes.text(x, y, text, color=color or colors.text, fontsize=10.5, weight="bold", ha=ha, va="center")


def draw_patterns(colors: Colors) -> Figure:
    """Draws who attends to whom, as the layers say it."""
    figure, axes = canvas(5.45, colors)
    specs = [
        TokenSpec(name, size)
        for name, size in (("surface_anchors", 4), ("surface_queries", 5), ("volume_anchors", 4), ("volume_queries", 5))
    ]
    config = AnchorAttentionConfig(dim=4, num_heads=1, branches=("surface", "volume"))
    slices = token_slices(specs)
    groups = [spec.name for spec in specs for _ in range(spec.size or 0)]
    places = [(0.12, 0.1), (2.52, 0.1), (0.12, 2.6), (2.52, 2.6)]
    layers = {"self": SelfAnchorAttention, "cross": CrossAnchorAttention, "joint": JointAnchorAttention}
    for (x, y), (name, layer) in zip(places, layers.items(), strict=False):
        allowed = np.zeros((len(groups), len(groups)), bool)
        for pattern in layer(config).attention_patterns(specs):
            for query in pattern.query_tokens:
                for key in pattern.key_value_tokens:
                    allowed[slices[query], slices[key]] = True
        _draw_mask(axes, colors, x, y, name, allowed, groups, groups)
    _draw_mask(axes, colors, *places[3], "perceiver", np.ones((len(groups), 6), bool), groups, ["geometry"] * 6)
    axes.text(
        4.03,
        3.9,
        "rows attend\nto the columns\nthat are filled",
        color=colors.line,
        fontsize=9,
        ha="center",
        style="italic",
    )
    legend = [
        ("surface anchors", colors.surface, 1.0),
        ("surface queries", colors.surface, 0.4),
        ("volume anchors", colors.volume, 1.0),
        ("volume queries", colors.volume, 0.4),
        ("supernodes", colors.geometry, 1.0),
    ]
    for number, (text, color, alpha) in enumerate(legend):
        x, y = 0.14 + 1.6 * (number // 2), 5.1 + 0.22 * (number % 2)
        axes.add_patch(Rectangle((x, y - 0.06), 0.12, 0.12, color=color, alpha=alpha, lw=0))
        axes.text(x + 0.2, y, text, color=colors.text, fontsize=9, va="center")
    return figure


def _draw_mask(
    axes: Axes,
    colors: Colors,
    x: float,
    y: float,
    name: str,
    allowed: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    cell, strip, gap = 0.105, 0.09, 0.05
    left, top = x + strip + gap, y + 0.3 + strip + gap
    title(axes, colors, left, y + 0.1, name, ha="left")
    squares = [
        (colors.of(key) if allowed[i, j] else colors.faint, 1.0, left + j * cell, top + i * cell, cell)
        for i in range(len(rows))
        for j, key in enumerate(columns)
    ]
    squares += [(colors.of(g), strength(g), x, top + i * cell, strip) for i, g in enumerate(rows)]
    squares += [(colors.of(g), strength(g), left + j * cell, y + 0.3, strip) for j, g in enumerate(columns)]
    paths: dict[tuple[str, float], list[MplPath]] = {}
    for color, alpha, at, down, width in squares:
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * (width - 0.012, cell - 0.012) + (at, down)
        paths.setdefault((color, alpha), []).append(MplPath(corners, closed=True))
    for (color, alpha), parts in paths.items():
        axes.add_patch(PathPatch(MplPath.make_compound_path(*parts), color=color, alpha=alpha, lw=0))


def strength(group: str) -> float:
    """Returns how opaque the colour of a group is."""
    return 0.4 if "queries" in group else 1.0


def draw_model(colors: Colors) -> Figure:
    """Draws the model from inputs to fields."""
    figure, axes = canvas(6.3, colors)
    lanes = {"geometry": 0.1, "surface": 1.72, "volume": 3.3}
    width = 1.4
    for name, x in lanes.items():
        title(axes, colors, x + width / 2, 0.15, name, color=colors.of(name))
    middle = {name: x + width / 2 for name, x in lanes.items()}
    for name, rows in {
        "geometry": [(0.35, "points of the body"), (1.05, "supernode pooling"), (1.75, "geometry block")],
        "surface": [(0.35, "anchors, queries"), (1.05, "sines, MLP")],
        "volume": [(0.35, "anchors, queries"), (1.05, "sines, MLP")],
    }.items():
        for y, text in rows:
            box(axes, colors, (lanes[name], y, width, 0.42), text, colors.of(name))
        for (y, _), (below, _) in itertools.pairwise(rows):
            arrow(axes, colors, (middle[name], y + 0.42), (middle[name], below))
    left, right = lanes["surface"], lanes["volume"] + width
    blocks = ["perceiver", "self", "cross", "self", "cross", "self"]
    for number, text in enumerate(blocks):
        y = 1.78 + 0.4 * number
        box(axes, colors, (left, y, right - left, 0.34), text, colors.geometry if text == "perceiver" else None)
    for name in ("surface", "volume"):
        arrow(axes, colors, (middle[name], 1.47), (middle[name], 1.78))
    arrow(axes, colors, (lanes["geometry"] + width, 1.96), (left, 1.96), color=colors.geometry)
    remark(axes, colors, (lanes["geometry"] + width / 2, 3.1), "physics blocks:\nthe branches share\ntheir weights")
    for name, fields in {"surface": "pressure,\nwall shear", "volume": "velocity,\npressure"}.items():
        arrow(axes, colors, (middle[name], 4.12), (middle[name], 4.42))
        box(axes, colors, (lanes[name], 4.42, width, 0.42), "6 decoder blocks", colors.of(name))
        arrow(axes, colors, (middle[name], 4.84), (middle[name], 5.1))
        box(axes, colors, (lanes[name], 5.1, width, 0.34), "linear", colors.of(name))
        arrow(axes, colors, (middle[name], 5.44), (middle[name], 5.72))
        axes.text(middle[name], 5.97, fields, color=colors.text, fontsize=9, ha="center", va="center", linespacing=1.3)
    remark(axes, colors, (lanes["geometry"] + width / 2, 4.63), "attention within\nthe branch")
    return figure


def draw_walk(colors: Colors) -> Figure:
    """Draws the three ways of a case through the package."""
    figure, axes = canvas(5.35, colors)
    columns = {
        "training": (
            colors.surface,
            [
                ("meshes, tensors\nor a store", "data"),
                ("draw points,\nscale them", "data"),
                ("a step on\nthe devices", "training"),
                ("a run:\nweights, scales", "runs"),
            ],
        ),
        "prediction": (
            colors.volume,
            [
                ("a mesh\nor points", "meshes"),
                ("draw anchors,\nscale, encode", "inference"),
                ("stream queries\nin chunks", "inference"),
                ("fields, forces,\npictures", "meshes, plots"),
            ],
        ),
        "design": (
            colors.geometry,
            [
                ("a surface", "design"),
                ("morph it", "design"),
                ("encode\nand stream", "inference"),
                ("drag, and its\ngradient", "design"),
            ],
        ),
    }
    width, height, step = 1.36, 0.72, 1.12
    for number, (name, (color, stations)) in enumerate(columns.items()):
        x = 0.1 + 1.6 * number
        title(axes, colors, x + width / 2, 0.15, name, color=color)
        for row, (text, room) in enumerate(stations):
            y = 0.38 + step * row
            box(axes, colors, (x, y, width, height), text, color, room)
            if row:
                arrow(axes, colors, (x + width / 2, y - step + height), (x + width / 2, y))
    # What training leaves is what the others encode with.
    row = [0.38 + step * number + height / 2 for number in range(4)]
    down = row[3] + height / 2 + 0.16
    for way in (
        [(1.46, row[3]), (1.58, row[3]), (1.58, row[1]), (1.7, row[1])],
        [(0.78, row[3] + height / 2), (0.78, down), (3.18, down), (3.18, row[2]), (3.3, row[2])],
    ):
        elbow(axes, colors, way, color=colors.accent)
    text = "Surrogate: all that a run needs to predict"
    axes.text(WIDTH / 2, down + 0.18, text, color=colors.accent, fontsize=9, ha="center", va="center")
    # The gradient goes back the same way.
    right = 0.1 + 3.2 + width
    for row in (2, 1):
        y = 0.38 + step * row
        arrow(axes, colors, (right - 0.2, y + step), (right - 0.2, y + height), color=colors.accent, dashed=True)
    return figure


def draw_cache(colors: Colors) -> Figure:
    """Draws what runs once for a case, and what for each chunk."""
    figure, axes = canvas(4.35, colors)
    rng = np.random.default_rng(3)
    title(axes, colors, 0.1, 0.15, "once per case", ha="left")
    kinds = [colors.surface, colors.volume, colors.geometry]
    for color in kinds:
        axes.scatter(rng.uniform(0.15, 1.2, 11), rng.uniform(0.42, 1.2, 11), s=16, color=color, lw=0)
    axes.text(0.68, 1.42, "anchors, geometry", color=colors.text, fontsize=9, ha="center")
    box(axes, colors, (1.85, 0.45, 1.1, 0.75), "AB-UPT", None, "encode")
    arrow(axes, colors, (1.32, 0.82), (1.82, 0.82))
    arrow(axes, colors, (2.95, 0.82), (3.42, 0.82))
    for row in range(5):
        for column, color in enumerate(kinds):
            at = (3.55 + 0.36 * column, 0.42 + 0.17 * row)
            axes.add_patch(Rectangle(at, 0.32, 0.12, color=color, alpha=0.35 + 0.13 * row, lw=0))
    axes.text(4.08, 1.42, "cache: keys, values", color=colors.text, fontsize=9, ha="center")
    elbow(axes, colors, [(4.08, 1.52), (4.08, 2.2), (2.4, 2.2), (2.4, 2.72)], color=colors.accent)
    axes.text(3.24, 2.1, "read by every chunk", color=colors.accent, fontsize=9, ha="center")
    title(axes, colors, 0.1, 2.3, "once per chunk", ha="left")
    for number in range(4):
        left = 0.12 + 0.09 * number
        top = 3.0 - 0.12 * number
        style = "round,pad=0,rounding_size=0.05"
        patch = FancyBboxPatch((left, top), 0.85, 0.6, boxstyle=style, fc=colors.box, ec=colors.volume, lw=1.2)
        patch.set_zorder(3 - number * 0.1)
        axes.add_patch(patch)
    axes.scatter(
        rng.uniform(0.2, 0.9, 22), rng.uniform(3.08, 3.52, 22), s=7, color=colors.volume, alpha=0.6, lw=0, zorder=4
    )
    axes.text(0.68, 3.82, "queries", color=colors.text, fontsize=9, ha="center")
    box(axes, colors, (1.85, 2.75, 1.1, 0.75), "AB-UPT", None, "same weights")
    arrow(axes, colors, (1.32, 3.12), (1.82, 3.12))
    arrow(axes, colors, (2.95, 3.12), (3.42, 3.12))
    values = np.sin(np.linspace(0, 3, 24))[None] * np.cos(np.linspace(-1, 1, 14))[:, None]
    axes.imshow(values, extent=(3.55, 4.6, 3.5, 2.75), cmap="viridis", aspect="auto", interpolation="bicubic")
    axes.set(xlim=(0, WIDTH), ylim=(4.35, 0))
    axes.text(4.08, 3.82, "fields", color=colors.text, fontsize=9, ha="center")
    axes.text(
        WIDTH / 2,
        4.14,
        "time grows with the queries, memory does not",
        color=colors.line,
        fontsize=9,
        ha="center",
        style="italic",
    )
    return figure


def draw_speed(colors: Colors) -> Figure:
    """Draws PyTorch's time over ours, as the benchmarks have measured it."""
    figure = Figure(figsize=(WIDTH, 5.6), facecolor=colors.page)
    axes = figure.add_axes((0.36, 0.08, 0.6, 0.85), facecolor="none")
    y, ticks = 0.0, []
    for part, rows in _measured().items():
        axes.text(
            -0.58,
            y,
            part,
            transform=axes.get_yaxis_transform(),
            color=colors.text,
            fontsize=9.5,
            weight="bold",
            va="center",
        )
        for name, row in rows:
            y += 1
            ticks.append((y, name))
            axes.plot([1, row["ratio_torch"]], [y, y], color=colors.faint, lw=5, solid_capstyle="round", zorder=1)
            axes.scatter(row["ratio_torch"], y, s=42, color=colors.surface, zorder=3, label="eager PyTorch")
            if "ratio_compiled_torch" in row:
                ratio = row["ratio_compiled_torch"]
                axes.scatter(ratio, y, s=42, fc="none", ec=colors.accent, lw=1.5, zorder=4, label="compiled PyTorch")
        y += 1.6
    axes.axvline(1, color=colors.line, lw=1.2, zorder=2)
    axes.set(ylim=(y - 1, -0.8), xlim=(0.8, 2.0), yticks=[tick for tick, _ in ticks])
    axes.set_yticklabels([name for _, name in ticks], fontsize=9, color=colors.text)
    axes.set_xlabel("time of PyTorch over ours", fontsize=9, color=colors.text)
    axes.tick_params(colors=colors.line, labelcolor=colors.text, labelsize=9, length=0)
    axes.grid(axis="x", color=colors.faint, lw=0.8, zorder=0)
    axes.spines[:].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named, loc="upper right", ncols=2, fontsize=9, frameon=False, labelcolor=colors.text)
    return figure


def _measured() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Returns rows of the results, by machine and name."""

    def rows(file: str) -> list[dict[str, Any]]:
        return json.loads((RESULTS / f"{file}.json").read_text())["rows"]

    short = {"forward+backward": "+ backward", "both": "+ backward"}
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for machine, kernels, layers, model in (
        ("H100, bfloat16", rows("attention_kernels_h100")[:2], rows("attention_h100"), rows("ab_upt_h100")),
        (
            "two processor cores, float32",
            [],
            [row for row in rows("attention") if (row["tokens"], row["dtype"]) == (2048, "float32")],
            rows("ab_upt"),
        ),
    ):
        found[machine] = [
            *((f"kernel, {short.get(row['pass'], row['pass'])}", row) for row in kernels),
            *((f"{row['attention']}, {short.get(row['pass'], row['pass'])}", row) for row in layers),
            *(("training step", row) for row in model),
        ]
    return found


FIGURES: dict[str, Callable[[Colors], Figure]] = {
    "patterns": draw_patterns,
    "model": draw_model,
    "walk": draw_walk,
    "cache": draw_cache,
    "speed": draw_speed,
}


def draw_all(folder: Path) -> list[Path]:
    """Draws every figure into a folder and returns the files."""
    paths = []
    # Paths instead of text look the same everywhere; the salt makes the file the same every time.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "emmi_jax", "font.family": "DejaVu Sans"}):
        for name, draw in FIGURES.items():
            for suffix, colors in (("", LIGHT), ("_dark", DARK)):
                paths.append(folder / f"{name}{suffix}.svg")
                draw(colors).savefig(paths[-1], metadata={"Date": None})
    return paths


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
