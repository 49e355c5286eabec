from typing import ClassVar

import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.cfd.cases import EvaluationCase, PointSet, Sample
from emmi_jax.cfd.normalization import FieldScale, Normalizer
from emmi_jax.models.init import init_params
from emmi_jax.training import evaluation

FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3}}


@pytest.fixture(scope="module")
def model() -> AnchoredBranchedUPT:
    config = AbUptConfig(dim=24, num_heads=2, fields=FIELDS, physics_blocks=("joint",), decoder_depths={})
    return AnchoredBranchedUPT(config)


@pytest.fixture(scope="module")
def normalizer() -> Normalizer:
    scales = {
        "surface": {"pressure": FieldScale(mean=(1.0,), std=(2.0,))},
        "volume": {"velocity": FieldScale(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))},
    }
    return Normalizer(position_low=(0.0, 0.0, 0.0), position_scale=50.0, fields=scales)


def make_sample(num_queries: dict[str, int]) -> Sample:
    rng = np.random.default_rng(0)
    anchors = {branch: PointSet(rng.uniform(size=(5, 3)), {}) for branch in FIELDS}
    return Sample(anchors, {b: PointSet(rng.uniform(size=(n, 3)), {}) for b, n in num_queries.items()})


@pytest.mark.parametrize("num_queries", [{"surface": 7, "volume": 3}, {"volume": 4}, {"surface": 8, "volume": 8}])
def test_chunks_of_queries_give_what_one_call_gives(model, normalizer, num_queries, monkeypatch):
    sample, params = make_sample(num_queries), init_params(model, seed=0)
    whole = evaluation.make_predict(model, params, normalizer)(sample)
    monkeypatch.setattr(evaluation, "CHUNK_SIZE", 4)
    chunked = evaluation.make_predict(model, params, normalizer)(sample)
    assert {b: {n: a.shape[0] for n, a in f.items()} for b, f in chunked.items()} == {
        b: dict.fromkeys(FIELDS[b], n) for b, n in num_queries.items()
    }
    for branch, fields in whole.items():
        for name, values in fields.items():
            np.testing.assert_allclose(chunked[branch][name], values, rtol=1e-5, atol=1e-5)


def test_predictions_are_in_physical_units(model, normalizer):
    sample, params = make_sample({"volume": 4}), init_params(model, seed=0)
    scaled = {b: normalizer.normalize_position(p.position)[None] for b, p in sample.anchors.items()}
    queries = {"volume": normalizer.normalize_position(sample.queries["volume"].position)[None]}
    output = model.apply({"params": params}, anchors=scaled, queries=queries)["query_volume_velocity"][0]
    prediction = evaluation.make_predict(model, params, normalizer)(sample)["volume"]["velocity"]
    np.testing.assert_allclose(prediction, np.asarray(output) * [4.0, 5.0, 6.0] + [1.0, 2.0, 3.0], rtol=1e-5)


def test_relative_l2_by_hand():
    assert evaluation.relative_l2(np.array([[1.0, 2.0]]), np.array([[1.0, -1.0]])) == pytest.approx(3 / np.sqrt(2))
    assert evaluation.relative_l2(np.full((2, 2), 0.5), np.zeros((2, 2))) == 1.0


class TwoCases:
    fields: ClassVar = {"volume": {"velocity": 1}}

    def evaluation_cases(self):
        for truth in (1.0, 2.0):
            points = {"volume": PointSet(np.zeros((3, 3)), {"velocity": np.full((3, 1), truth)})}
            yield EvaluationCase(Sample({}, points), {"zero": {"volume": {"velocity": np.zeros((3, 1))}}})


def test_errors_are_averaged_over_cases_beside_the_baselines():
    errors = evaluation.evaluate(TwoCases(), lambda sample: {"volume": {"velocity": np.full((3, 1), 1.5)}})
    assert errors == {"volume/velocity": {"relative_l2": pytest.approx((0.5 + 0.25) / 2), "zero": 1.0}}
