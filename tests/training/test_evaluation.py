from collections.abc import Mapping
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.config import Sampling
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.samples import Sample
from emmi_jax.inference import streaming
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.models.init import init_params
from emmi_jax.points import PointSet
from emmi_jax.training import evaluation
from emmi_jax.training.evaluation import evaluate, predict_queries, validate

FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3}}


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    config = AbUptConfig(dim=24, num_heads=2, fields=FIELDS, physics_blocks=("joint",), decoder_depths={})
    model = AnchoredBranchedUPT(config)
    scales = {
        "surface": {"pressure": FieldScale(mean=(1.0,), std=(2.0,))},
        "volume": {"velocity": FieldScale(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))},
    }
    normalizer = Normalizer(position_low=(0.0, 0.0, 0.0), position_scale=50.0, fields=scales)
    sampling = Sampling(num_anchors=5, num_queries=0, num_test_anchors=5)
    return Surrogate(model, init_params(model, seed=0), normalizer, sampling)


def make_sample(num_queries: dict[str, int]) -> Sample:
    rng = np.random.default_rng(0)
    anchors = {branch: PointSet(rng.uniform(size=(5, 3)), {}) for branch in FIELDS}
    return Sample(anchors, {b: PointSet(rng.uniform(size=(n, 3)), {}) for b, n in num_queries.items()})


@pytest.mark.parametrize("num_queries", [{"surface": 7, "volume": 3}, {"volume": 4}])
def test_predictions_are_those_of_the_model_in_physical_units(surrogate, num_queries):
    sample, normalizer = make_sample(num_queries), surrogate.normalizer
    anchors = {b: normalizer.normalize_position(p.position)[None] for b, p in sample.anchors.items()}
    queries = {b: normalizer.normalize_position(p.position)[None] for b, p in sample.queries.items()}
    outputs = jax.jit(surrogate.model.apply)({"params": surrogate.params}, anchors=anchors, queries=queries)
    predicted = predict_queries(surrogate, sample)
    assert {branch: set(fields) for branch, fields in predicted.items()} == {b: set(FIELDS[b]) for b in num_queries}
    for branch, fields in predicted.items():
        for name, values in fields.items():
            expected = normalizer.denormalize_field(branch, name, np.asarray(outputs[f"query_{branch}_{name}"][0]))
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_the_anchors_are_encoded_once_for_all_chunks(surrogate, monkeypatch):
    calls, encode = [], streaming.encode
    monkeypatch.setattr(streaming, "encode", lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs))
    sample = make_sample({"surface": 9, "volume": 9})
    whole = predict_queries(surrogate, sample)
    monkeypatch.setattr(evaluation, "_CHUNK_SIZE", 4)
    chunked = predict_queries(surrogate, sample)
    assert len(calls) == 2
    np.testing.assert_allclose(chunked["volume"]["velocity"], whole["volume"]["velocity"], rtol=1e-4, atol=1e-4)


class Constant:
    """Stands in for a surrogate that predicts 1.5 everywhere."""

    model = SimpleNamespace(config=SimpleNamespace(fields={"volume": {"velocity": 1}}))

    def encode(self, **arguments: object) -> "Constant":
        return self

    def predict(self, queries: Mapping[str, np.ndarray], **options: object) -> dict[str, np.ndarray]:
        return {f"{branch}_velocity": np.full((len(position), 1), 1.5) for branch, position in queries.items()}


def test_metrics_are_averaged_over_cases_beside_the_baselines():
    samples = [
        Sample({}, {"volume": PointSet(np.zeros((3, 3)), {"velocity": np.full((3, 1), exact)})}) for exact in (1.0, 2.0)
    ]
    numbers = []

    def zero(number: int, sample: Sample):
        numbers.append(number)
        return {"zero": {"volume": {"velocity": np.zeros((3, 1))}}}

    metrics = evaluate(Constant(), samples, zero)
    assert metrics == {"volume/velocity": {"relative_l2": pytest.approx((0.5 + 0.25) / 2), "zero": 1.0}}
    assert numbers == [0, 1]


def test_a_field_that_a_case_does_not_know_counts_where_it_is_known(monkeypatch):
    exact = (1.0, np.nan, 2.0, 2.0)
    samples = [Sample({}, {"volume": PointSet(np.zeros((3, 3)), {"velocity": np.full((3, 1), x)})}) for x in exact]
    expected = pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert validate(Constant(), samples) == {"volume/velocity": expected, "mean": expected}
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    gathered = []
    gather = lambda own: gathered.append(own) or np.stack([own, np.zeros_like(own)])  # noqa: E731
    monkeypatch.setattr("emmi_jax.training.evaluation.multihost_utils.process_allgather", gather)
    assert validate(Constant(), samples)["mean"] == pytest.approx(0.25)
    assert [own.tolist() for own in gathered] == [[0.25], [1.0]]
