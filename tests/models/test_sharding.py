"""The whole model on eight devices: any kind of mesh, an eighth of the work each, no collectives."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.tolerances import TOLERANCES

REPOSITORY = Path(__file__).parents[2]
NO_ERF = pytest.mark.skipif(
    jax.__version_info__ >= (0, 12), reason="JAX 0.12.0 has no derivative of erf inside a checked shard_map"
)
CASES = [(kind, mesh) for kind in ("main", "curls") for mesh in ("explicit", "automatic")]
CASES += [("main", "shard_map"), pytest.param("curls", "shard_map", marks=NO_ERF)]

PROGRAM = """
import dataclasses, json, re, sys
import jax
import numpy as np
from jax.sharding import AxisType
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, SupernodePoolingConfig
from emmi_jax.models.init import init_params

jax.config.update("jax_numpy_dtype_promotion", "strict")
fields = {"surface": {"p": 1}, "volume": {"u": 3}}
config = AbUptConfig(
    dim=12, num_heads=2, fields=fields, mlp_ratio=1, decoder_depths={"volume": 1}, init_weights="torch",
    # Curls are of any block.
    physics_blocks=("perceiver",) if sys.argv[1] == "curls" else ("perceiver", "joint_untied"),
    geometry_depth=0 if sys.argv[1] == "curls" else 1, supernode_pooling=SupernodePoolingConfig(radius=None, k=4),
    vector_potentials={"volume": ("u",)} if sys.argv[1] == "curls" else {},
    implementation="blockwise" if sys.argv[1] == "main" else "auto",
)
is_main = sys.argv[1] == "main"
if is_main:
    config = dataclasses.replace(
        config, norm="rms", qk_norm=True, bias=False, readout_norm=True, conditioning_dims={"inflow": 1, "design": 2},
        geometry_conditioning_dims={"design": 2}, feature_dims={"volume": 2},
        supernode_pooling=SupernodePoolingConfig(radius=None, k=4, input_features_dim=2), eps=1e-4, layer_scale=0.5,
        mlp_hidden_dim=10,
    )
model = AnchoredBranchedUPT(config)
params = init_params(model)
rng = np.random.default_rng(0)
positions = lambda num: rng.uniform(0, 100, (8, num, 3)).astype(np.float32)
inputs = {
    "anchors": {branch: positions(16) for branch in fields},
    "queries": {branch: positions(8) for branch in fields},
    "geometry": Geometry(
        positions(16), np.tile(np.arange(8, dtype=np.int32), (8, 1)), mask=rng.uniform(size=(8, 8)) < 0.8
    ),
    "anchor_masks": {"volume": rng.uniform(size=(8, 16)) < 0.8},
}
if is_main:
    # Modulations start at zero, which would hide the conditions.
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params)
    values = lambda *shape: rng.uniform(-1, 1, (8, *shape)).astype(np.float32)
    inputs["condition"] = {"inflow": values(1), "design": values(2)}
    inputs |= {"anchor_features": {"volume": values(16, 2)}, "query_features": {"volume": values(8, 2)}}
    inputs["geometry"] = inputs["geometry"]._replace(features=values(16, 2))
call = lambda params, inputs: model.apply({"params": params}, **inputs)
on_one = jax.jit(call).lower(params, inputs).compile()
one, flops = on_one(params, inputs), on_one.cost_analysis()["flops"]
found = {}
KINDS = {
    "explicit": AxisType.Explicit, "automatic": AxisType.Auto, "shard_map": AxisType.Explicit, "tokens": AxisType.Auto,
    "explicit tokens": AxisType.Explicit,
}
for name, kind in KINDS.items():
    if name == "shard_map" and sys.argv[1] == "curls" and jax.__version_info__ >= (0, 12):
        continue
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    with jax.set_mesh(mesh):
        args = (
            jax.device_put(params, jax.NamedSharding(mesh, jax.P())),
            jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data"))),
        )
        run = call
        if name == "shard_map":
            run = jax.shard_map(call, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P("data"))
        if name == "explicit tokens":
            specs = jax.tree.map(lambda _: jax.P(None, "data"), inputs)
            specs |= {"condition": jax.tree.map(lambda _: jax.P(), inputs["condition"])} if is_main else {}
            shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
            args = args[0], jax.device_put(inputs, shardings)
        if name == "tokens":
            by_tokens = AnchoredBranchedUPT(dataclasses.replace(config, token_axis="data"))
            specs = jax.tree.map(lambda _: jax.P(None, "data"), inputs)
            features = jax.P() if is_main else None
            specs["geometry"] = specs["geometry"]._replace(position=jax.P(), features=features)
            specs |= {"condition": jax.tree.map(lambda _: jax.P(), inputs["condition"])} if is_main else {}
            place = lambda array, spec: jax.device_put(array, jax.NamedSharding(mesh, spec))
            args = (args[0], jax.tree.map(place, inputs, specs))
            run = jax.shard_map(
                lambda params, inputs: by_tokens.apply({"params": params}, **inputs),
                in_specs=(jax.P(), specs), out_specs=jax.P(None, "data"), check_vma=False,
            )
        compiled = jax.jit(run).lower(*args).compile()
        many = compiled(*args)
    error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())
                for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one)))
    collectives = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found[name] = {
        "error": error,
        "share": 8 * compiled.cost_analysis()["flops"] / flops,
        "collectives": sorted(set(re.findall(collectives, compiled.as_text()))),
    }
print(json.dumps(found))
"""


@functools.cache
def results(kind: str) -> dict[str, Any]:
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", PROGRAM, kind]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kind", "mesh"), CASES)
def test_eight_devices_do_an_eighth_of_the_work_each_without_collectives(kind: str, mesh: str) -> None:
    found = results(kind)[mesh]
    assert found["error"] <= TOLERANCES["float32"].forward
    assert 0.5 <= found["share"] <= 1.25
    assert found["collectives"] == []


@pytest.mark.parametrize("kind", ["curls", "main"])
def test_tokens_may_be_sharded_on_explicit_axes(kind: str) -> None:
    assert results(kind)["explicit tokens"]["error"] <= TOLERANCES["float32"].forward


@pytest.mark.parametrize("kind", ["curls", "main"])
def test_devices_that_share_tokens_gather_keys_and_values_and_nothing_else(kind: str) -> None:
    found = results(kind)["tokens"]
    assert found["error"] <= TOLERANCES["float32"].forward
    assert 0.5 <= found["share"] <= 1.6  # points of the geometry are embedded on every device
    assert found["collectives"] == ["all-gather"]
