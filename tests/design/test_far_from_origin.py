"""Bodies in the coordinates of a map: all that counts is where they are relative to their own box."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.design import Lattice, RadialBasis, evaluate, integral, mean, moment, per_point, sensitivity
from emmi_jax.design.morphs import displacements
from emmi_jax.points import PointSet
from tests.design.cases import VOLUME, build, ellipsoid

OFFSET = np.array([4e5, 5e6, -3e5])
SURFACE = ellipsoid()
BOX = (np.array([-0.5, -2.0, -2.0]), np.array([2.0, 2.0, 0.4]))
RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-1, 1, (200, 3))


def functionals(offset: Any) -> dict[str, Any]:
    box = (BOX[0] + offset, BOX[1] + offset)
    return {
        "moment": moment(speed=2.0, area=1.0, length=1.0, about=offset),
        "mean": mean("volume", "velocity", box=box),
        "integral": integral("surface", "pressure", box=box),
        "own": per_point("surface", lambda x, fields, normal, area: area * jnp.square(x).sum(axis=1), about=offset),
    }


@pytest.mark.parametrize("name", functionals(0.0 * OFFSET))
def test_functionals_and_their_gradients_move_with_the_body(name: str) -> None:
    surrogate = build()
    low, high = surrogate.normalizer.position_low, surrogate.normalizer.position_high
    found = {}
    for offset in (0.0 * OFFSET, OFFSET):
        moved = replace(
            surrogate.normalizer,
            position_low=tuple(low + offset),
            position_high=None if high is None else tuple(high + offset),
        )
        volume = PointSet(VOLUME.position + offset, {}, VOLUME.cell_size)
        there = replace(surrogate, normalizer=moved)
        surface = SURFACE.moved(SURFACE.vertices + offset)
        found[bool(offset.any())] = sensitivity(
            there, surface, functionals(offset)[name], points={"volume": volume}, chunk_size=64
        )
    assert found[True].value == pytest.approx(found[False].value, rel=1e-4)
    scale = abs(found[False].vertices).max() + 1e-6
    np.testing.assert_allclose(found[True].vertices / scale, found[False].vertices / scale, atol=1e-3)


@pytest.mark.parametrize("kind", ["lattice", "radial basis", "own"])
def test_morphs_move_with_the_body(kind: str) -> None:
    control = np.zeros((3, 3, 3, 3))
    control[1, 1, 1, 0] = 0.1

    def at(offset: Any) -> Any:
        make = {
            "lattice": lambda: (Lattice(tuple(offset - 1.5), tuple(offset + 1.5), (3, 3, 3)), control),
            "radial basis": lambda: (RadialBasis(POINTS[:3] + offset, 0.8), np.full((3, 3), 0.1)),
            "own": lambda: (lambda p, x: p * jnp.sin(x - offset), np.full(3, 0.1)),
        }[kind]
        return displacements(*make(), POINTS + offset)

    here, there = at(0.0 * OFFSET), at(OFFSET)
    np.testing.assert_allclose(there, here, atol=1e-6 * abs(here).max())


def test_picked_points_that_nearly_coincide_still_move_by_their_parameters() -> None:
    centers = np.concatenate([POINTS[:20], POINTS[:20] + 1e-4])
    basis, parameters = RadialBasis(centers, 3.0), RNG.normal(size=(40, 3))
    np.testing.assert_allclose(displacements(basis, parameters, centers), parameters, atol=1e-4)
    direct = basis(jnp.asarray(parameters, jnp.float32), jnp.asarray(centers, jnp.float32))
    np.testing.assert_allclose(direct, parameters, atol=2e-2)


@pytest.mark.parametrize("branch", ["surface", "volume"])
def test_a_box_without_points_is_refused(branch: str) -> None:
    box = ((50.0, 50.0, 50.0), (60.0, 60.0, 60.0))
    for functional in (integral(branch, "pressure", box=box), mean(branch, "pressure", box=box)):
        with pytest.raises(
            ValueError, match=rf"none of the \d+ points of '{branch}' lies in the box \[50.*they lie in"
        ):
            evaluate(build(), SURFACE, functional, points={"volume": VOLUME})


def test_a_functional_that_is_not_finite_is_refused_with_its_box() -> None:
    nothing = PointSet(VOLUME.position, {}, np.zeros(30))
    functional = mean("volume", "pressure", box=(BOX[0], BOX[1]))
    with pytest.raises(ValueError, match=r"the functional over volume in \[-0.5, .* is not finite: nan"):
        evaluate(build(), SURFACE, functional, points={"volume": nothing})
