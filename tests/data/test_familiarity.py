"""Distances from training cases: usual ones are about 1, others are found, and p-values hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.data.familiarity import Description, Familiarity, fit_familiarity

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(3, 40))


def cases(number: int, rng: np.random.Generator) -> list[Description]:
    """Cases of three parameters, seen through 40 numbers with noise, and two lengths from 1 to 3."""
    encodings = 5 + rng.normal(size=(number, 3)) @ MIXING + 0.05 * rng.normal(size=(number, 40))
    return [Description(rng.uniform(1, 3, 2), encoding) for encoding in encodings]


@pytest.fixture(scope="module")
def fitted() -> Familiarity:
    return fit_familiarity(cases(60, RNG), cases(40, RNG))


def test_usual_cases_are_at_most_about_one_away(fitted):
    found = np.array([fitted.distances(case) for case in cases(500, np.random.default_rng(1))])
    assert (found < 1.5).all()
    assert np.median(found, axis=0) == pytest.approx(0.7, abs=0.25)


def test_cases_outside_a_range_or_far_along_or_across_the_directions_of_the_training_cases_are_found(fitted):
    rng = np.random.default_rng(2)
    usual = cases(1, rng)[0]
    for traits, encoding in (
        (np.array([2.0, 3.5]), usual.encoding),
        (np.array([0.5, 2.0]), usual.encoding),
        (usual.traits, 5 + 6 * MIXING[0]),
        (usual.traits, usual.encoding + 0.5 * rng.normal(size=40)),
    ):
        assert fitted.p_value(fitted.distance(Description(traits, encoding))) == pytest.approx(1 / 41)


def test_false_alarms_are_as_rare_as_the_p_value_says():
    rng = np.random.default_rng(3)
    alarms = []
    for _ in range(60):
        found = fit_familiarity(cases(30, rng), cases(19, rng))
        alarms += [found.p_value(found.distance(case)) <= 0.1 for case in cases(20, rng)]
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.04)


def test_the_distances_have_the_derivatives_of_their_differences(fitted):
    case = cases(1, np.random.default_rng(4))[0]
    direction = cases(1, np.random.default_rng(5))[0]
    single, along = (jax.tree.map(lambda values: jnp.asarray(values, jnp.float32), of) for of in (case, direction))
    slopes = jax.jvp(fitted.distances, (single,), (along,))[1]
    step = 1e-5
    moved = [
        fitted.distances(jax.tree.map(lambda value, change, sign=sign: value + sign * step * change, case, direction))
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(slopes, (np.array(moved[0]) - moved[1]) / (2 * step), rtol=1e-3)


def test_what_is_stored_gives_the_same_distances(fitted):
    again = Familiarity.from_arrays(fitted.to_arrays())
    case = cases(1, np.random.default_rng(5))[0]
    assert again.distances(case) == fitted.distances(case)
    np.testing.assert_array_equal(again.known, fitted.known)


def test_copies_of_one_case_make_everything_else_unfamiliar():
    same = cases(1, RNG) * 10
    found = fit_familiarity(same, same[:4])
    assert found.p_value(found.distance(same[0])) == 1
    for traits, encoding in ((0, 1), (1, 0)):
        other = Description(same[0].traits + traits, same[0].encoding + encoding)
        assert found.p_value(found.distance(other)) == pytest.approx(0.2)


def test_a_length_that_all_cases_share_may_differ_by_a_share_of_the_size():
    same = cases(1, RNG) * 10
    near = Description(same[0].traits + 1e-3, same[0].encoding)
    assert fit_familiarity(same, same[:4]).distances(near)[0] > 100
    assert fit_familiarity(same, same[:4], np.full(len(near.traits), 0.01)).distances(near)[0] == pytest.approx(0.1)


def test_cases_may_have_no_traits():
    bare = [Description(np.zeros(0), case.encoding) for case in cases(30, RNG)]
    found = fit_familiarity(bare[:20], bare[20:])
    assert found.distances(bare[0])[0] == 0
    assert found.distance(bare[0]) > 0


def test_few_training_cases_are_refused():
    with pytest.raises(ValueError, match="at least 8 training cases, got 7"):
        fit_familiarity(cases(7, RNG), cases(5, RNG))
