#!/usr/bin/env bash
# Tools: JAX 0.12.0.1 (`jax.device_put` to a device, explicit sharding); the same with 0.10.2.
# Expected: an array that is put on a single device is like any other array there, wherever it comes from.
# Seen: one that lay on a mesh with explicit axes has the same `sharding` as any other (SingleDeviceSharding), but its
#   type keeps the mesh, and a jitted cast under `jax.set_mesh` of another mesh raises ValueError for it alone.
# Hurts: whoever trains on an explicit mesh, gathers the parameters on a device and predicts there; `sharding` hides it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.12.0.1 jaxlib==0.12.0.1
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

device = jax.devices()[0]
auto, explicit = (jax.make_mesh((1,), ("x",), (kind,)) for kind in (AxisType.Auto, AxisType.Explicit))
arrays = {"made there": jax.device_put(jnp.ones(4), device)}
arrays["moved there"] = jax.device_put(jax.device_put(jnp.ones(4), NamedSharding(explicit, PartitionSpec())), device)
seen = {}
for name, array in arrays.items():
    try:
        with jax.set_mesh(auto):
            jax.jit(lambda x: x.astype(jnp.bfloat16))(array)
        outcome = "runs"
    except ValueError as error:
        outcome = str(error).split(" AbstractMesh")[0]
    seen[name] = (type(array.sharding).__name__, jax.typeof(array).sharding.mesh.empty, outcome)
print("JAX", jax.__version__, seen)
failed = "For primitive convert_element_type, context mesh"
expected = {
    "made there": ("SingleDeviceSharding", True, "runs"),
    "moved there": ("SingleDeviceSharding", False, failed),
}
raise SystemExit(seen != expected)
PYTHON
