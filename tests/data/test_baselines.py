import numpy as np
import pytest

from emmi_jax.data.baselines import NearestNeighbors, mean_predictor
from emmi_jax.points import PointSet


@pytest.fixture
def known() -> PointSet:
    position = np.random.default_rng(0).normal(size=(200, 3))
    return PointSet(position, {"linear": position @ [[1.0], [2.0], [3.0]], "constant": np.full((200, 2), 7.0)})


def test_mean_predictor_repeats_the_mean():
    queries = {"volume": PointSet(np.zeros((4, 3)), {})}
    prediction = mean_predictor({"volume": {"velocity": np.array([1.0, 2.0, 3.0])}}, queries)
    np.testing.assert_array_equal(prediction["volume"]["velocity"], [[1.0, 2.0, 3.0]] * 4)


def test_neighbours_reproduce_known_points_exactly(known):
    prediction = NearestNeighbors(known).predict(known.position)
    np.testing.assert_array_equal(prediction["linear"], known.fields["linear"])


def test_neighbours_reproduce_constants_everywhere(known):
    position = np.random.default_rng(1).normal(size=(50, 3)) * 10
    np.testing.assert_allclose(NearestNeighbors(known).predict(position)["constant"], 7.0, rtol=1e-14)


def test_weights_fall_with_the_squared_distance():
    known = PointSet(np.array([[0.0, 0, 0], [3.0, 0, 0]]), {"p": np.array([[0.0], [1.0]])})
    prediction = NearestNeighbors(known, num_neighbors=2).predict(np.array([[1.0, 0, 0]]))
    np.testing.assert_allclose(prediction["p"], [[0.2]])  # weights 1 and 1/4


def test_fewer_points_than_neighbours_are_all_used():
    known = PointSet(np.eye(3), {"p": np.array([[1.0], [2.0], [3.0]])})
    np.testing.assert_allclose(NearestNeighbors(known).predict(np.zeros((1, 3)))["p"], [[2.0]])


def test_duplicates_of_a_point_share_its_weight():
    known = PointSet(np.zeros((2, 3)), {"p": np.array([[1.0], [3.0]])})
    np.testing.assert_array_equal(NearestNeighbors(known).predict(np.zeros((1, 3)))["p"], [[2.0]])
