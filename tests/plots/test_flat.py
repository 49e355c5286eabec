"""What is flat is drawn in its own plane."""

from pathlib import Path

import numpy as np
import pytest

from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.plots.meshes import MeshFields, draw_mesh_fields, viewpoints
from emmi_jax.plots.point_cloud import draw_fields, near_middle_plane
from emmi_jax.points import flat_axis

RNG = np.random.default_rng(0)


def cloud(axis: int) -> np.ndarray:
    position = RNG.uniform(-1, 1, size=(5000, 3))
    position[:, axis] = 0.5
    return position


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    head = path.read_bytes()[16:24]
    return int.from_bytes(head[:4]), int.from_bytes(head[4:])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flat_points_are_seen_along_the_axis_in_which_they_are_flat(axis, tmp_path):
    position = cloud(axis)
    assert flat_axis(position) == axis
    assert len(viewpoints(position, ())) == 1
    near = near_middle_plane(position)
    values = RNG.normal(size=(len(near), 1))
    width, height = size(draw_fields(tmp_path / "a.png", "p", position[near], values, values))
    assert height > 0.2 * width


def test_a_box_and_a_line_are_not_flat():
    assert flat_axis(RNG.uniform(size=(100, 3)) * [4.6, 2.0, 1.4]) is None
    assert viewpoints(RNG.uniform(size=(100, 3)), ()) == ()


def test_points_on_one_plane_across_the_view_need_no_warning(tmp_path):
    position = np.zeros((50, 3))
    position[:, 0] = np.arange(50)
    values = np.arange(50.0)[:, None]
    draw_fields(tmp_path / "a.png", "p", position, values, values)


@pytest.mark.parametrize("kind", ["line", "quads"])
def test_flat_meshes_are_drawn(kind, tmp_path):
    pyvista = import_pyvista()
    if kind == "line":
        angle = np.linspace(0, 2 * np.pi, 41)[:-1]
        dataset = pyvista.PolyData()
        dataset.points = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
        dataset.lines = np.stack([np.full(40, 2), np.arange(40), (np.arange(40) + 1) % 40], axis=1).ravel()
    else:
        dataset = pyvista.Plane(i_resolution=6, j_resolution=6)
    position = np.asarray(dataset.points)
    fields = MeshFields("surface", dataset, "points", position, {"p": position[:, :1]}, {})
    (path,) = draw_mesh_fields(fields, tmp_path, geometry=position)
    width, height = size(path)
    assert height > 0.3 * width
