import itertools

import numpy as np
import pytest
from scipy import stats

from emmi_jax.data.sampling import sample_points, sample_triangles

POSITION = np.random.default_rng(0).normal(size=(50, 3))
WEIGHTS = np.linspace(0.1, 5.0, 50)
CASES = [("uniform", None), ("weighted", WEIGHTS), ("farthest", None)]


@pytest.mark.parametrize("num_points", [0, 1, 7, 50])
@pytest.mark.parametrize(("method", "weights"), CASES)
def test_no_point_comes_twice(method, weights, num_points):
    idx = sample_points(0, POSITION, num_points, method=method, weights=weights)
    assert len(set(idx.tolist())) == num_points == len(idx)
    assert set(idx.tolist()) <= set(range(50))


@pytest.mark.parametrize(("method", "weights"), CASES)
def test_the_seed_alone_decides(method, weights):
    first, again, other = (sample_points(s, POSITION, 9, method=method, weights=weights) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(
        first, sample_points(np.random.default_rng(1), POSITION, 9, method=method, weights=weights)
    )
    assert first.tolist() != other.tolist()


def test_uniform_draws_are_uniform():
    rng = np.random.default_rng(0)
    counts = np.zeros(20)
    for _ in range(4000):
        counts[sample_points(rng, POSITION[:20], 1)] += 1
    assert stats.chisquare(counts).pvalue > 1e-3


def test_weighted_draws_follow_successive_sampling():
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    rng = np.random.default_rng(0)
    pairs = list(itertools.permutations(range(3), 2))
    expected = [weights[i] / 6 * weights[j] / (6 - weights[i]) for i, j in pairs]
    draws = [tuple(sample_points(rng, POSITION[:4], 2, method="weighted", weights=weights)) for _ in range(6000)]
    counts = [draws.count(pair) for pair in pairs]
    assert sum(counts) == 6000
    assert stats.chisquare(counts, 6000 * np.array(expected)).pvalue > 1e-3


def test_area_weights_undo_a_mesh_that_is_finer_on_one_side():
    # 900 small cells on the left half of a line, 100 large ones on the right half.
    edges = np.concatenate([np.linspace(0, 0.5, 901), np.linspace(0.5, 1, 101)[1:]])
    centre, length = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    rng = np.random.default_rng(0)
    drawn = [sample_points(rng, centre[:, None], 5, method="weighted", weights=length) for _ in range(400)]
    on_the_left = np.mean(centre[np.concatenate(drawn)] < 0.5)
    assert abs(on_the_left - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_farthest_points_are_each_the_farthest_from_those_before():
    idx = sample_points(3, POSITION, 20, method="farthest")
    for i in range(1, 20):
        distance = np.linalg.norm(POSITION[:, None] - POSITION[idx[:i]], axis=-1).min(axis=1)
        np.testing.assert_allclose(distance[idx[i]], distance.max(), rtol=1e-12)


def test_farthest_points_are_distinct_where_points_coincide():
    assert sorted(sample_points(0, np.zeros((6, 3)), 6, method="farthest").tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_points": 51}, "cannot draw 51 of 50 points"),
        ({"num_points": -1}, "cannot draw -1 of 50 points"),
        ({"num_points": 1, "method": "nearest"}, "one of uniform, weighted, farthest, got 'nearest'"),
        ({"num_points": 1, "weights": WEIGHTS}, "the method 'weighted', and no other, takes weights; got 'uniform'"),
        ({"num_points": 1, "method": "weighted"}, "the method 'weighted', and no other, takes weights"),
        ({"num_points": 1, "method": "weighted", "weights": -WEIGHTS}, "expected 50 finite weights >= 0"),
        ({"num_points": 1, "method": "weighted", "weights": WEIGHTS[:3]}, r"got shape \(3,\)"),
        ({"num_points": 9, "method": "weighted", "weights": WEIGHTS * (WEIGHTS < 0.75)}, "7 of 50 have a weight"),
    ],
)
def test_impossible_draws_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_points(0, POSITION, **arguments)


CORNERS = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[5, 0, 0], [5, 3, 0], [5, 0, 2]], [[9, 9, 9]] * 3], float)


def test_triangles_are_hit_in_proportion_to_their_areas():
    points = sample_triangles(0, CORNERS, 7000)
    on_the_first = np.count_nonzero(points[:, 0] < 2)
    assert stats.binomtest(on_the_first, 7000, 0.5 / 3.5).pvalue > 1e-3
    assert points[:, 2].max() <= 2.0


def test_points_are_uniform_within_a_triangle():
    points = sample_triangles(0, CORNERS[:1], 4000)
    x, y = points[:, 0], points[:, 1]
    assert ((x >= 0) & (y >= 0) & (x + y <= 1)).all()
    # Along each height of a triangle a uniform point lies at 1 - sqrt(1 - u).
    for height in (x, y, 1 - x - y):
        assert stats.kstest(1 - (1 - height) ** 2, "uniform").pvalue > 1e-3


def test_points_on_triangles_depend_on_the_seed_alone():
    np.testing.assert_array_equal(sample_triangles(4, CORNERS, 5), sample_triangles(4, CORNERS, 5))
    assert not np.array_equal(sample_triangles(4, CORNERS, 5), sample_triangles(5, CORNERS, 5))


@pytest.mark.parametrize(("corners", "num", "message"), [(CORNERS[2:], 3, "none of 1 triangles"), (CORNERS, -1, "-1")])
def test_points_that_cannot_be_drawn_are_refused(corners, num, message):
    with pytest.raises(ValueError, match=message):
        sample_triangles(0, corners, num)
