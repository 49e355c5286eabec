"""Distances of shapes from the training cases: exact derivatives, and optima that stay near."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from emmi_jax.data.familiarity import Familiarity, fit_familiarity
from emmi_jax.design import Lattice, MorphedCase, drag, optimize
from emmi_jax.design.familiar import keep_familiar, strangeness
from emmi_jax.inference.case_encoding import describe
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
    known = [describe(case.encoded(rng.normal(scale=0.01, size=LATTICE.zeros().shape))) for _ in range(22)]
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


def test_the_penalty_is_that_of_the_encoded_case() -> None:
    case, far = case_of(build()), np.full(LATTICE.zeros().shape, 0.3) * np.arange(3)[:, None, None, None]
    familiarity = familiarity_of(case)
    ratios = np.divide(familiarity.distances(describe(case.encoded(far))), familiarity.limits)
    assert (ratios > 2).all()
    assert case.apply(strangeness, far, familiarity).value == pytest.approx(np.square(ratios - 1).sum(), rel=1e-3)


def test_a_shape_that_is_kept_familiar_stays_nearer_to_the_training_cases() -> None:
    case = case_of(build())
    familiarity = familiarity_of(case)
    options: dict[str, Any] = {"max_displacement": 0.2, "steps": 8, "redraw": False, "checks": 1}
    free = optimize(case, LATTICE.zeros(), **options)
    kept = optimize(case, LATTICE.zeros(), case_penalties=[keep_familiar(familiarity, 10.0)], **options)
    far, near = (familiarity.distance(describe(case.encoded(found.parameters))) for found in (free, kept))
    assert near < 0.7 * far


def test_a_familiar_shape_costs_nothing_and_a_weight_must_be_positive() -> None:
    case = case_of(build())
    familiarity = familiarity_of(case)
    wide = replace(familiarity, known=np.full((1, 2), 1e6))
    value, slope = keep_familiar(wide)(case, LATTICE.zeros())
    assert value == 0
    assert not np.any(slope)
    with pytest.raises(ValueError, match=r"weight must be positive, got -1\.0"):
        keep_familiar(familiarity, -1.0)
