"""Optimisation of a shape: lower values within the bounds, penalties and the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emmi_jax.data.normalization import Normalizer
from emmi_jax.design import (
    Functional,
    Lattice,
    MorphedCase,
    drag,
    keep_box_free,
    keep_clearance,
    keep_volume,
    optimize,
    per_point,
)
from emmi_jax.design.penalties import enclosed_volume
from tests.design.cases import VOLUME, build, ellipsoid

SURFACE = ellipsoid()
LATTICE = Lattice.around(SURFACE, (3, 2, 2))
OPTIONS: dict[str, Any] = {"points": {"volume": VOLUME}}
AREA = per_point("surface", lambda position, fields, normal, area: area)


@pytest.fixture(scope="module")
def surrogate() -> Any:
    return build()


def case_of(surrogate: Any, functional: Functional, morph: Any = LATTICE) -> MorphedCase:
    return MorphedCase(surrogate, SURFACE, functional, morph, options=OPTIONS)


def test_the_functional_falls_on_draws_that_no_step_has_seen(surrogate: Any) -> None:
    seen: list[Any] = []
    found = optimize(
        case_of(surrogate, drag(speed=2.0, area=1.5)),
        LATTICE.zeros(),
        max_displacement=0.1,
        steps=8,
        symmetry="y",
        advance=seen.append,
    )
    assert found.after.mean() < found.before.mean()
    assert (found.before.shape, found.stopped, found.history) == ((3,), "", seen)
    assert len({step.value for step in seen}) == 8
    moved = np.linalg.norm(found.surface.vertices - SURFACE.vertices, axis=1)
    assert 0.01 < moved.max() <= 0.1 + 1e-6
    np.testing.assert_allclose(found.parameters[:, 0] * [1, -1, 1], found.parameters[:, 1], atol=1e-12)


def test_a_penalty_keeps_the_volume(surrogate: Any) -> None:
    case, volume = case_of(surrogate, AREA), enclosed_volume(SURFACE)[0]
    options: dict[str, Any] = {"max_displacement": 0.05, "steps": 15, "redraw": False, "checks": 1}
    free = optimize(case, LATTICE.zeros(), **options)
    kept = optimize(case, LATTICE.zeros(), penalties=[keep_volume(1e4)], **options)
    changes = [enclosed_volume(found.surface)[0] / volume - 1 for found in (free, kept)]
    assert changes[0] < -0.05
    assert abs(changes[1]) < 0.02


def test_lbfgs_lowers_a_smooth_functional(surrogate: Any) -> None:
    transformation = optax.chain(optax.scale_by_lbfgs(), optax.scale(-0.3))
    found = optimize(
        case_of(surrogate, AREA),
        LATTICE.zeros(),
        max_displacement=0.05,
        steps=6,
        transformation=transformation,
        redraw=False,
        checks=1,
    )
    assert found.history[-1].value < found.history[0].value


@pytest.mark.parametrize(
    "penalty", [keep_volume(3.0), keep_clearance(2.0), keep_box_free((0.2, -2, -2), (3, 2, 2), weight=2.0)]
)
def test_gradients_of_penalties_are_exact(penalty: Any) -> None:
    rng = np.random.default_rng(0)
    moved, along = (0.05 * rng.normal(size=SURFACE.vertices.shape) for _ in range(2))
    at = SURFACE.vertices + moved - 0.1
    value, gradient = penalty(SURFACE.moved(at), SURFACE)
    step = 1e-5
    high, low = (penalty(SURFACE.moved(at + h * along), SURFACE)[0] for h in (step, -step))
    assert value > 0
    assert (gradient * along).sum() == pytest.approx((high - low) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_clearance_is_lost_only_below_the_lowest_point(axis: str) -> None:
    raised, lowered = (SURFACE.moved(SURFACE.vertices + sign * 0.1 * np.eye(3)["xyz".index(axis)]) for sign in (1, -1))
    penalty = keep_clearance(axis=axis)
    assert penalty(raised, SURFACE)[0] == 0
    assert penalty(lowered, SURFACE)[0] > 0


def test_the_volume_of_an_ellipsoid_grows_with_its_axes() -> None:
    volume, gradient = enclosed_volume(SURFACE)
    assert volume == pytest.approx(SURFACE.mesh.dataset.triangulate().volume, rel=0.05)
    assert (gradient * SURFACE.vertices).sum() == pytest.approx(3 * volume, rel=1e-9)


def test_it_stops_where_the_surface_leaves_the_training_data(surrogate: Any) -> None:
    box = Normalizer.from_box([-1.0] * 3, [1.0] * 3, position_range=20.0, fields=surrogate.normalizer.fields)
    inside = replace(surrogate, normalizer=box)
    found = optimize(case_of(inside, -AREA), LATTICE.zeros(), max_displacement=0.5, steps=9, redraw=False, checks=1)
    assert found.stopped.startswith("step 1 moves")
    assert not found.parameters.any()


def test_a_map_of_ones_own_is_shrunk_to_the_bound(surrogate: Any) -> None:
    def grow(parameters: Any, position: Any) -> Any:
        return position * (jnp.exp(parameters) - 1)

    found = optimize(
        case_of(surrogate, AREA, grow), np.float64(0.0), max_displacement=0.02, steps=3, redraw=False, checks=1,
        transformation=optax.sgd(1.0),
    )  # fmt: skip
    moved = np.linalg.norm(found.surface.vertices - SURFACE.vertices, axis=1).max()
    assert moved == pytest.approx(0.02, rel=1e-2)
    assert found.after < found.before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_displacement": 0.0}, r"max_displacement must be positive, got 0\.0"),
        ({"steps": 0}, "steps and checks must be at least 1, got 0 and 3"),
        ({"symmetry": "w"}, "symmetry must be x, y or z, of a Lattice; got 'w'"),
    ],
)
def test_bad_arguments_are_quoted(surrogate: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimize(case_of(surrogate, AREA), LATTICE.zeros(), **{"max_displacement": 0.1} | changes)
    with pytest.raises(ValueError, match=r"weight must be positive, got 0\.0"):
        keep_volume(0.0)
    with pytest.raises(ValueError, match="axis must be x, y or z, got 'up'"):
        keep_clearance(axis="up")
    with pytest.raises(ValueError, match="three positive sides"):
        keep_box_free((0, 0, 0), (1, 1, 0))
