"""Tiled attention's derivatives and neighbour search on eight devices: the results of one, without doing work twice."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tolerances import TOLERANCES

REPOSITORY = Path(__file__).parents[2]
SHARE = 1.2 / 8
"""Largest part of the work for each device. Every device prepares the keys or points that its share needs, here few."""

PROGRAM = """
import functools, json, re
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from emmi_jax.ops.attention import CUDA_INTERPRETER, dot_product_attention, target_platform
from emmi_jax.ops.blockwise_attention import blockwise_attention
from emmi_jax.ops.neighbors import nearest_neighbors, radius_neighbors

automatic = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((8,), ("devices",))
rng = np.random.default_rng(0)
results, ones = {}, {}


def one(function, args):
    if function not in ones:
        program = jax.jit(function).lower(*args).compile()
        outputs = [np.asarray(x, np.float64) for x in jax.tree.leaves(program(*args))]
        ones[function] = outputs, program.cost_analysis()["flops"]
    return ones[function]


def record(name, function, args, mesh, specs, wrapped=None, in_shardings=None):
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    placed = jax.device_put(args, shardings) if in_shardings is None else args
    options = {} if in_shardings is None else {"in_shardings": shardings}
    program = jax.jit(wrapped or function, **options).lower(*placed).compile()
    expected, work = one(function, args)
    found = [np.asarray(x, np.float64) for x in jax.tree.leaves(program(*placed))]
    results[name] = {
        "error": max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, found)),
        "work": program.cost_analysis()["flops"] / work,
        "collectives": sorted(re.findall(r" (all-[a-z]+|collective-[a-z]+)(?:-start)?\\(", program.as_text())),
    }


def flash_attention(q, k, v, *, mask):
    with target_platform(CUDA_INTERPRETER):
        return dot_product_attention(q, k, v, mask=mask, implementation="flash")


def forward(q, k, v, mask, cotangent):
    return attention(q, k, v, mask=mask)


def gradient(q, k, v, mask, cotangent):
    return jax.vjp(functools.partial(attention, mask=mask), q, k, v)[1](cotangent)


def tangent(q, k, v, mask, cotangent):
    return jax.jvp(lambda q: attention(q, k, v, mask=mask), (q,), (cotangent,))[1]


def second(q, k, v, mask, cotangent):
    return jax.jvp(lambda q: gradient(q, k, v, mask, cotangent), (q,), (cotangent,))[1]


q, k, v, cotangent = (rng.normal(size=(8, num, 8, 4)).astype(np.float32) for num in (64, 96, 96, 64))
arrays = (q, k, v, rng.random((8, 1, 1, 96)) < 0.7, cotangent)
batch, heads = (P("devices"),) * 5, (*(P(None, None, "devices"),) * 3, P(), P(None, None, "devices"))
queries = (P(None, "devices"), P(), P(), P(), P(None, "devices"))
tokens = (*(P(None, "devices"),) * 3, P(), P(None, "devices"))
for name, attention in {"flash ": flash_attention, "": blockwise_attention}.items():
    ones.clear()
    jax.clear_caches()
    record(name + "gradient over batch", gradient, arrays, automatic, batch)
    record(name + "gradient over heads", gradient, arrays, explicit, heads)
    record(name + "tangent over queries", tangent, arrays, automatic, queries)
    record(name + "second over batch", second, arrays, automatic, batch)
    record(name + "forward over tokens", forward, arrays, automatic, tokens)
    record(name + "gradient over queries", gradient, arrays, explicit, queries)
    record(name + "forward of unplaced arrays", forward, arrays, automatic, batch, in_shardings=True)
mapped = jax.shard_map(tangent, mesh=explicit, in_specs=batch, out_specs=P("devices"))
record("tangent in shard_map over batch", tangent, arrays, explicit, batch, mapped)
mapped = jax.shard_map(gradient, mesh=explicit, in_specs=queries, out_specs=(P(None, "devices"), P(), P()))
record("gradient in shard_map over queries", gradient, arrays, explicit, queries, mapped)

points = rng.integers(0, 9, (8, 96, 3)).astype(np.float32)  # so that many distances are equal
arrays = (points, rng.integers(0, 96, (8, 64), np.int32))
for name, search in {
    "radius": functools.partial(radius_neighbors, radius=3.0, max_degree=8),
    "nearest": functools.partial(nearest_neighbors, k=5),
}.items():
    batch, supernodes = (P("devices"),) * 2, (P(), P(None, "devices"))
    record(f"{name} over batch", search, arrays, automatic, batch)
    record(f"{name} over supernodes", search, arrays, explicit, supernodes)
    mapped = jax.shard_map(search, mesh=explicit, in_specs=supernodes, out_specs=P(None, "devices"))
    record(f"{name} in shard_map over supernodes", search, arrays, explicit, supernodes, mapped)
print(json.dumps(results))
"""


@functools.cache
def results() -> dict[str, dict[str, Any]]:
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "case",
    [
        "gradient over batch",
        "gradient over heads",
        "tangent over queries",
        "tangent in shard_map over batch",
        "second over batch",
        "forward of unplaced arrays",
    ],
)
def test_attention_is_divided_among_devices_without_collectives(case: str) -> None:
    found = results()[case]
    assert found["error"] <= TOLERANCES["float32"].gradient
    assert found["work"] <= SHARE
    assert not found["collectives"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("forward over tokens", {"all-gather"}),
        ("gradient over queries", {"all-reduce"}),
        ("gradient in shard_map over queries", {"all-reduce"}),
    ],
)
def test_sharded_queries_cost_a_collective_for_keys_and_values_alone(case: str, expected: set[str]) -> None:
    found = results()[case]
    assert found["error"] <= TOLERANCES["float32"].gradient
    assert found["work"] <= SHARE
    assert set(found["collectives"]) == expected


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("gradient over batch", set()),
        ("gradient over heads", set()),
        ("tangent over queries", set()),
        ("second over batch", set()),
        ("forward of unplaced arrays", set()),
        ("forward over tokens", {"all-gather"}),
        ("gradient over queries", {"all-reduce"}),
    ],
)
def test_flash_attention_is_divided_likewise(case: str, expected: set[str]) -> None:
    # The inputs are sharded: without a collective, no device can do the work of another.
    found = results()["flash " + case]
    assert found["error"] <= TOLERANCES["float32"].gradient
    assert set(found["collectives"]) == expected
    assert len(found["collectives"]) <= 2


@pytest.mark.parametrize("axis", ["over batch", "over supernodes", "in shard_map over supernodes"])
@pytest.mark.parametrize("search", ["radius", "nearest"])
def test_neighbour_search_is_divided_among_devices_without_collectives(search: str, axis: str) -> None:
    found = results()[f"{search} {axis}"]
    assert found["error"] == 0.0
    assert found["work"] <= SHARE
    assert not found["collectives"]
