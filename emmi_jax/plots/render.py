"""Off-screen rendering of triangles by pyvista: which one shows at each pixel, and how bright it is."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.vtk import import_pyvista, vtk_messages
from emmi_jax.plots.rasterize import Window

MAX_TRIANGLES = 2**24 - 1
"""As many as three bytes of colour can count, besides the background."""

_AMBIENT = 0.65
_PROBE_SECONDS = 60
_PROBE = "import sys; from emmi_jax.plots import render; sys.exit(not render._renders_exactly())"


@cache
def can_render() -> bool:
    """Whether pyvista renders off-screen on this machine; tested once, in a separate process.

    Without a display, EGL or OSMesa, VTK may kill the process, and a driver may hang or alter colours.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def render_triangles(
    points: NDArray[np.floating[Any]], corners: NDArray[np.int64], window: Window, *, num_pixels: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Finds the triangle that a viewer sees at each pixel, in parallel projection, and how bright it is.

    The light comes from the viewer. Each triangle has its own brightness: normals of points would require a consistent
    orientation, which the triangles of many files lack.

    Args:
        points: Points [P, 3] in the viewer's frame: to the right, upwards, towards the viewer.
        corners: Indices [T, 3] of the corners of at most `MAX_TRIANGLES` triangles.
        window: What the picture shows.
        num_pixels: Pixels along its longer side.

    Returns:
        Indices of triangles [height, width], the bottom row first, -1 where there is none; and the brightness there,
        1 where the surface faces the viewer.
    """
    pyvista = import_pyvista()
    # Graphics are computed in float32, so the picture's own extent must set the scale.
    middle = [(window.left + window.right) / 2, (window.bottom + window.top) / 2, float(points[:, 2].max())]
    scaled = ((points - middle) / window.height).astype(np.float32)
    mesh = pyvista.PolyData.from_regular_faces(scaled, corners)
    number = np.arange(1, len(corners) + 1)
    mesh.cell_data["number"] = np.stack([number >> 16, number >> 8 & 255, number & 255], axis=1).astype(np.uint8)
    with vtk_messages():
        numbers = _picture(mesh, window, num_pixels, scalars="number", rgb=True, lighting=False)
        mesh.clear_data()
        light = _picture(mesh, window, num_pixels, color="white", ambient=_AMBIENT, diffuse=1 - _AMBIENT)
    return numbers @ np.array([65536, 256, 1]) - 1, light[..., 0] / 255


def _picture(mesh: Any, window: Window, num_pixels: int, **look: Any) -> NDArray[np.int64]:
    """Colours [height, width, 3] of a mesh below z = 0, in a picture one unit high around the origin."""
    pyvista = import_pyvista()
    rows, columns = window.num_pixels(num_pixels)
    plotter = pyvista.Plotter(off_screen=True, window_size=(columns, rows), lighting="none")
    try:
        # A blend of two numbers would be the number of a third triangle.
        plotter.render_window.SetMultiSamples(0)
        plotter.add_light(pyvista.Light(light_type="headlight"))
        plotter.set_background("black")
        plotter.add_mesh(mesh, show_scalar_bar=False, **look)
        camera = plotter.camera
        camera.position, camera.focal_point, camera.up = (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)
        camera.parallel_projection, camera.parallel_scale = True, 0.5
        camera.clipping_range = (0.5, 1.5 - mesh.bounds[4])
        return np.asarray(plotter.screenshot(return_img=True), np.int64)[::-1, :, :3]
    finally:
        plotter.close()


def _renders_exactly() -> bool:
    """Whether a triangle in front of many others is rendered exactly."""
    points = np.array([[-1, -1, -1], [7, -1, -1], [-1, 7, -1], [0, 0, 0], [2, 0, 0], [0, 2, 0]], np.float64)
    corners = np.repeat([[0, 1, 2], [3, 4, 5]], [70_000, 1], axis=0)
    index, light = render_triangles(points, corners, Window(-1.0, 2.0, -1.0, 1.0), num_pixels=30)
    row, column = np.mgrid[:20, :30]
    in_front = (row >= 10) & (column >= 10) & (row + column < 39)
    on_the_edge = row + column == 39
    right = np.where(in_front, index == 70_000, (index >= 0) & (index < 70_000)) | on_the_edge
    return bool(index.shape == (20, 30) and right.all() and light.min() > 0.99)
