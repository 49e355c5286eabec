"""Conformal quantiles: exact ranks, ties, infinite scores, and coverage within its law."""

import numpy as np
import pytest

from benchmarks.cross_conformal import cross_interval, cross_p_value
from emmi_jax.data.conformal import (
    conformal_quantile,
    coverage_law,
    covering_score,
    half_width,
    normalized_scores,
    p_value,
    quantile_rank,
)


@pytest.mark.parametrize(
    ("num_cases", "level", "rank"),
    [(9, 0.9, 9), (19, 0.95, 19), (19, 0.55, 11), (99, 0.07, 7), (10, 0.5, 6), (1, 0.5, 1), (17, 0.8, 15)],
)
def test_ranks_are_those_of_exact_decimals(num_cases, level, rank):
    assert quantile_rank(num_cases, level) == rank


@pytest.mark.parametrize(("level", "needed"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.5, 1), (0.7, 3)])
def test_a_level_out_of_reach_is_refused_with_the_number_of_cases_that_it_needs(level, needed):
    assert quantile_rank(needed, level) == needed
    with pytest.raises(
        ValueError, match=f"level {level} needs at least {needed} calibration cases, there are {needed - 1}"
    ):
        quantile_rank(needed - 1, level)


def test_ties_and_infinite_scores_are_scores_as_any_other():
    scores = [1.0, np.inf, 2.0, 2.0, 2.0, 0.0, np.inf, 3.0, 1.0]
    assert conformal_quantile(scores, 0.5) == 2.0
    assert conformal_quantile(scores, 0.3) == 1.0
    assert conformal_quantile(scores, 0.7) == 3.0
    assert conformal_quantile(scores, 0.8) == np.inf


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, np.nan, True, "0.9"])
def test_levels_that_are_none_are_quoted(level):
    with pytest.raises(ValueError, match="level must be"):
        quantile_rank(100, level)


@pytest.mark.parametrize("scores", [[1.0, np.nan], [-1.0], 3.0, [[1.0]]])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match="scores must be an array"):
        conformal_quantile(scores, 0.5)


def test_scores_without_deviation_are_infinite_unless_there_is_no_error():
    found = normalized_scores([[2.0, 0.0], [-1.0, 3.0]], [[0.0, 0.0], [0.5, 2.0]])
    np.testing.assert_array_equal(found, [[np.inf, 0.0], [2.0, 1.5]])
    with pytest.raises(ValueError, match="deviations numbers >= 0"):
        normalized_scores([1.0], [-1.0])


def test_an_infinite_quantile_makes_infinite_intervals_even_without_deviation():
    np.testing.assert_array_equal(half_width(np.inf, [0.0, 1.0]), [np.inf, np.inf])
    np.testing.assert_array_equal(half_width(2.0, [0.0, 1.5]), [0.0, 3.0])


def test_the_score_of_a_case_covers_its_share_of_the_points_and_no_lower_one_does():
    rng = np.random.default_rng(0)
    scores = rng.exponential(size=(37, 3))
    for share in (0.1, 0.5, 0.9, 1.0):
        bound = covering_score(scores, share)
        covered = (scores <= bound).all(axis=1).sum()
        assert covered >= share * 37 > (scores < bound).all(axis=1).sum()
    with pytest.raises(ValueError, match="share must be above 0"):
        covering_score(scores, 0.0)
    with pytest.raises(ValueError, match="without points"):
        covering_score([], 0.5)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_coverage_on_exchangeable_cases_is_within_its_law(level):
    rng, num_new = np.random.default_rng(1), 1000
    for num_cases in (20, 57):
        law, covered = coverage_law(num_cases, level), []
        for _ in range(100):
            # Exchangeable, but neither independent nor alike: all share a level, and each has a deviation of its own.
            deviation = rng.lognormal(size=num_cases + num_new)
            scores = normalized_scores(rng.exponential() + deviation * rng.normal(size=len(deviation)), deviation)
            covered.append(np.count_nonzero(scores[num_cases:] <= conformal_quantile(scores[:num_cases], level)))
        low, high = law.counts(num_new, 1 - 1e-6)
        assert low <= min(covered)
        assert max(covered) <= high
        error = np.std(covered) / np.sqrt(len(covered)) / num_new
        assert abs(np.mean(covered) / num_new - law.mean) < 4 * error
        assert law.mean >= level


def test_ties_never_lower_the_coverage():
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 3, size=(2000, 11)).astype(float)
    covered = [new <= conformal_quantile(known, 0.8) for *known, new in scores]
    assert np.mean(covered) > 0.8


def test_the_law_of_the_coverage_is_a_beta_distribution():
    law = coverage_law(10, 0.9)
    assert law == (10, 1)
    assert law.mean == pytest.approx(10 / 11)
    low, high = law.range(0.9)
    assert (low**10, high**10) == pytest.approx((0.05, 0.95))


def test_p_values_of_exchangeable_cases_are_not_below_uniform():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(5000, 20))
    values = np.array([p_value(known, new) for *known, new in scores])
    for level in (0.05, 0.1, 0.5):
        assert np.mean(values <= level) == pytest.approx(level, abs=4 * np.sqrt(level / 5000))
    assert p_value([1.0, 2.0, 2.0], 2.0) == 0.75
    assert p_value([1.0, 2.0], 3.0) == pytest.approx(1 / 3)


def test_models_that_leave_out_a_fold_each_cover_as_promised():
    rng, levels = np.random.default_rng(0), (0.5, 0.8, 0.9)
    covered, inside = [], []
    for _ in range(1000):
        fold, known, new = np.arange(20) % 4, rng.normal(size=20), rng.normal()
        centers = np.array([known[fold != left_out].mean() for left_out in range(4)])[fold]
        scores, new_scores = np.abs(known - centers), np.abs(new - centers)
        covered.append([cross_p_value(scores, new_scores) > 1 - level for level in levels])
        ends = [cross_interval(scores, centers, np.ones(20), level) for level in levels]
        inside.append([low <= new <= high for low, high in ends])
    for shares in (np.mean(covered, axis=0), np.mean(inside, axis=0)):
        np.testing.assert_allclose(shares, levels, atol=0.06)
        assert (shares > np.array(levels) - 0.03).all()


def test_an_infinite_score_makes_a_crossed_interval_infinite_only_if_it_bounds_it():
    scores, centers = np.array([np.inf, *np.arange(1.0, 10)]), np.full(10, 5.0)
    assert cross_interval(scores, centers, np.zeros(10), 0.5) == (5.0, 5.0)
    assert cross_interval(scores, centers, np.ones(10), 0.8) == (-4.0, 14.0)
    assert cross_interval(scores, centers, np.zeros(10), 0.9) == (-np.inf, np.inf)
    with pytest.raises(ValueError, match=r"level 0\.95 needs at least 19"):
        cross_interval(scores, centers, np.ones(10), 0.95)
