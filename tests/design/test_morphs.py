"""Shapes that follow parameters: what moves, and derivatives by the chain rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.design import Lattice, MorphedCase, RadialBasis, drag, mean
from emmi_jax.design.morphs import displacements, displacements_along, parameter_gradient
from tests.design.cases import VOLUME, build, double_precision, ellipsoid, in_double

SURFACE = ellipsoid()
LATTICE = Lattice.around(SURFACE, (3, 2, 4))
POINTS = RadialBasis([[1.0, 0.0, 0.0], [0.0, 0.7, 0.0], [0.5, 0.0, 0.3]], radius=0.8)
RNG = np.random.default_rng(0)


def test_a_lattice_moves_what_is_inside_like_its_control_points() -> None:
    position = RNG.uniform(LATTICE.low, LATTICE.high, (50, 3))
    shift = np.broadcast_to([0.1, -0.2, 0.3], LATTICE.zeros().shape)
    np.testing.assert_allclose(displacements(LATTICE, shift, position), np.tile(shift[0, 0, 0], (50, 1)), rtol=1e-5)
    # Bernstein polynomials reproduce linear functions: a lattice that is stretched stretches space.
    nodes = np.stack(np.meshgrid(*map(np.linspace, LATTICE.low, LATTICE.high, LATTICE.shape), indexing="ij"), axis=-1)
    np.testing.assert_allclose(displacements(LATTICE, 0.1 * nodes, position), 0.1 * position, atol=1e-6)
    outside = np.asarray([LATTICE.high]) + 0.01
    assert not displacements(LATTICE, shift, outside).any()


def test_picked_points_move_by_their_parameters_and_distant_ones_not_at_all() -> None:
    parameters = RNG.normal(size=(3, 3))
    np.testing.assert_allclose(displacements(POINTS, parameters, POINTS.centers), parameters, atol=1e-5)
    assert not displacements(POINTS, parameters, np.array([[-1.0, 0.0, 0.0]])).any()


@pytest.mark.parametrize("morph", [LATTICE, POINTS], ids=["lattice", "radial basis"])
def test_the_chain_rule_passes_the_dot_product_test(morph: Any) -> None:
    parameters, direction = (RNG.normal(size=morph.zeros().shape) for _ in range(2))
    gradient = RNG.normal(size=SURFACE.vertices.shape)
    along = displacements_along(morph, parameters, direction, SURFACE.vertices)
    pulled = parameter_gradient(morph, parameters, SURFACE.vertices, gradient)
    assert (pulled * direction).sum() == pytest.approx((along * gradient).sum(), rel=1e-4)


def bend(parameters: dict[str, jax.Array], position: jax.Array) -> jax.Array:
    """A map of one's own, not linear in its parameters."""
    up = jnp.sin(parameters["bend"] * position[:, 0])
    return jnp.stack([jnp.zeros_like(up), jnp.zeros_like(up), up], axis=-1)


@pytest.mark.parametrize("has_geometry", [False, True])
def test_gradients_with_respect_to_parameters_are_exact(has_geometry: bool) -> None:
    step = 1e-4
    with double_precision():
        geometry = ellipsoid((1.01, 0.7, 0.5), 6) if has_geometry else None
        options = {"points": {"volume": VOLUME}, "chunk_size": 28}
        functional = drag(speed=2.0, area=1.5)
        case = MorphedCase(in_double(build(blocks=("perceiver",))), SURFACE, functional, bend, geometry, options)
        at = [{"bend": np.float64(0.3 + shift)} for shift in (0, step, -step)]
        value, gradient = case.gradient(at[0])
        expected = (case.value(at[1]) - case.value(at[2])) / (2 * step)
        assert gradient["bend"] == pytest.approx(expected, rel=1e-6)
        if not has_geometry:
            derivative = case.derivative(at[0], {"bend": np.float64(1.0)})
            assert derivative == pytest.approx((value, gradient["bend"]), rel=1e-10)


def test_hessian_vector_products_are_the_change_of_the_gradient() -> None:
    step = 1e-4
    with double_precision():
        options = {"points": {"volume": VOLUME}, "chunk_size": 28}
        functional = (drag(speed=2.0, area=1.5) + mean("volume", "velocity")).map(jnp.sin)
        case = MorphedCase(in_double(build(blocks=("perceiver",))), SURFACE, functional, bend, options=options)
        parameters, direction = {"bend": np.float64(0.3)}, {"bend": np.float64(1.0)}
        gradient, product = case.hessian_vector_product(parameters, direction)
        around = [case.gradient({"bend": np.float64(0.3 + shift)})[1]["bend"] for shift in (step, -step, 0)]
        assert gradient["bend"] == pytest.approx(around[2], rel=1e-10)
        assert product["bend"] == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lattice((0, 0, 0), (1, 1, 0), (2, 2, 2)), r"three positive sides, got \(0, 0, 0\) … \(1, 1, 0\)"),
        (lambda: Lattice((0, 0, 0), (1, 1, 1), (2, 1, 2)), r"each at least 2, got \(2, 1, 2\)"),
        (lambda: RadialBasis([[0, 0, 0]], radius=0.0), r"radius must be positive, got 0\.0"),
        (lambda: RadialBasis([[0, 0, 0], [0, 0, 0]], radius=1.0), "two of the 2 centers coincide"),
        (lambda: RadialBasis([0, 0, 0], radius=1.0), r"shape \[M, 3\], got shape \[3\]"),
        (lambda: displacements(lambda p, x: x[:, 0], 0.0, SURFACE.vertices), "a morph must return displacements"),
    ],
)
def test_bad_morphs_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
