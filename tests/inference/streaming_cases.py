"""A small model with its encoded anchors, and what one call of it predicts."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, SupernodePoolingConfig
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.inference.streaming import encode, predict
from emmi_jax.layers.supernode_pooling import Geometry
from tests.cases import random_params
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}}
CONFIG = AbUptConfig(
    dim=12,
    num_heads=2,
    fields=FIELDS,
    physics_blocks=("perceiver", "joint"),
    decoder_depths={"surface": 1, "volume": 1},
    geometry_depth=0,
    supernode_pooling=SupernodePoolingConfig(radius=None, k=2),
    mlp_ratio=1,
)
CONDITIONED = dataclasses.replace(CONFIG, condition_dim=2)
NUM_POINTS, CHUNK = 13, 5
NORMALIZER = Normalizer(
    position_low=(-1.0, 2.0, 0.0),
    position_scale=0.5,
    fields={
        branch: {name: FieldScale(mean=(3.0,) * c, std=(2.0,) * c) for name, c in names.items()}
        for branch, names in FIELDS.items()
    },
)
TRACED: list[str] = []


class CountingModel(AnchoredBranchedUPT):
    """Notes which queries each trace is for."""

    def __call__(self, **inputs: Any) -> dict[str, jax.Array]:
        TRACED.append(" ".join(inputs.get("queries") or {}))
        return super().__call__(**inputs)


def positions(num_points: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, size=(num_points, 3)).astype(np.float32)


ANCHORS = {branch: positions(4, seed) for seed, branch in enumerate(FIELDS)}
GEOMETRY = {"geometry": Geometry(positions(6, 2), np.arange(3, dtype=np.int32))}
QUERIES = {branch: positions(NUM_POINTS, seed) for seed, branch in enumerate(FIELDS, 3)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with its encoded anchors, and what one uncached call predicts at all queries."""

    model: CountingModel
    variables: Any
    cache: Any
    expected: dict[str, np.ndarray]
    condition: np.ndarray | None

    def __call__(self, queries: Any, *, chunk_size: Any = CHUNK, **options: Any) -> dict[str, Any]:
        args = self.model, self.variables, self.cache, queries
        return predict(*args, chunk_size=chunk_size, condition=self.condition, **options)


@functools.cache
def case(config: AbUptConfig) -> Case:
    model = CountingModel(config)
    condition = None if config.condition_dim is None else np.array([0.3, -1.0], np.float32)
    extra = {} if condition is None else {"condition": condition}
    inputs = jax.tree.map(lambda a: a[None], {"anchors": ANCHORS, **GEOMETRY, **extra})
    batched = {branch: position[None] for branch, position in QUERIES.items()}
    variables = random_params(model, **inputs)
    outputs = jax.jit(model.apply)(variables, **inputs, queries=batched)
    expected = {f"{b}_{name}": np.asarray(outputs[f"query_{b}_{name}"][0]) for b in FIELDS for name in FIELDS[b]}
    cache = encode(model, variables, anchors=ANCHORS, **GEOMETRY, **extra)
    return Case(model, variables, cache, expected, condition)


def assert_expected(fields: dict[str, Any], expected: dict[str, np.ndarray], num_points: int) -> None:
    assert fields
    for name, values in fields.items():
        # Relative to the largest entry of the field, over more points than a short query has.
        largest = float(np.abs(expected[name]).max())
        assert_close(values, expected[name][:num_points], FORWARD, largest=largest)
        assert values.dtype == np.float32


def empty(num_points: int, *branches: str) -> dict[str, np.ndarray]:
    return {f"{b}_{name}": np.full((num_points, c), np.nan, "f4") for b in branches for name, c in FIELDS[b].items()}
