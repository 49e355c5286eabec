"""A page of values on triangles or points, to turn and to choose from: one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.files.atomic import write_atomically
from emmi_jax.points import Array

_MIDDLE = (0.5, 99.5)
_SIDE = 2.0
_OPEN = 0.05
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ margin: 0; height: 100vh; display: flex; flex-direction: column; font: 15px/1.4 system-ui, sans-serif; }}
header {{ padding: .6em 1em; }} h1 {{ font-size: 1.15em; margin: 0 1em .2em 0; display: inline; }}
p {{ margin: .2em 0 0; color: #555; }} #scene {{ flex: 1; min-height: 0; }}
</style></head><body>
<header><h1>{title}</h1><label>Colours: <select id="choice"></select></label>{notes}</header>
<div id="scene"></div>
<script>{plotly}</script>
<script>
const page = {page};
const types = {{ f: Float32Array, i: Uint32Array }};
function decode([type, text]) {{
  return new types[type](Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}}
function column(packed, number) {{ return decode(packed).filter((_, i) => i % 3 === number); }}
function colours(one) {{
  return {{ values: decode(one.values), low: one.low, high: one.high, scale: one.scale, label: one.label }};
}}
function trace(shape) {{
  const [x, y, z] = [0, 1, 2].map((n) => column(shape.points, n));
  if (shape.corners === null) return {{ type: "scatter3d", mode: "markers", x, y, z }};
  const [i, j, k] = [0, 1, 2].map((n) => column(shape.corners, n));
  const light = shape.is_lit ? [0.85, 0.15] : [1, 0];
  const lighting = {{ ambient: light[0], diffuse: light[1], specular: 0 }};
  return {{ type: "mesh3d", x, y, z, i, j, k, flatshading: true, lighting, hoverinfo: "skip" }};
}}
function coloured(shape, one) {{
  const c = colours(one), bar = {{ title: {{ text: c.label, side: "right" }}, len: 0.8 }};
  const common = {{ cmin: c.low, cmax: c.high, colorscale: c.scale, colorbar: bar, showscale: true }};
  if (shape.corners === null) return {{ ...trace(shape), marker: {{ size: 2, color: c.values, ...common }} }};
  return {{ ...trace(shape), intensity: c.values, intensitymode: "cell", ...common }};
}}
const select = document.getElementById("choice");
for (const one of page.quantities) select.add(new Option(one.name));
const axis = (name) => ({{ title: {{ text: `${{name}} (mesh unit)` }} }});
const layout = {{
  margin: {{ l: 0, r: 0, t: 0, b: 0 }}, uirevision: "kept",
  scene: {{
    aspectmode: "data", xaxis: axis("x"), yaxis: axis("y"), zaxis: axis("z"),
    camera: {{ eye: {{ x: -1.7, y: page.eye_y, z: 1.1 }} }},
  }},
}};
const body = page.body === null ? [] : [{{ ...trace(page.body), color: "#bbbbbb" }}];
function show() {{
  const traces = [coloured(page.shape, page.quantities[select.selectedIndex]), ...body];
  return Plotly.react("scene", traces, layout, {{ displaylogo: false, responsive: true }});
}}
select.onchange = show;
show().then(() => document.body.dataset.ready = "yes");
</script></body></html>
"""


class Shape(NamedTuple):
    """Points [P, 3], and corners [T, 3] of triangles among them; None to show the points themselves.

    Light shows the form of a surface, and would only darken a plane.
    """

    points: Array
    corners: NDArray[np.int64] | None
    is_lit: bool = True


class Choice(NamedTuple):
    """A quantity to choose: name, values [T] of the triangles (or [P] of the points), whether its sign matters."""

    name: str
    values: Array
    is_signed: bool = False


def write_page(
    path: Path,
    title: str,
    shape: Shape,
    choices: Sequence[Choice],
    *,
    notes: Sequence[str] = (),
    body: Shape | None = None,
) -> Path:
    """Writes a page, atomically.

    Args:
        path: The HTML file.
        title: Title of the page.
        shape: What is shown.
        choices: The quantities to choose from; the first is shown at first. Colours span the middle 99 % of the values,
            and are blue, white and red around zero where the sign matters.
        notes: Sentences above the scene.
        body: Triangles that are shown in grey.

    Returns:
        `path`.

    Raises:
        ImportError: plotly is not installed.
    """
    plotly = importlib.import_module("plotly.offline").get_plotlyjs()
    page = {
        "shape": _packed_shape(shape),
        "body": None if body is None else _packed_shape(body),
        "quantities": [_packed_choice(choice) for choice in choices],
        "eye_y": _eye_y(shape),
    }
    write_atomically(
        path,
        _PAGE.format(
            title=html.escape(title),
            notes="".join(f"<p>{html.escape(note)}</p>" for note in notes),
            plotly=plotly,
            page=json.dumps(page).replace("<", "\\u003c"),
        ),
    )
    return path


def _eye_y(shape: Shape) -> float:
    """Returns the side, -y or +y, to look from: that where half a body is closed which is open at its middle plane."""
    if shape.corners is None or not shape.is_lit or not len(shape.corners):
        return -_SIDE
    corners = np.asarray(shape.points, np.float64)[shape.corners]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    y = corners[:, :, 1]
    middle, width = (y.min() + y.max()) / 2, np.ptp(y)
    off_middle = (area * (y.mean(axis=1) - middle)).sum() / max(area.sum(), 1e-30)
    return _SIDE if off_middle > _OPEN * width else -_SIDE


def _packed_shape(shape: Shape) -> Mapping[str, Any]:
    corners = None if shape.corners is None else _packed(shape.corners, np.uint32)
    return {"points": _packed(shape.points, np.float32), "corners": corners, "is_lit": shape.is_lit}


def _packed_choice(choice: Choice) -> Mapping[str, Any]:
    low, high = (float(x) for x in np.percentile(choice.values, _MIDDLE))
    if choice.is_signed:
        high = max(abs(low), abs(high), 1e-12)
        low = -high
    return {
        "name": choice.name,
        "label": choice.name,
        "values": _packed(choice.values, np.float32),
        "low": low,
        "high": high,
        "scale": [[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b2182b"]] if choice.is_signed else "Viridis",
    }


def _packed(values: ArrayLike, dtype: Any) -> tuple[str, str]:
    """Returns little-endian numbers as the page decodes them."""
    array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return np.dtype(dtype).kind.replace("u", "i"), base64.b64encode(array.tobytes()).decode()
