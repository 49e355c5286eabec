"""Properties of the exact potential flow past ellipsoids."""

from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
import pytest
from numpy.typing import NDArray

from emmi_jax.data.potential_flow import Ellipsoid, confocal_parameter, random_ellipsoids

Array = NDArray[np.float64]

SHAPES = {
    "sphere": (0.7, 0.7, 0.7),
    "prolate": (1.2, 0.4, 0.4),
    "oblate": (0.5, 1.1, 1.1),
    "triaxial": (1.2, 0.4, 0.7),
    "needle": (0.01, 0.01, 1.0),
    "disc": (1.0, 0.9, 0.01),
}
STREAM = np.array([0.8, -0.5, 1.1])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(params=SHAPES)
def body(request: pytest.FixtureRequest) -> Ellipsoid:
    """Each shape, rotated at random, in an oblique stream."""
    rotation = random_ellipsoids(1, seed=3)[0].rotation
    return Ellipsoid(np.array(SHAPES[request.param]), rotation, STREAM)


def unit_vectors(rng: np.random.Generator, num: int) -> Array:
    vectors = rng.standard_normal((num, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scale_of(body: Ellipsoid, position: Array) -> Array:
    """sqrt(sum x_i^2 / a_i^2), which is 1 on the surface."""
    return np.linalg.norm(position @ body.rotation / body.semi_axes, axis=1)


def derivative(function: Callable[[Array], Array], position: Array, step: float) -> Array:
    """d function / d x_i by central differences of fourth order; the derivative index comes first."""

    def slope(shift: Array) -> Array:
        near = function(position + shift) - function(position - shift)
        far = function(position + 2 * shift) - function(position - 2 * shift)
        return (8 * near - far) / (12 * step)

    return np.stack([slope(shift) for shift in np.eye(3) * step])


def exact_confocal_parameter(position: Array, semi_axes: Array) -> float:
    """The largest root by bisection in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        squared_position = [Decimal(float(x)) ** 2 for x in position]
        squared_axes = [Decimal(float(a)) ** 2 for a in semi_axes]
        low, high = Decimal(0), sum(squared_position, Decimal(0))
        for _ in range(150):
            middle = (low + high) / 2
            total = sum((x / (a + middle) for x, a in zip(squared_position, squared_axes, strict=True)), Decimal(0))
            low, high = (middle, high) if total > 1 else (low, middle)
        return float(low)


@pytest.mark.parametrize("semi_axes", SHAPES.values(), ids=SHAPES)
def test_confocal_parameter_is_exact_from_the_surface_to_a_thousand_radii(
    semi_axes: tuple[float, ...], rng: np.random.Generator
) -> None:
    axes = np.array(semi_axes)
    scales = 1 + np.repeat([1e-9, 1e-3, 0.1, 1.0, 30.0, 1000.0], 10)
    directions = unit_vectors(rng, len(scales))
    directions[::10] = np.eye(3)[0]  # on an axis
    directions[1::10, 2] = 0.0  # in a plane of symmetry
    directions[2::10, 2] *= 1e-6  # close to one
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    position = scales[:, None] * directions * axes
    expected = np.array([exact_confocal_parameter(x, axes) for x in position])
    actual = confocal_parameter(position.T, axes)
    # lambda itself goes to 0 on the surface; what the flow depends on is a_i^2 + lambda.
    assert np.all(np.abs(actual - expected) <= 1e-14 * (expected + axes.max() ** 2))
    assert np.all(np.abs(actual - expected)[scales > 10] <= 1e-14 * expected[scales > 10])


def test_confocal_parameter_of_the_surface_is_zero(body: Ellipsoid, rng: np.random.Generator) -> None:
    position = body.semi_axes * unit_vectors(rng, 1000)
    assert confocal_parameter(position.T, body.semi_axes).max() <= 2e-15 * body.semi_axes.max() ** 2


def test_speed_at_the_equator_of_a_sphere_is_one_and_a_half() -> None:
    angle = np.linspace(0, 2 * np.pi, 50)
    equator = 0.7 * np.stack([np.zeros(50), np.cos(angle), np.sin(angle)], axis=1)
    sphere = Ellipsoid(np.full(3, 0.7), np.eye(3))
    np.testing.assert_allclose(sphere.velocity(equator), np.tile([1.5, 0.0, 0.0], (50, 1)), atol=1e-14)
    np.testing.assert_allclose(sphere.pressure_coefficient(equator), -1.25, rtol=1e-14)


def test_the_velocity_past_a_sphere_is_that_of_a_dipole_everywhere(rng: np.random.Generator) -> None:
    radius = 0.7
    rotation = random_ellipsoids(1, seed=3)[0].rotation
    sphere = Ellipsoid(np.full(3, radius), rotation, STREAM)
    unit = unit_vectors(rng, 500)
    distance = radius * np.geomspace(1, 1000, 500)[:, None]
    along = (unit @ STREAM)[:, None]
    dipole = radius**3 / (2 * distance**3)
    velocity = STREAM + dipole * (STREAM - 3 * along * unit)
    np.testing.assert_allclose(sphere.velocity(distance * unit), velocity, atol=1e-14)


def test_equator_of_a_prolate_spheroid_matches_elementary_functions() -> None:
    # Lamb, section 105: here R_D reduces to logarithms.
    length, width = 1.2, 0.4
    e = np.sqrt(1 - (width / length) ** 2)
    alpha = 2 * (1 - e**2) / e**3 * (np.arctanh(e) - e)
    body = Ellipsoid(np.array([length, width, width]), np.eye(3))
    velocity = body.velocity(np.array([[0.0, width, 0.0]]))
    np.testing.assert_allclose(velocity, [[2 / (2 - alpha), 0.0, 0.0]], rtol=1e-14)


def test_stream_along_an_axis_stagnates_at_its_poles(body: Ellipsoid) -> None:
    for axis, semi_axis in zip(body.rotation.T, body.semi_axes, strict=True):
        aligned = Ellipsoid(body.semi_axes, body.rotation, axis)
        poles = semi_axis * np.stack([axis, -axis])
        np.testing.assert_allclose(aligned.velocity(poles), 0.0, atol=1e-10)
        np.testing.assert_allclose(aligned.pressure_coefficient(poles), 1.0, rtol=1e-10)


def test_normal_velocity_vanishes_on_the_surface(body: Ellipsoid, rng: np.random.Generator) -> None:
    position = body.sample_surface(rng, 2000)
    velocity = body.velocity(position)
    normal_velocity = (velocity * body.surface_normal(position)).sum(axis=1)
    assert np.all(np.abs(normal_velocity) <= 1e-12 * np.linalg.norm(velocity, axis=1).max())


def test_normal_is_a_unit_vector_across_the_level_set_of_lambda(body: Ellipsoid, rng: np.random.Generator) -> None:
    position = 1.5 * body.sample_surface(rng, 50)
    normal = body.surface_normal(position)
    gradient = derivative(lambda x: confocal_parameter((x @ body.rotation).T, body.semi_axes), position, 1e-4).T
    np.testing.assert_allclose(normal, gradient / np.linalg.norm(gradient, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1.0, rtol=1e-14)


def test_the_velocity_has_no_divergence_and_no_curl(body: Ellipsoid, rng: np.random.Generator) -> None:
    position = 1.02 * body.sample_volume(rng, 500)
    step = 5e-4 * body.semi_axes.min()
    jacobian = np.moveaxis(derivative(body.velocity, position, step), 0, 1)
    tolerance = 1e-9 * np.abs(jacobian).max()
    np.testing.assert_allclose(np.trace(jacobian, axis1=1, axis2=2), 0.0, atol=tolerance)
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=tolerance)


def test_disturbance_decays_with_the_cube_of_the_distance(body: Ellipsoid, rng: np.random.Generator) -> None:
    unit = unit_vectors(rng, 200)
    near, far = (np.linalg.norm(body.velocity(r * unit) - STREAM, axis=1) for r in (100.0, 200.0))
    np.testing.assert_allclose(near / far, 8.0, rtol=2e-3)
    np.testing.assert_allclose(body.pressure_coefficient(1000.0 * unit), 0.0, atol=1e-8)


def test_rotating_body_and_stream_rotates_the_field(body: Ellipsoid, rng: np.random.Generator) -> None:
    turn = random_ellipsoids(1, seed=11)[0].rotation
    turned = Ellipsoid(body.semi_axes, turn @ body.rotation, turn @ body.free_stream)
    position = body.sample_volume(rng, 200)
    moved = position @ turn.T
    np.testing.assert_allclose(turned.velocity(moved), body.velocity(position) @ turn.T, atol=1e-10)
    np.testing.assert_allclose(turned.surface_normal(moved), body.surface_normal(position) @ turn.T, atol=1e-10)


def test_reordering_the_semi_axes_and_rotating_accordingly_changes_nothing(
    body: Ellipsoid, rng: np.random.Generator
) -> None:
    cyclic = Ellipsoid(np.roll(body.semi_axes, 1), np.roll(body.rotation, 1, axis=1), body.free_stream)
    position = body.sample_volume(rng, 200)
    np.testing.assert_allclose(cyclic.velocity(position), body.velocity(position), atol=1e-11)


def test_reversed_stream_reverses_velocity_and_keeps_pressure(body: Ellipsoid, rng: np.random.Generator) -> None:
    reversed_body = Ellipsoid(body.semi_axes, body.rotation, -body.free_stream)
    position = np.concatenate([body.sample_surface(rng, 100), body.sample_volume(rng, 100)])
    np.testing.assert_array_equal(reversed_body.velocity(position), -body.velocity(position))
    np.testing.assert_array_equal(reversed_body.pressure_coefficient(position), body.pressure_coefficient(position))


def test_float32_positions_on_the_surface_are_taken_as_on_the_surface(rng: np.random.Generator) -> None:
    for body in random_ellipsoids(10, seed=2):
        position = body.sample_surface(rng, 1000)
        rounded = position.astype(np.float32)
        assert body.velocity(rounded).dtype == np.float64
        np.testing.assert_allclose(body.velocity(rounded), body.velocity(position), atol=1e-5)


def area_fractions(semi_axes: Array, num_bands: int) -> Array:
    """Area fractions of 8 octants x bands in |x_3 / a_3|, by quadrature of the parametrisation's cross product."""
    num = 100
    z = (np.arange(num_bands * num) + 0.5) / (num_bands * num)
    angle = (np.arange(4 * num) + 0.5) / (4 * num) * np.pi / 2
    z, angle = np.meshgrid(z, angle, indexing="ij")
    r = np.sqrt(1 - z**2)
    along_z = np.stack([-z / r * np.cos(angle), -z / r * np.sin(angle), np.ones_like(z)], axis=-1) * semi_axes
    along_angle = np.stack([-r * np.sin(angle), r * np.cos(angle), np.zeros_like(z)], axis=-1) * semi_axes
    area = np.linalg.norm(np.cross(along_z, along_angle), axis=-1).reshape(num_bands, -1).sum(axis=1)
    return np.tile(area / area.sum() / 8, (8, 1))


def test_surface_samples_lie_on_the_surface_and_are_uniform_in_area(body: Ellipsoid, rng: np.random.Generator) -> None:
    num_points, num_bands = 100_000, 5
    position = body.sample_surface(rng, num_points)
    np.testing.assert_allclose(scale_of(body, position), 1.0, atol=1e-13)
    unit = position @ body.rotation / body.semi_axes
    octant = (unit > 0) @ np.array([1, 2, 4])
    band = np.minimum(np.abs(unit[:, 2]) * num_bands, num_bands - 1).astype(int)
    counts = np.zeros((8, num_bands))
    np.add.at(counts, (octant, band), 1)
    expected = num_points * area_fractions(body.semi_axes, num_bands)
    # Chi-squared with 39 degrees of freedom: 80 is exceeded once in 10 000 seeds.
    assert ((counts - expected) ** 2 / expected).sum() < 80


def test_volume_samples_fill_the_shell_with_the_documented_density(body: Ellipsoid, rng: np.random.Generator) -> None:
    num_points = 100_000
    position = body.sample_volume(rng, num_points)
    scale = scale_of(body, position)
    assert scale.min() >= 1 - 1e-13
    assert scale.max() <= 4 + 1e-13
    # The distribution function of 1 / (2 sqrt(3 (t - 1))); Kolmogorov-Smirnov, 2.2 is exceeded once in 8 000 seeds.
    uniform = np.sort(np.sqrt(np.maximum(scale - 1, 0) / 3))
    assert np.abs(uniform - (np.arange(num_points) + 0.5) / num_points).max() * np.sqrt(num_points) < 2.2
    direction = position @ body.rotation / body.semi_axes / scale[:, None]
    np.testing.assert_allclose(direction.T @ direction / num_points, np.eye(3) / 3, atol=0.005)
    np.testing.assert_allclose(direction.mean(axis=0), 0.0, atol=0.01)


@pytest.mark.parametrize("num_points", [0, 1, 7, 1000])
@pytest.mark.parametrize("sampler", [Ellipsoid.sample_surface, Ellipsoid.sample_volume])
def test_samples_are_as_many_as_asked_for_and_repeat_with_the_seed(
    sampler: Callable[[Ellipsoid, np.random.Generator, int], Array], num_points: int
) -> None:
    body = random_ellipsoids(1, seed=0)[0]
    first, again, other = (sampler(body, np.random.default_rng(seed), num_points) for seed in (1, 1, 2))
    assert first.shape == (num_points, 3)
    np.testing.assert_array_equal(first, again)
    assert num_points == 0 or not np.array_equal(first, other)


def test_no_positions_give_empty_fields() -> None:
    body = random_ellipsoids(1, seed=0)[0]
    nowhere = np.empty((0, 3))
    assert body.velocity(nowhere).shape == body.surface_normal(nowhere).shape == (0, 3)
    assert body.pressure_coefficient(nowhere).shape == (0,)


def test_random_ellipsoids_have_log_uniform_semi_axes_and_uniform_rotations() -> None:
    bodies = random_ellipsoids(2000, seed=0)
    semi_axes = np.array([body.semi_axes for body in bodies]).ravel()
    uniform = np.sort(np.log(semi_axes / 0.4) / np.log(3))
    assert uniform[0] >= 0
    assert uniform[-1] <= 1
    assert np.abs(uniform - (np.arange(6000) + 0.5) / 6000).max() * np.sqrt(6000) < 2.2
    rotations = np.array([body.rotation for body in bodies])
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, rtol=1e-12)
    # For Haar rotations the entries have mean 0 and square mean 1/3, and the trace has mean 0 and square mean 1.
    np.testing.assert_allclose(rotations.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose((rotations**2).mean(axis=0), 1 / 3, atol=0.03)
    np.testing.assert_allclose((np.trace(rotations, axis1=1, axis2=2) ** 2).mean(), 1.0, atol=0.12)
    np.testing.assert_array_equal(bodies[0].free_stream, [1.0, 0.0, 0.0])


def test_random_ellipsoids_repeat_with_the_seed_and_continue_one_sequence() -> None:
    short, long, other = random_ellipsoids(2, seed=4), random_ellipsoids(3, seed=4), random_ellipsoids(2, seed=5)
    for first, second in zip(short, long, strict=False):
        np.testing.assert_array_equal(first.semi_axes, second.semi_axes)
        np.testing.assert_array_equal(first.rotation, second.rotation)
    assert not np.array_equal(short[0].semi_axes, other[0].semi_axes)
    assert not np.array_equal(long[1].semi_axes, long[2].semi_axes)


def test_ellipsoid_keeps_its_own_read_only_arrays() -> None:
    semi_axes = np.ones(3)
    body = Ellipsoid(semi_axes, np.eye(3))
    semi_axes[0] = 5.0
    assert body.semi_axes[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        body.semi_axes[0] = 5.0


@pytest.mark.parametrize("method", ["velocity", "pressure_coefficient", "surface_normal"])
def test_positions_inside_the_body_are_counted_and_the_worst_is_named(method: str) -> None:
    body = Ellipsoid(np.array([1.0, 0.5, 0.5]), np.eye(3))
    position = np.array([[2.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.45, 0.0]])
    with pytest.raises(ValueError, match=r"2 of 3 positions are inside .* is 0\.25, expected at least 1"):
        getattr(body, method)(position)


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (np.full((2, 3), np.nan), "2 of 2 positions are not finite"),
        (np.array([[np.inf, 0, 0], [2, 0, 0]]), "1 of 2 positions are not finite"),
        (np.ones(3), r"position has shape \(3,\), expected \(N, 3\)"),
        (np.ones((4, 2)), r"position has shape \(4, 2\), expected \(N, 3\)"),
    ],
)
def test_malformed_positions_are_refused(position: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ellipsoid(np.ones(3), np.eye(3)).velocity(position)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semi_axes": [1.0, 0.0, 1.0]}, r"semi_axes is \[1.0, 0.0, 1.0\], expected three positive lengths"),
        ({"semi_axes": [1.0, -1.0, 1.0]}, "expected three positive lengths"),
        ({"semi_axes": [1.0, np.nan, 1.0]}, r"semi_axes is \[1.0, nan, 1.0\], expected finite values"),
        ({"semi_axes": [1.0, 1.0]}, r"semi_axes has shape \(2,\), expected \(3,\)"),
        ({"rotation": np.ones((3, 3))}, "expected an orthogonal matrix with determinant 1; .* by 3"),
        ({"rotation": 1.001 * np.eye(3)}, "expected an orthogonal matrix"),
        ({"rotation": -np.eye(3)}, "expected an orthogonal matrix with determinant 1"),
        ({"rotation": np.full((3, 3), np.nan)}, "expected finite values"),
        ({"free_stream": [0.0, 0.0, 0.0]}, "expected a velocity that is not zero"),
        ({"free_stream": [np.inf, 0.0, 0.0]}, "free_stream is .*, expected finite values"),
    ],
)
def test_degenerate_ellipsoids_are_refused(changes: dict[str, Array], message: str) -> None:
    arguments = {"semi_axes": np.ones(3), "rotation": np.eye(3), **changes}
    with pytest.raises(ValueError, match=message):
        Ellipsoid(**arguments)


def test_negative_counts_are_refused(rng: np.random.Generator) -> None:
    body = Ellipsoid(np.ones(3), np.eye(3))
    for sample in (body.sample_surface, body.sample_volume):
        with pytest.raises(ValueError, match="num_points is -1, expected 0 or more"):
            sample(rng, -1)
    with pytest.raises(ValueError, match="num is -2, expected 0 or more"):
        random_ellipsoids(-2, seed=0)
