"""Attention on eight devices: the results of one, at an eighth of the work each, without collectives."""

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
SHARDED = ("masked", "blockwise")
"""One implementation of each kernel."""

PROGRAM = """
import functools, json, re, sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from emmi_jax import AnchorAttentionConfig, SelfAnchorAttention, TransformerBlock, rope_frequencies
from emmi_jax.ops.attention import dot_product_attention
from tests.cases import random_array, random_params, random_positions, specs

implementations = sys.argv[1:]
auto = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
explicit = jax.make_mesh((8,), ("devices",))
rng = np.random.default_rng(0)
token_specs = specs(a_anchors=4, b_queries=3, a_queries=3, b_anchors=4)
x = random_array(rng, (8, 14, 24))
freqs = rope_frequencies(random_positions(rng, 8, 14), 12)
mask = jnp.asarray(rng.random((8, 14)) < 0.8)
results = {}


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def record(name, one, function, *args):
    program, leaves = compiled(function, *args), jax.tree.leaves(one[0])
    results[name] = {
        "error": max(float(np.abs(a - b).max() / np.abs(a).max())
                     for a, b in zip(leaves, jax.tree.leaves(program(*args)), strict=True)),
        "work": program.cost_analysis()["flops"] / one[1],
        "collectives": re.findall(r"(all-\\w+|collective-\\w+)(?:-start)?\\(", program.as_text()),
    }


def run(function, *args):
    program = compiled(function, *args)
    return jax.tree.map(np.asarray, program(*args)), program.cost_analysis()["flops"]


def layer(implementation, **options):
    return TransformerBlock(AnchorAttentionConfig(
        dim=24, num_heads=2, use_rope=True, branches=("a", "b"), implementation=implementation, **options
    ), attention=SelfAnchorAttention, mlp_ratio=1)


params = random_params(layer("masked"), x, token_specs, freqs)
for implementation in implementations:
    def forward(params, x, freqs, mask):
        return layer(implementation).apply(params, x, token_specs, freqs, key_padding_mask=mask)

    def gradient(params, x, freqs, mask):
        return jax.grad(lambda *primals: jnp.square(forward(*primals, freqs, mask)).sum(), (0, 1))(params, x)

    def dropped(params, x, freqs, mask):
        return layer(implementation, dropout=0.5).apply(
            params, x, token_specs, freqs, deterministic=False, rngs={"dropout": jax.random.key(0)})

    functions = {"forward": forward, "gradient": gradient, "dropout": dropped}
    arrays = (x, freqs, mask)
    one = {name: run(function, params, *arrays) for name, function in functions.items()}
    put = lambda mesh, tree, *axes: jax.device_put(tree, NamedSharding(mesh, jax.P(*axes)))
    args = {mesh: (put(mesh, params), *put(mesh, arrays, "devices")) for mesh in (auto, explicit)}
    record(f"{implementation} forward on automatic axes", one["forward"], forward, *args[auto])
    for name, function in functions.items():
        record(f"{implementation} {name} on default axes", one[name], function, *args[explicit])
    with jax.set_mesh(explicit):
        mapped = jax.shard_map(forward, in_specs=(jax.P(), *[jax.P("devices")] * 3), out_specs=jax.P("devices"))
        record(f"{implementation} forward in a mesh", one["forward"], forward, *args[explicit])
        record(f"{implementation} forward in shard_map", one["forward"], mapped, *args[explicit])

q, k, v = (random_array(rng, (8, n, 8, 4)) for n in (64, 96, 96))
for implementation in implementations:
    function = functools.partial(dot_product_attention, implementation=implementation)
    one = run(function, q, k, v)
    for axis, index in (("batch", 0), ("heads", 2), ("queries", 1)):
        axes = [None] * index + ["devices"]
        others = [put(explicit, a, *(axes if axis != "queries" else ())) for a in (k, v)]
        record(f"{implementation} kernel over {axis}", one, function, put(explicit, q, *axes), *others)
print(json.dumps(results))
"""
CASES = ["forward on automatic axes", "forward on default axes", "forward in a mesh", "forward in shard_map"]
CASES += ["dropout on default axes", "kernel over batch", "kernel over heads", "kernel over queries"]


@functools.cache
def results() -> dict[str, dict[str, Any]]:
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", PROGRAM, *SHARDED]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", SHARDED)
def test_eight_devices_do_an_eighth_of_the_work_each_without_collectives(implementation: str, case: str) -> None:
    found = results()[f"{implementation} {case}"]
    assert found["error"] <= TOLERANCES["float32"].forward
    assert found["work"] <= 1.15 / 8
    assert not found["collectives"]


@pytest.mark.parametrize("implementation", SHARDED)
def test_gradients_need_one_kind_of_collective_for_the_parameters(implementation: str) -> None:
    found = results()[f"{implementation} gradient on default axes"]
    assert found["error"] <= TOLERANCES["float32"].gradient
    assert found["work"] <= 1.15 / 8
    assert set(found["collectives"]) == {"all-reduce"}
