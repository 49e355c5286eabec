import numpy as np
import pytest

from emmi_jax.config import Sampling
from emmi_jax.data.draws import draw_geometry, draw_points, draw_training_case
from emmi_jax.points import PointSet, take_points

SAMPLING = Sampling(num_anchors=4, num_queries=3, num_test_anchors=4, num_geometry_points=8, num_supernodes=2)
POINTS = PointSet(np.random.default_rng(0).normal(size=(20, 3)), {})


@pytest.mark.parametrize("num_points", [3, 8, 20])
def test_a_geometry_of_few_points_is_used_whole(num_points):
    position, idx, *_ = draw_geometry(
        np.random.default_rng(0), take_points(POINTS, slice(num_points)), SAMPLING, num_supernodes=4
    )
    assert position.shape == (min(num_points, 8), 3)
    np.testing.assert_array_equal(idx, np.arange(min(num_points, 4)))
    assert {tuple(x) for x in position} <= {tuple(x) for x in POINTS.position[:num_points]}


def test_a_case_without_queries_or_geometry_has_none():
    sampling = Sampling(num_anchors=4, num_queries=0, num_test_anchors=4)
    sample = draw_training_case(np.random.default_rng(0), {"volume": POINTS}, None, sampling)
    assert (len(sample.anchors["volume"].position), sample.queries, sample.geometry) == (4, {}, None)


def test_points_without_cell_sizes_cannot_be_weighted():
    sampling = Sampling(num_anchors=4, num_queries=3, num_test_anchors=4, method="weighted")
    with pytest.raises(ValueError, match="the points have no cell sizes"):
        draw_points(np.random.default_rng(0), POINTS, 4, sampling)
    weighted = POINTS._replace(cell_size=np.eye(20)[3])
    np.testing.assert_array_equal(draw_points(np.random.default_rng(0), weighted, 1, sampling), [3])
