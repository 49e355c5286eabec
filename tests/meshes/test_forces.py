import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.potential_flow import Ellipsoid
from emmi_jax.meshes.forces import force_coefficients, integrate_forces, pressure_notes
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.surfaces import SurfaceElements, surface_elements
from emmi_jax.meshes.vtk import import_pyvista

pyvista = import_pyvista()
RHO, GRAVITY = 1000.0, 9.81


def box() -> Any:
    return pyvista.Box(bounds=(1, 3, -1, 2, 10, 14), level=3)


def sphere(resolution: int = 60) -> Any:
    return pyvista.Sphere(
        radius=2.0, center=(5, -3, 8), theta_resolution=resolution, phi_resolution=resolution
    ).compute_normals(auto_orient_normals=True)


def elements(dataset: Any) -> tuple[SurfaceElements, np.ndarray]:
    mesh = Mesh(Path("body.vtp"), dataset)
    return surface_elements(mesh), np.asarray(mesh.position("cells"), np.float64)


@pytest.mark.parametrize("make", [box, sphere])
def test_hydrostatic_pressure_lifts_a_closed_body_by_the_weight_it_displaces(make):
    surface, centre = elements(make())
    force = integrate_forces(surface.normal, surface.area, -RHO * GRAVITY * centre[:, 2])
    # At the centres of flat cells a linear pressure is integrated exactly; VTK's points are float32.
    buoyancy = RHO * GRAVITY * make().volume
    np.testing.assert_allclose(force, [0, 0, buoyancy], rtol=1e-5, atol=1e-5 * buoyancy)


def test_the_buoyancy_of_a_sphere_approaches_the_closed_form():
    exact = RHO * GRAVITY * 4 / 3 * math.pi * 2.0**3
    errors = []
    for resolution in (20, 40, 80):
        surface, centre = elements(sphere(resolution))
        force = integrate_forces(surface.normal, surface.area, -RHO * GRAVITY * centre[:, 2])
        errors.append(abs(force[2] / exact - 1))
    assert errors[2] < 0.003
    assert errors[0] / errors[1] > 3.5
    assert errors[1] / errors[2] > 3.5


@pytest.mark.parametrize("make", [box, sphere])
def test_constant_pressure_on_a_closed_body_gives_no_force(make):
    surface, centre = elements(make())
    force = integrate_forces(surface.normal, surface.area, np.full(len(centre), 1e5))
    assert np.abs(force).max() < 1e-6 * 1e5 * surface.area.sum()


def test_pressure_that_falls_along_x_pushes_along_x():
    surface, centre = elements(sphere())
    force = integrate_forces(surface.normal, surface.area, 7.0 - 3.0 * centre[:, :1])
    np.testing.assert_allclose(force, [3.0 * sphere().volume, 0, 0], rtol=1e-5, atol=1e-3)


def test_uniform_shear_on_a_plate_is_shear_times_area():
    plate = Mesh(Path("plate.vtp"), pyvista.Plane(i_size=2.0, j_size=3.0))
    surface = surface_elements(plate, require_closed=False)
    num = len(surface.area)
    force = integrate_forces(surface.normal, surface.area, np.zeros(num), np.tile([0.5, -0.25, 0.0], (num, 1)))
    np.testing.assert_allclose(force, [3.0, -1.5, 0.0], rtol=1e-6, atol=1e-12)


def test_pressure_on_one_side_of_a_plate_pushes_against_its_normal():
    plate = Mesh(Path("plate.vtp"), pyvista.Plane(direction=(0, 0, 1)))
    surface = surface_elements(plate, require_closed=False)
    force = integrate_forces(surface.normal, surface.area, np.full(100, 12.0), reference_pressure=2.0)
    np.testing.assert_allclose(force, [0, 0, -10.0], rtol=1e-6, atol=1e-6)


def test_an_ideal_fluid_does_not_drag_an_ellipsoid():
    axes = np.array([1.0, 0.5, 0.7])
    dataset = pyvista.Sphere(radius=1.0, theta_resolution=80, phi_resolution=80)
    dataset.points = np.asarray(dataset.points, np.float64) * axes
    surface, centre = elements(dataset)
    body = Ellipsoid(semi_axes=axes, rotation=np.eye(3))
    on_surface = centre / np.linalg.norm(centre / axes, axis=1, keepdims=True)
    force = integrate_forces(surface.normal, surface.area, body.pressure_coefficient(on_surface))
    assert np.abs(force).max() < 1e-3 * math.pi * axes[1] * axes[2]


def test_coefficients_divide_by_dynamic_pressure_and_area():
    given = force_coefficients([30.0, 4.0, -6.0], area=2.0, density=1.2, speed=5.0)
    assert given == pytest.approx({"cd": 30 / 30, "cl": -6 / 30})
    assert force_coefficients([30.0, 4.0, -6.0], area=2.0, dynamic_pressure=15.0) == pytest.approx(given)


def test_directions_are_normalised():
    turned = force_coefficients(
        [3.0, 4.0, 0.0], area=1.0, dynamic_pressure=1.0, drag_direction=(0, 10, 0), lift_direction=(3, 4, 0)
    )
    assert turned == pytest.approx({"cd": 4.0, "cl": 5.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either dynamic_pressure or both density and speed"),
        ({"density": 1.0}, "density=1.0, speed=None"),
        ({"density": 1.0, "speed": 1.0, "dynamic_pressure": 1.0}, "either dynamic_pressure or both"),
        ({"speed": 1.0, "dynamic_pressure": 1.0}, "either dynamic_pressure or both"),
        ({"dynamic_pressure": 0.0}, "dynamic pressure must be positive, got 0.0"),
        ({"dynamic_pressure": 1.0, "area": -1.0}, "area must be positive, got -1.0"),
        ({"dynamic_pressure": 1.0, "drag_direction": (0, 0, 0)}, "drag_direction is zero"),
        ({"dynamic_pressure": 1.0, "lift_direction": (0, 1)}, r"lift_direction is \[0.0, 1.0\], expected 3"),
    ],
)
def test_unusable_reference_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        force_coefficients([1.0, 0.0, 0.0], **{"area": 1.0} | arguments)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones((4, 2)), np.ones(4), np.ones(4)), r"normal has shape \(4, 2\), expected \(4, 3\)"),
        ((np.ones((4, 3)), np.ones(4), np.ones(3)), r"pressure has shape \(3, 1\), expected \(4, 1\)"),
        ((np.ones((4, 3)), np.ones((4, 1)), np.ones(4)), r"area has shape \(4, 1\), expected \(N,\)"),
        ((np.ones((4, 3)), np.ones(4), np.ones(4), np.ones(4)), r"wall_shear_stress has shape \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        integrate_forces(*arrays)


def test_drag_has_the_gradient_of_its_finite_differences():
    surface, centre = elements(sphere(12))
    pressure = 7.0 - 3.0 * centre[:, 0]

    def drag(pressure):
        force = integrate_forces(surface.normal, surface.area, pressure, np.zeros_like(centre))
        return force_coefficients(force, area=2.0, dynamic_pressure=15.0)["cd"]

    assert isinstance(drag(pressure), float)
    np.testing.assert_allclose(jax.jit(drag)(jnp.asarray(pressure)), drag(pressure), rtol=1e-5)
    expected = -surface.normal[:, 0] * surface.area / 30.0
    np.testing.assert_allclose(jax.grad(drag)(jnp.asarray(pressure)), expected, rtol=1e-5, atol=1e-7)


def test_drag_has_a_gradient_through_the_scales_of_a_model():
    surface, centre = elements(sphere(12))
    scale = FieldScale(mean=(3.0,), std=(20.0,))
    normalizer = Normalizer(position_low=(0, 0, 0), position_scale=5.0, fields={"surface": {"pressure": scale}})

    def drag(position):
        pressure = normalizer.denormalize_field("surface", "pressure", normalizer.normalize_position(position)[:, :1])
        return force_coefficients(
            integrate_forces(surface.normal, surface.area, pressure), area=2.0, density=1.0, speed=1.0
        )["cd"]

    gradient = jax.grad(drag)(jnp.asarray(centre))
    np.testing.assert_allclose(gradient[:, 0], -100.0 * surface.normal[:, 0] * surface.area, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 1:], 0.0)


@pytest.mark.parametrize(
    ("plane", "directions", "named"),
    [
        ("xy", {"drag": (1, 0, 0), "lift": (0, 0, 1)}, ["lift along (0, 0, 1)"]),
        ("xy", {"drag": (1, 0, 0), "lift": (0, 2, 0)}, []),
        ("xz", {"drag": (1, 0, 0), "lift": (0, 0, 1)}, []),
    ],
)
def test_a_direction_that_no_cell_faces_has_no_part_from_pressure(plane, directions, named):
    """A cylinder without ends, as the walls of a flat case are."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    around = {"xy": (np.cos(angle), np.sin(angle), 0 * angle), "xz": (np.cos(angle), 0 * angle, np.sin(angle))}[plane]
    normal = np.stack(around, axis=1)
    notes = pressure_notes(normal, np.full(12, 0.3), np.arange(12.0), directions)
    assert notes == [f"{name} has no part from pressure: no cell of the surface faces that way" for name in named]


@pytest.mark.parametrize(("is_open", "level", "is_noted"), [(True, 1e5, True), (True, 0.0, False), (False, 1e5, False)])
def test_an_absolute_pressure_on_an_open_surface_is_noted(is_open, level, is_noted):
    """Without its floor, a box of 1 by 2 by 3 is pushed down by the mean pressure on its lid."""
    normal = np.repeat(np.eye(3), 2, axis=0) * np.tile([1.0, -1.0], 3)[:, None]
    area, pressure = np.array([6.0, 6, 3, 3, 2, 2]), np.array([1.0, -1, 2, 0, 0, -2]) + level
    rows = slice(0, 5) if is_open else slice(None)
    notes = pressure_notes(normal[rows], area[rows], pressure[rows, None], {"drag": (1, 0, 0), "lift": (0, 0, 1)})
    assert [note.split(",")[0][:4] for note in notes] == ["lift"] * is_noted
    assert not is_noted or "mostly that of the mean pressure, 1e+05: the surface is open" in notes[0]
