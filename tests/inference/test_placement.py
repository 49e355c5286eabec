"""Parameters may lie on any device, and a cache is a pytree like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, encode, predict
from emmi_jax.models.init import init_params

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import json
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from emmi_jax.inference.streaming import encode, predict
from tests.design.cases import VOLUME, build, ellipsoid
from emmi_jax.design import drag, sensitivity
import dataclasses

surrogate = build()
surface = ellipsoid()
auto, explicit = (jax.make_mesh((4,), ("d",), (kind,)) for kind in (AxisType.Auto, AxisType.Explicit))
places = {
    "first": lambda a: a,
    "host": np.asarray,
    "last": lambda a: jax.device_put(a, jax.devices()[3]),
    "replicated": lambda a: jax.device_put(a, NamedSharding(auto, P())),
    "sharded": lambda a: jax.device_put(a, NamedSharding(auto, P("d") if a.shape[0] % 4 == 0 else P())),
    "moved": lambda a: jax.device_put(jax.device_put(a, NamedSharding(explicit, P())), jax.devices()[0]),
    "explicit": lambda a: jax.device_put(a, NamedSharding(explicit, P("d") if a.shape[0] % 4 == 0 else P())),
}
found = {}
for name, place in places.items():
    placed = dataclasses.replace(surrogate, params=jax.tree.map(place, surrogate.params))
    encoded = placed.encode(points={"volume": VOLUME, "surface": surface.centers()})
    fields = [encoded.predict({"volume": VOLUME.position}, devices=some)["volume_velocity"]
              for some in (None, jax.devices()[1:2])]
    gradient = sensitivity(placed, surface, drag(speed=1.0, area=1.0), points={"volume": VOLUME}).vertices
    found[name] = [values.tolist() for values in (*fields, gradient)]
print(json.dumps(found))
"""


def test_parameters_on_any_device_give_the_numbers_of_the_first() -> None:
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment
    )
    assert not done.returncode, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for name, results in found.items():
        for result, expected in zip(results, found["first"], strict=True):
            np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


MODEL = AnchoredBranchedUPT(
    AbUptConfig(dim=12, num_heads=1, fields={"volume": {"velocity": 3}}, physics_blocks=("self",), decoder_depths={})
)
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "tree_map": lambda cache: jax.tree.map(jnp.copy, cache),
    "flatten": lambda cache: jax.tree.unflatten(jax.tree.structure(cache), jax.tree.leaves(cache)),
    "device_get": jax.device_get,
    "device_put": lambda cache: jax.device_put(cache, jax.devices()[0]),
    "jit": jax.jit(lambda cache: cache),
    "donated": jax.jit(lambda cache: jax.tree.map(lambda a: a + 0 if a.dtype != bool else a, cache), donate_argnums=0),
    "vmap": lambda cache: jax.tree.map(
        lambda a: a[1], jax.vmap(lambda c: c)(jax.tree.map(lambda *leaves: jnp.stack(leaves), cache, cache))
    ),
    "scan": lambda cache: jax.lax.scan(lambda c, _: (c, None), cache, length=2)[0],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_cache_passes_through_transforms(name: str) -> None:
    variables, rng = {"params": init_params(MODEL)}, np.random.default_rng(0)
    anchors, queries = {"volume": rng.uniform(0, 1000, (8, 3))}, {"volume": rng.uniform(0, 1000, (20, 3))}
    mask = {"volume": np.arange(8) < 6}
    cache = encode(MODEL, variables, anchors=anchors, anchor_masks=mask)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(cache))
    expected = predict(MODEL, variables, cache, queries)["volume_velocity"]
    found = predict(MODEL, variables, TRANSFORMS[name](cache), queries)["volume_velocity"]
    np.testing.assert_array_equal(found, expected)
