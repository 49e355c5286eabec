import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.config import SupernodePoolingConfig
from emmi_jax.inference import streaming
from emmi_jax.inference.streaming import encode, stream
from emmi_jax.training.step import init_params

FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}}


@pytest.fixture(scope="module")
def model() -> AnchoredBranchedUPT:
    pooling = SupernodePoolingConfig(radius=None, k=2)
    blocks = ("perceiver", "joint")
    return AnchoredBranchedUPT(
        AbUptConfig(
            dim=24,
            num_heads=2,
            fields=FIELDS,
            physics_blocks=blocks,
            decoder_depths={"volume": 1},
            supernode_pooling=pooling,
            init_weights="torch",
        )
    )


@pytest.fixture(scope="module")
def params(model):
    return init_params(model, seed=0)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    anchors = {branch: rng.uniform(0, 100, size=(1, 5, 3)).astype(np.float32) for branch in FIELDS}
    geometry = rng.uniform(0, 100, size=(1, 8, 3)).astype(np.float32)
    return {"anchors": anchors, "geometry_position": geometry, "supernode_idx": np.arange(4, dtype=np.int32)[None]}


@pytest.fixture(scope="module")
def cache(model, params, inputs):
    return encode(model, params, inputs)


def positions(num_points: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 100, size=(num_points, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(model, params, inputs):
    queries = {branch: positions(10)[None] for branch in FIELDS}
    return jax.jit(lambda params: model.apply({"params": params}, **inputs, queries=queries))(params)


@pytest.mark.parametrize("branch", FIELDS)
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 10, 16])
def test_streamed_queries_equal_one_call_with_anchors(model, params, cache, expected, branch, chunk_size):
    fields = stream(model, params, cache, branch, positions(10), chunk_size=chunk_size)
    assert set(fields) == set(FIELDS[branch])
    for name, values in fields.items():
        np.testing.assert_allclose(values, expected[f"query_{branch}_{name}"][0], rtol=1e-4, atol=1e-5)


def test_no_points_give_empty_fields(model, params, cache):
    fields = stream(model, params, cache, "volume", positions(0), chunk_size=4)
    assert {name: values.shape for name, values in fields.items()} == {"velocity": (0, 3), "pressure": (0, 1)}


def test_any_number_of_points_compiles_once_a_branch(model, params, cache):
    for num_points in (4, 3, 9):
        stream(model, params, cache, "surface", positions(num_points), chunk_size=6)
    before = streaming._query._cache_size()
    for num_points in (1, 6, 7, 20):
        stream(model, params, cache, "surface", positions(num_points), chunk_size=6)
    assert streaming._query._cache_size() == before
