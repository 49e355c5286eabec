import numpy as np
import pytest

from emmi_jax.config import Sampling
from emmi_jax.data.baselines import baselines, mean_predictor, nearest_neighbors
from emmi_jax.data.ellipsoids import EllipsoidDataset, nearest_case, sample_body
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.point_cloud import PointCloudDataset
from emmi_jax.data.potential_flow import Ellipsoid, random_ellipsoids
from emmi_jax.points import PointSet

SAMPLING = Sampling(num_anchors=4, num_queries=4, num_test_anchors=8)


@pytest.fixture
def known() -> PointSet:
    position = np.random.default_rng(0).normal(size=(200, 3))
    return PointSet(position, {"linear": position @ [[1.0], [2.0], [3.0]], "constant": np.full((200, 2), 7.0)})


def test_the_mean_predictor_repeats_the_mean():
    queries = {"volume": PointSet(np.zeros((4, 3)), {})}
    prediction = mean_predictor({"volume": {"velocity": np.array([1.0, 2.0, 3.0])}, "surface": {}}, queries)
    np.testing.assert_array_equal(prediction["volume"]["velocity"], [[1.0, 2.0, 3.0]] * 4)


@pytest.mark.parametrize("is_given", [True, False])
def test_the_mean_predictor_of_a_single_case_has_the_means_of_the_normalizer(known, is_given):
    dataset = PointCloudDataset({"volume": known}, SAMPLING)
    normalizer = dataset.measure().normalizer(position_range=1.0)
    if is_given:
        scales = {
            "linear": FieldScale(mean=(5.0,), std=(1.0,)),
            "constant": FieldScale(mean=(6.0,) * 2, std=(1.0,) * 2),
        }
        normalizer = Normalizer(position_low=(0, 0, 0), position_scale=1, fields={"volume": scales})
    (sample,) = dataset.test_samples()
    found = baselines(dataset, normalizer, 0, sample)["mean_predictor"]["volume"]
    train = dataset.train_points["volume"].fields
    assert found["constant"].shape == sample.queries["volume"].fields["constant"].shape
    np.testing.assert_allclose(found["linear"], 5.0 if is_given else train["linear"].mean())
    np.testing.assert_allclose(found["constant"], 6.0 if is_given else 7.0)


def test_baselines_predict_every_field_at_every_query(known):
    ellipsoids = EllipsoidDataset(SAMPLING, num_train_cases=3, num_test_cases=2)
    for dataset, other in (
        (PointCloudDataset({"volume": known}, SAMPLING), "nearest_neighbors"),
        (ellipsoids, "nearest_case"),
    ):
        normalizer = dataset.measure().normalizer(position_range=1.0)
        for number, sample in enumerate(dataset.test_samples()):
            found = baselines(dataset, normalizer, number, sample)
            assert set(found) == {"mean_predictor", other}
            for prediction in found.values():
                for branch, points in sample.queries.items():
                    assert {name: values.shape for name, values in prediction[branch].items()} == {
                        name: values.shape for name, values in points.fields.items()
                    }


def test_neighbours_reproduce_known_points_exactly(known):
    prediction = nearest_neighbors(known, known.position)
    np.testing.assert_array_equal(prediction["linear"], known.fields["linear"])


def test_neighbours_reproduce_constants_everywhere(known):
    position = np.random.default_rng(1).normal(size=(50, 3)) * 10
    np.testing.assert_allclose(nearest_neighbors(known, position)["constant"], 7.0, rtol=1e-14)


def test_weights_fall_with_the_squared_distance():
    known = PointSet(np.array([[0.0, 0, 0], [3.0, 0, 0]]), {"p": np.array([[0.0], [1.0]])})
    prediction = nearest_neighbors(known, np.array([[1.0, 0, 0]]), num_neighbors=2)
    np.testing.assert_allclose(prediction["p"], [[0.2]])  # weights 1 and 1/4


def test_fewer_points_than_neighbours_are_all_used():
    known = PointSet(np.eye(3), {"p": np.array([[1.0], [2.0], [3.0]])})
    np.testing.assert_allclose(nearest_neighbors(known, np.zeros((1, 3)))["p"], [[2.0]])


def test_duplicates_of_a_point_share_its_weight():
    known = PointSet(np.zeros((2, 3)), {"p": np.array([[1.0], [3.0]])})
    np.testing.assert_array_equal(nearest_neighbors(known, np.zeros((1, 3)))["p"], [[2.0]])


def test_the_nearest_case_is_exact_for_a_known_ellipsoid():
    bodies = random_ellipsoids(5, seed=2)
    queries = sample_body(bodies[3], np.random.default_rng(0), 10)
    prediction = nearest_case(bodies[3], bodies, queries)
    for branch, points in queries.items():
        for name, values in points.fields.items():
            np.testing.assert_allclose(prediction[branch][name], values, rtol=1e-9, atol=1e-9)


def test_the_nearest_case_does_not_depend_on_the_order_of_the_axes():
    body = random_ellipsoids(1, seed=2)[0]
    order = [1, 2, 0]
    same = Ellipsoid(body.semi_axes[order], body.rotation[:, order])
    queries = sample_body(body, np.random.default_rng(0), 10)
    decoy = Ellipsoid(body.semi_axes * 1.01, body.rotation)
    prediction = nearest_case(body, [decoy, same], queries)
    np.testing.assert_allclose(prediction["volume"]["velocity"], queries["volume"].fields["velocity"], rtol=1e-8)
