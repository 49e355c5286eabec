"""Distances from training cases: usual ones are about 1, others are found, and p-values hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.data.familiarity import Familiarity, fit_familiarity

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(3, 40))


def encodings(number: int, rng: np.random.Generator, scale: float = 1.0, noise: float = 0.05) -> np.ndarray:
    """Cases of three parameters, seen through 40 numbers with noise."""
    return 5 + scale * rng.normal(size=(number, 3)) @ MIXING + noise * rng.normal(size=(number, 40))


@pytest.fixture(scope="module")
def fitted() -> Familiarity:
    return fit_familiarity(encodings(60, RNG), encodings(40, RNG))


def test_usual_cases_are_about_one_away(fitted):
    distances = [fitted.distance(encoding) for encoding in encodings(500, np.random.default_rng(1))]
    assert np.sqrt(np.mean(np.square(distances))) == pytest.approx(1, rel=0.15)


def test_cases_far_along_and_across_the_directions_of_the_training_cases_are_found(fitted):
    rng = np.random.default_rng(2)
    far_along = 5 + 6 * MIXING[0]
    across = encodings(1, rng)[0] + 0.3 * rng.normal(size=40)
    for case in (far_along, across):
        assert fitted.p_value(fitted.distance(case)) == pytest.approx(1 / 41)


def test_false_alarms_are_as_rare_as_the_p_value_says():
    rng = np.random.default_rng(3)
    alarms = []
    for _ in range(60):
        found = fit_familiarity(encodings(30, rng), encodings(19, rng))
        alarms += [found.p_value(found.distance(case)) <= 0.1 for case in encodings(20, rng)]
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.04)


def test_the_distance_has_the_derivative_of_its_differences(fitted):
    case = jnp.asarray(encodings(1, np.random.default_rng(4))[0], jnp.float32)
    direction = jnp.asarray(RNG.normal(size=40), jnp.float32)
    slope = jax.grad(fitted.distance)(case) @ direction
    step = 1e-4
    exact = np.asarray(case, np.float64)
    moved = [fitted.distance(exact + sign * step * np.asarray(direction, np.float64)) for sign in (1, -1)]
    assert float(slope) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-3)


def test_what_is_stored_gives_the_same_distances(fitted):
    again = Familiarity.from_arrays(fitted.to_arrays())
    case = encodings(1, np.random.default_rng(5))[0]
    assert again.distance(case) == fitted.distance(case)
    np.testing.assert_array_equal(again.known, fitted.known)


def test_copies_of_one_case_make_everything_else_unfamiliar():
    same = np.tile(encodings(1, RNG), (10, 1))
    found = fit_familiarity(same, same[:4])
    assert found.p_value(found.distance(same[0])) == 1
    assert found.p_value(found.distance(same[0] + 1)) == pytest.approx(0.2)


def test_few_training_cases_are_refused():
    with pytest.raises(ValueError, match="at least 8 training cases, got 7"):
        fit_familiarity(encodings(7, RNG), encodings(5, RNG))
