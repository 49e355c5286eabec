"""Functionals of known fields."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.design import (
    Functional,
    drag,
    integral,
    lift,
    mean,
    moment,
    per_point,
    side_force,
    smooth_maximum,
    smooth_minimum,
)
from emmi_jax.meshes.forces import ForceReference, force_coefficients, integrate_forces

RNG = np.random.default_rng(0)
NUM = 50
POSITION = RNG.uniform(-1, 1, (NUM, 3)).astype(np.float32)
NORMAL = RNG.normal(size=(NUM, 3)).astype(np.float32)
SIZE = RNG.uniform(0.5, 1.5, NUM).astype(np.float32)
FIELDS = {
    "pressure": RNG.normal(size=(NUM, 1)).astype(np.float32),
    "wallshearstress": RNG.normal(size=(NUM, 3)).astype(np.float32),
}
STREAM = {"speed": 3.0, "area": 2.0, "density": 1.2}
REFERENCE = ForceReference(**STREAM)


def value(functional: Functional, num_chunks: int = 1, fields: Any = FIELDS, branch_is: str = "surface") -> float:
    """The functional of the known fields, summed over chunks."""
    totals = []
    for sums in functional.sums:
        assert sums.branch == branch_is
        chunks = []
        for rows in np.array_split(np.arange(NUM), num_chunks):
            point = jax.tree.map(lambda a, rows=rows: jnp.asarray(a[rows]), (POSITION, fields, NORMAL, SIZE))
            position, *others = point
            counted = np.ones(len(rows), bool)
            if sums.box is not None:
                low, high = sums.box
                counted = ((POSITION[rows] >= low) & (POSITION[rows] <= high)).all(axis=1)
            about = jnp.asarray(sums.about, jnp.float32)
            chunks.append(sums.of_points(sums.terms(position - about, *others), jnp.asarray(counted)))
        totals.append(sums.of_chunks(jax.tree.map(lambda *leaves: jnp.stack(leaves), *chunks)))
    return float(functional.value(totals))


def test_force_coefficients_are_those_of_the_integrated_force() -> None:
    force = integrate_forces(NORMAL, SIZE, FIELDS["pressure"], -FIELDS["wallshearstress"])
    expected = force_coefficients(force, area=2.0, dynamic_pressure=REFERENCE.dynamic_pressure)
    assert value(drag(**STREAM)) == pytest.approx(expected["cd"], rel=1e-5)
    assert value(lift(**STREAM), num_chunks=7) == pytest.approx(expected["cl"], rel=1e-5)
    scale = REFERENCE.dynamic_pressure * 2.0
    assert value(side_force(**STREAM)) == pytest.approx(force[1] / scale, rel=1e-5)
    along = np.array([3.0, 0.0, 4.0])
    assert value(drag(**STREAM, direction=along)) == pytest.approx(force @ along / 5 / scale, rel=1e-5)


def test_a_pressure_coefficient_is_scaled_by_the_dynamic_pressure() -> None:
    coefficient = {"pressure_coefficient": FIELDS["pressure"] / np.float32(REFERENCE.dynamic_pressure)}
    pressure = {"pressure": FIELDS["pressure"]}
    assert value(drag(**STREAM), fields=coefficient) == pytest.approx(value(drag(**STREAM), fields=pressure), rel=1e-5)


def test_a_moment_is_about_its_axis() -> None:
    forces = ((-FIELDS["pressure"] * NORMAL - FIELDS["wallshearstress"]) * SIZE[:, None]).astype(np.float64)
    about = np.array([0.1, 0.2, 0.3])
    expected = np.cross(POSITION - about, forces).sum(axis=0)[1] / (REFERENCE.dynamic_pressure * 2.0 * 0.5)
    assert value(moment(**STREAM, length=0.5, about=about)) == pytest.approx(expected, rel=1e-4)


def test_integrals_and_means_weight_points_by_the_size_of_their_cell() -> None:
    pressure = FIELDS["pressure"][:, 0].astype(np.float64)
    assert value(integral("surface", "pressure")) == pytest.approx(pressure @ SIZE, rel=1e-5)
    assert value(mean("surface", "pressure"), num_chunks=4) == pytest.approx(pressure @ SIZE / SIZE.sum(), rel=1e-5)
    inside = (POSITION >= 0).all(axis=1)
    box = ((0, 0, 0), (1, 1, 1))
    expected = (pressure * SIZE)[inside].sum()
    assert value(integral("surface", "pressure", box=box)) == pytest.approx(expected, rel=1e-5)
    shear = FIELDS["wallshearstress"].astype(np.float64)
    assert value(integral("surface", "wallshearstress", component=2)) == pytest.approx(shear[:, 2] @ SIZE, rel=1e-5)
    norm = np.linalg.norm(shear, axis=1) @ SIZE
    assert value(integral("surface", "wallshearstress")) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("num_chunks", [1, 7])
def test_smooth_extrema_approach_the_extrema_and_do_not_overflow(num_chunks: int) -> None:
    pressure = FIELDS["pressure"][:, 0]
    inside = (POSITION >= -0.5).all(axis=1)
    options = {"sharpness": 1e4, "box": ((-0.5,) * 3, (1.0,) * 3)}
    assert value(smooth_maximum("surface", "pressure", sharpness=1e4), num_chunks) == pytest.approx(
        pressure.max(), abs=1e-3
    )
    assert value(smooth_minimum("surface", "pressure", **options), num_chunks) == pytest.approx(
        pressure[inside].min(), abs=1e-3
    )
    flat = {"pressure": np.full((NUM, 1), 2.5, np.float32)}
    assert value(smooth_maximum("surface", "pressure", sharpness=3.0), num_chunks, flat) == pytest.approx(2.5, rel=1e-5)


def test_functionals_can_be_combined() -> None:
    first, second = drag(**STREAM), lift(**STREAM)
    combined = 2.0 * first - second * 0.5 + -first.map(jnp.square)
    expected = 2 * value(first) - 0.5 * value(second) - value(first) ** 2
    assert value(combined, num_chunks=3) == pytest.approx(expected, rel=1e-5)
    ratio = (1 + second / first - np.float64(2) / first) ** 2
    assert value(ratio) == pytest.approx((1 + (value(second) - 2) / value(first)) ** 2, rel=1e-5)
    assert value(sum([first, second], 3 - first * second)) == pytest.approx(
        3 + value(first) + value(second) - value(first) * value(second), rel=1e-5
    )
    own = per_point("surface", lambda position, fields, normal, area: area * position[:, 0])
    assert value(own) == pytest.approx(SIZE @ POSITION[:, 0], abs=1e-5)
    assert (first + integral("volume", "pressure")).branches == ("surface", "volume")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: drag(speed=0.0, area=1.0), r"speed must be positive, got 0\.0"),
        (lambda: drag(speed=1.0, area=1.0, direction=(0, 0, 0)), "direction must not be zero"),
        (lambda: moment(speed=1.0, area=1.0, length=-1.0), r"length must be positive, got -1\.0"),
        (lambda: moment(speed=1.0, area=1.0, length=1.0, about=(0, 1)), "about must be 3 finite numbers"),
        (lambda: smooth_maximum("surface", "pressure", sharpness=0.0), r"sharpness must be positive, got 0\.0"),
        (lambda: mean("volume", "pressure", box=((0, 0, 0), (1, 1, np.nan))), "a corner of the box must be 3 finite"),
        (
            lambda: mean("volume", "pressure", box=((0, 0, 2), (1, 1, 1))),
            "the lowest corner of the box must come first",
        ),
        (lambda: drag(**STREAM) * "2", "combined with functionals and finite numbers, .* got '2'"),
        (lambda: drag(**STREAM) + np.nan, "combined with functionals and finite numbers, .* got nan"),
        (lambda: np.ones(3) * drag(**STREAM), "combined with functionals and finite numbers"),
        (lambda: drag(**STREAM) ** lift(**STREAM), "combined with functionals and finite numbers"),
    ],
)
def test_bad_arguments_are_quoted(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
