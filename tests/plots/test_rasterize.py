import numpy as np
import pytest

from emmi_jax.plots.rasterize import Window, rasterize
from tests.data.case_folders import AXES, surface_dataset


def square(side: float, depth: float) -> np.ndarray:
    """Two triangles around the origin."""
    a, b, c, d = ([x * side / 2, y * side / 2, depth] for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1)))
    return np.array([[a, b, c], [a, c, d]])


def test_the_nearest_triangle_shows_whatever_the_order():
    small, large = square(1.0, 0.5), square(2.0, 0.0)
    for order in ((small, large), (large, small)):
        triangles = np.concatenate(order)
        shown = rasterize(triangles, Window(-2, 2, -2, 2), num_pixels=8)
        depth = np.where(shown >= 0, triangles[shown, 0, 2], -1.0)
        expected = np.full((8, 8), -1.0)
        expected[2:6, 2:6], expected[3:5, 3:5] = 0.0, 0.5
        np.testing.assert_array_equal(depth, expected)


def test_rows_go_upwards_and_columns_to_the_right():
    shown = rasterize(square(1.0, 0.0) + np.array([2.5, 0.5, 0.0]), Window(0, 4, 0, 2), num_pixels=4)
    np.testing.assert_array_equal(shown >= 0, [[False, False, True, False], [False] * 4])


def test_a_crossing_shows_each_triangle_where_it_is_nearer():
    tilted = square(4.0, 0.0)
    tilted[:, :, 2] = tilted[:, :, 0]
    shown = rasterize(np.concatenate([square(4.0, 0.1), tilted]), Window(-2, 2, -2, 2), num_pixels=40)
    np.testing.assert_array_equal((shown >= 2).all(axis=0), np.arange(40) >= 21)
    assert ((shown >= 2).any(axis=0) == (shown >= 2).all(axis=0)).all()


@pytest.mark.parametrize("resolution", [8, 300])
def test_a_closed_surface_has_no_holes_and_the_size_of_its_outline(resolution):
    dataset = surface_dataset(resolution)
    corners = np.asarray(dataset.points)[dataset.regular_faces]
    shown = rasterize(corners, Window(-1.1, 1.1, -1.1, 1.1), num_pixels=200)
    outline = np.pi * AXES[0] * AXES[1]
    assert np.count_nonzero(shown >= 0) * (2.2 / 200) ** 2 == pytest.approx(
        outline, rel=0.2 if resolution < 10 else 5e-3
    )
    rows = shown[(shown >= 0).any(axis=1)] >= 0
    # Each row is one piece.
    assert (np.abs(np.diff(rows.astype(int), axis=1)).sum(axis=1) == 2).all()
    assert (corners[shown[shown >= 0]].mean(axis=1)[:, 2] > -0.1).all()


def test_triangles_far_larger_than_the_window_or_without_area_do_no_harm():
    flat = np.zeros((1, 3, 3))
    shown = rasterize(np.concatenate([flat, square(1e9, -1.0)]), Window(-1, 1, -0.5, 0.5), num_pixels=10)
    assert shown.shape == (5, 10)
    assert set(np.unique(shown)) <= {1, 2}
    assert (rasterize(flat, Window(-1, 1, -1, 1), num_pixels=3) == -1).all()
    assert (rasterize(np.zeros((0, 3, 3)), Window(-1, 1, -1, 1), num_pixels=3) == -1).all()
