from pathlib import Path

import numpy as np
import pytest

from emmi_jax.data.potential_flow import random_ellipsoids
from emmi_jax.plots.ellipsoid import draw_slice, draw_surface, slice_grid, surface_mesh
from emmi_jax.plots.loss import draw_loss
from emmi_jax.plots.parity import Coefficient, draw_coefficients, draw_parity
from emmi_jax.plots.point_cloud import draw_fields, near_middle_plane

BODY = random_ellipsoids(1, seed=3)[0]


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_the_surface_of_an_ellipsoid_is_meshed_and_drawn(tmp_path):
    mesh = surface_mesh(BODY)
    level = np.linalg.norm(mesh.position @ BODY.rotation / BODY.semi_axes, axis=1)
    np.testing.assert_allclose(level, 1.0, rtol=1e-12)
    pressure = BODY.pressure_coefficient(mesh.position)
    assert is_picture(draw_surface(tmp_path / "a.png", "title", mesh, pressure + 0.1, pressure))


def test_the_plane_around_an_ellipsoid_is_drawn_where_the_flow_is_known(tmp_path):
    grid = slice_grid(BODY)
    velocity = BODY.velocity(grid.position)
    assert len(velocity) == np.count_nonzero(grid.in_shell)
    assert grid.level[grid.in_shell].min() >= 1
    assert is_picture(draw_slice(tmp_path / "a.png", grid, velocity * 1.1, velocity))


@pytest.mark.parametrize("channels", [1, 3])
def test_fields_are_drawn_at_the_points_nearest_to_the_middle_plane(channels, tmp_path):
    position = np.random.default_rng(0).normal(size=(6000, 3))
    near = near_middle_plane(position)
    distance = np.abs(position[:, 1] - np.median(position[:, 1]))
    assert distance[near].max() < np.delete(distance, near).min()
    values = np.ones((len(near), channels)) * position[near, :1]
    assert is_picture(draw_fields(tmp_path / "a.png", "u", position[near], values, values + 1))


NAMES = ["$x$", "$\\frac{$", "$_$ ^", "a\\b", "x[/x]", "压力", "a\x1b[31m\0b", "n" * 3000]


@pytest.mark.parametrize("name", NAMES)
def test_names_in_pictures_are_no_formulas(name, tmp_path):
    rows = [{"step": step, "loss": 1 / step, name: 1 / step} for step in (1, 2)]
    assert is_picture(draw_loss(rows, tmp_path, [row | {"mean": 1.0} for row in rows]))
    values = np.random.default_rng(0).normal(size=(20, 3))
    assert is_picture(draw_fields(tmp_path / "a.png", name, values, values, values))
    assert is_picture(draw_parity(tmp_path / "a.png", f"{name}, ${name}", name, values, values))
    known = {name: values[:, 0]}
    assert is_picture(draw_coefficients(tmp_path / "a.png", [Coefficient(name, values, known)]))


def test_the_loss_is_drawn(tmp_path):
    rows = [{"step": step, "seconds": 1.0, "loss": 1 / step, "volume/p": 1 / step} for step in range(1, 9)]
    assert is_picture(draw_loss(rows, tmp_path))
    validation = [{"step": step, "volume/p": 1 / step, "mean": 1 / step, "seconds": 1.0} for step in (4, 8)]
    assert is_picture(draw_loss(rows, tmp_path, validation))
