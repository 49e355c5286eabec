"""Distances of shapes from the training cases: exact derivatives, and optima that stay near."""

from typing import Any

import numpy as np
import pytest

from emmi_jax.data.familiarity import Familiarity, fit_familiarity
from emmi_jax.design import Lattice, MorphedCase, drag, optimize
from emmi_jax.design.familiar import keep_familiar, shape_distance
from emmi_jax.inference.case_encoding import case_encoding
from tests.design.cases import VOLUME, build, double_precision, ellipsoid, in_double

SURFACE = ellipsoid()
LATTICE = Lattice.around(SURFACE, (3, 2, 2))
OPTIONS: dict[str, Any] = {"points": {"volume": VOLUME}}
DRAG = drag(speed=2.0, area=1.5)


def case_of(surrogate: Any) -> MorphedCase:
    return MorphedCase(surrogate, SURFACE, DRAG, LATTICE, options=OPTIONS)


def familiarity_of(case: MorphedCase) -> Familiarity:
    """What is usual where the lattice moves by a hundredth."""
    rng = np.random.default_rng(0)
    known = [case_encoding(case.encoded(rng.normal(scale=0.01, size=LATTICE.zeros().shape))) for _ in range(22)]
    return fit_familiarity(known[:16], known[16:])


def test_the_gradient_of_the_distance_is_exact() -> None:
    with double_precision():
        case = case_of(in_double(build()))
        familiarity, rng = familiarity_of(case), np.random.default_rng(1)
        start, direction = (rng.normal(scale=0.05, size=LATTICE.zeros().shape) for _ in range(2))
        _, slope = keep_familiar(familiarity)(case, start)
        step = 1e-5
        ends = [keep_familiar(familiarity)(case, start + sign * step * direction)[0] for sign in (1, -1)]
        assert np.vdot(slope, direction) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_the_distance_is_that_of_the_encoded_case() -> None:
    case = case_of(build())
    familiarity = familiarity_of(case)
    result = case.apply(shape_distance, LATTICE.zeros(), familiarity)
    expected = familiarity.distance(case_encoding(case.encoded(LATTICE.zeros())))
    assert result.value == pytest.approx(expected, rel=1e-3)


def test_a_shape_that_is_kept_familiar_stays_nearer_to_the_training_cases() -> None:
    case = case_of(build())
    familiarity = familiarity_of(case)
    options: dict[str, Any] = {"max_displacement": 0.2, "steps": 8, "redraw": False, "checks": 1}
    free = optimize(case, LATTICE.zeros(), **options)
    kept = optimize(case, LATTICE.zeros(), case_penalties=[keep_familiar(familiarity, 10.0)], **options)
    far, near = (familiarity.distance(case_encoding(case.encoded(found.parameters))) for found in (free, kept))
    assert near < 0.7 * far


def test_a_familiar_shape_costs_nothing_and_a_weight_must_be_positive() -> None:
    case = case_of(build())
    familiarity = familiarity_of(case)
    wide = Familiarity(**vars(familiarity) | {"known": np.array([1e6])})
    value, slope = keep_familiar(wide)(case, LATTICE.zeros())
    assert value == 0
    assert not np.any(slope)
    with pytest.raises(ValueError, match=r"weight must be positive, got -1\.0"):
        keep_familiar(familiarity, -1.0)
