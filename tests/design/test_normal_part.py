"""The normal part of a gradient, per area, raw and smoothed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.design import Surface
from emmi_jax.design.normal_part import normal_part
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.vtk import import_pyvista

pyvista = import_pyvista()
SPHERE = Surface.from_mesh(Mesh(Path("sphere.vtp"), pyvista.Icosphere(radius=1.0, nsub=4)))


def gradient_of(density: np.ndarray) -> np.ndarray:
    """The gradient of the integral of a density times the displacement along the normal."""
    out = np.zeros_like(SPHERE.vertices)
    triangles, areas = SPHERE.corners, SPHERE.areas()
    np.add.at(out, triangles, (areas / 3)[:, None, None])
    return out * (density[:, None] * SPHERE.vertices)


def test_the_raw_part_is_the_density_along_the_outward_normal() -> None:
    density = 1.0 + SPHERE.vertices[:, 0]
    part = normal_part(SPHERE, gradient_of(density), length=0.0)
    np.testing.assert_allclose(part.raw, density, atol=1e-3)
    np.testing.assert_array_equal(part.smoothed, part.raw)
    tangential = np.cross(SPHERE.vertices, [0.0, 0.0, 1.0])
    assert np.abs(normal_part(SPHERE, tangential, length=0.0).raw).max() < 0.05 * np.abs(tangential / 0.005).max()


def test_smoothing_keeps_the_integral_and_damps_what_is_short() -> None:
    # On the unit sphere, a spherical harmonic of degree n is an eigenfunction: -Δ y = n (n + 1) y.
    x, _, z = SPHERE.vertices.T
    for degree, harmonic in ((1, z), (2, 3 * x**2 - 1)):
        part = normal_part(SPHERE, gradient_of(harmonic), length=0.5)
        np.testing.assert_allclose(part.smoothed, harmonic / (1 + 0.25 * degree * (degree + 1)), atol=0.01)
    noise = 1 + np.random.default_rng(0).normal(size=len(SPHERE.vertices))
    part = normal_part(SPHERE, gradient_of(noise), length=0.3)
    area = np.linalg.norm(gradient_of(np.ones_like(x)), axis=1)
    assert area @ part.smoothed == pytest.approx(area @ part.raw, rel=1e-4)
    assert part.smoothed.std() < 0.3 * part.raw.std()


def test_corners_that_every_polygon_repeats_move_together() -> None:
    triangles = SPHERE.corners
    apart = replace(
        SPHERE, vertices=SPHERE.vertices[triangles].reshape(-1, 3), corners=np.arange(triangles.size).reshape(-1, 3)
    )
    share = np.bincount(triangles.reshape(-1))[triangles.reshape(-1), None]
    gradient = gradient_of(1.0 + SPHERE.vertices[:, 1])
    expected = normal_part(SPHERE, gradient, length=0.2)
    found = normal_part(apart, gradient[triangles.reshape(-1)] / share, length=0.2)
    np.testing.assert_allclose(found.smoothed, expected.smoothed[triangles.reshape(-1)], atol=1e-5)
    np.testing.assert_allclose(found.raw, expected.raw[triangles.reshape(-1)], rtol=1e-9)


def test_bad_arguments_are_quoted() -> None:
    with pytest.raises(ValueError, match=r"length must be 0 or positive, got -1\.0"):
        normal_part(SPHERE, SPHERE.vertices, length=-1.0)
    with pytest.raises(ValueError, match=r"gradient must have the shape \[\d+, 3\], got \[2, 3\]"):
        normal_part(SPHERE, np.zeros((2, 3)), length=0.0)
