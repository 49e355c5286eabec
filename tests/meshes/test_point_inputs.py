"""Normals of a surface and distances to it, against exact ones and VTK's."""

from pathlib import Path

import numpy as np
import pytest

from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.point_inputs import input_names, surface_distance, surface_normals

CUBE = np.array([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = np.array([CUBE[[s[0], s[i], s[i + 1]]] for s in SIDES for i in (1, 2)])


def to_cube(position: np.ndarray) -> np.ndarray:
    outside = np.linalg.norm(np.maximum(np.abs(position - 0.5) - 0.5, 0), axis=1)
    return np.where(outside > 0, outside, (0.5 - np.abs(position - 0.5)).min(axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_to_a_cube_are_exact_whatever_the_size_of_its_triangles(dtype):
    position = np.random.default_rng(0).uniform(-1, 2, (500, 3)).astype(dtype)
    rng = np.random.default_rng(1)
    weights = rng.dirichlet([1, 1, 1], 40)
    first = TRIANGLES[0]
    # Slivers on one side, so that the nearest centres are not those of the nearest triangles.
    slivers = np.einsum("nw,wc->nc", weights, first)[:, None] + np.zeros((40, 3, 3))
    for triangles in (TRIANGLES, np.concatenate([slivers, TRIANGLES])):
        np.testing.assert_allclose(surface_distance(position, triangles)[:, 0], to_cube(position), atol=1e-6)


def test_normals_of_a_sphere_point_outwards():
    pyvista = pytest.importorskip("pyvista")
    sphere = pyvista.Sphere(theta_resolution=40, phi_resolution=40)
    mesh = Mesh(Path("sphere.vtp"), sphere)
    normal, center = surface_normals(mesh, "cells"), mesh.position("cells")
    assert (normal * center).sum(axis=1).min() > 0.99 * np.linalg.norm(center, axis=1).min()
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="'normal' is computed in the cells of a surface"):
        surface_normals(mesh, "points")


def test_what_the_geometry_takes_are_arrays_of_the_surface():
    names = {"surface": ("part",), "geometry": ("normal", "part"), "volume": ("distance",)}
    assert input_names(names) == {"surface": ("part", "normal"), "volume": ("distance",)}
