"""Several devices share the queries of a chunk: same fields, an equal part of the work each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.inference import streaming
from emmi_jax.ops.attention import target_platform

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import json
import jax
import numpy as np
from jax.sharding import Mesh
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, SupernodePoolingConfig
from emmi_jax.inference import streaming
from emmi_jax.layers.supernode_pooling import Geometry
from tests.cases import random_params

fields = {"surface": {"pressure": 1}, "volume": {"velocity": 3}}
model = AnchoredBranchedUPT(AbUptConfig(
    dim=12, num_heads=2, fields=fields, physics_blocks=("perceiver", "cross"), decoder_depths={"volume": 1},
    geometry_depth=0, supernode_pooling=SupernodePoolingConfig(radius=None, k=2), condition_dim=2, mlp_ratio=1,
))
rng = np.random.default_rng(0)
positions = lambda num: rng.uniform(0, 100, (num, 3)).astype(np.float32)
anchors = {branch: positions(16) for branch in fields}
geometry = {"geometry": Geometry(positions(8), np.arange(4, dtype=np.int32))}
condition = np.array([0.5, -1.0], np.float32)
cases = {"anchors": anchors, **geometry, "condition": condition}
inputs = jax.tree.map(lambda a: a[None], cases)
variables = random_params(model, **inputs)
cache = streaming.encode(model, variables, anchors=anchors, **geometry, condition=condition)
queries = {"volume": positions(150)}

devices = jax.local_devices()
results, flops, shards = [], [], []
for some in (devices[:1], None):
    fields = streaming.predict(
        model, variables, cache, queries, chunk_size=61, condition=condition, devices=some
    )
    results.append(fields["volume_velocity"])
    mesh = Mesh(np.array(some or devices), ("queries",))
    chunk = streaming.Chunk("volume", 0, 64, np.zeros((64, 3), np.float32))
    constants = variables | {"cache": cache.entries}, condition[None]
    constants = jax.device_put(constants, jax.NamedSharding(mesh, jax.P()))
    position = jax.device_put(chunk.position, jax.NamedSharding(mesh, jax.P("queries")))
    arguments = model, "volume", mesh, *constants, position, None
    with jax.set_mesh(mesh):
        out = streaming._query(*arguments)["velocity"]
        flops.append(streaming._query.lower(*arguments).compile().cost_analysis()["flops"])
    shards.append(sorted((shard.device.id, shard.data.shape[0]) for shard in out.addressable_shards))
with jax.set_mesh(jax.make_mesh((4, 2), ("data", "tokens"))):
    again = streaming.encode(model, variables, anchors=anchors, **geometry, condition=condition)
    fields = streaming.predict(model, variables, again, queries, chunk_size=61, condition=condition)
results.append(fields["volume_velocity"])
print(json.dumps({
    "in_a_mesh": float(np.abs(results[0] - results[2]).max() / np.abs(results[0]).max()),
    "difference": float(np.abs(results[0] - results[1]).max() / np.abs(results[0]).max()),
    "flops": flops,
    "shards": shards,
}))
"""


@pytest.mark.parametrize(("platform", "kernel"), [("tpu", "tpu_custom_call"), ("cuda", "__cudnn$fmhaSoftmax")])
def test_a_chunk_lowers_to_the_kernel_of_the_platform(platform, kernel, monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    fields = {"volume": {"velocity": 3}}
    config = AbUptConfig(
        dim=128, num_heads=2, fields=fields, physics_blocks=("self",), decoder_depths={}, dtype=jnp.bfloat16
    )
    model, position = AnchoredBranchedUPT(config), jax.ShapeDtypeStruct((1024, 3), jnp.float32)
    anchors = {"volume": jax.ShapeDtypeStruct((1, 128, 3), jnp.float32)}

    def encode(anchors):
        variables = model.init(jax.random.key(0), anchors=anchors)
        return {**variables, **model.apply(variables, anchors=anchors, mutable=["cache"])[1]}

    variables = jax.eval_shape(encode, anchors)
    with target_platform(platform):
        mesh = Mesh(np.array(jax.devices()[:1]), ("queries",))
        traced = streaming._query.trace(model, "volume", mesh, variables, None, position, None)
        module = traced.lower(lowering_platforms=(platform,)).as_text()
    assert kernel in module


def test_eight_devices_give_the_fields_of_one_at_an_eighth_of_the_work_whatever_mesh_is_set():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["difference"] <= 1e-5
    assert found["in_a_mesh"] <= 1e-5
    assert found["shards"] == [[[0, 64]], [[i, 8] for i in range(8)]]
    one, eighth = found["flops"]
    assert 0.75 <= 8 * eighth / one <= 1.25, found["flops"]
