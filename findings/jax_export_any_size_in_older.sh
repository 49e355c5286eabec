#!/usr/bin/env bash
# A program that jax 0.12.0.1 exports for any size loads in jax 0.10.2, and fails only when it is called; one of fixed
# sizes runs.
#
# Expected: an error at `deserialize`, or a program that runs: the documented window of compatibility is 6 months.
# Seen:     0.10.2 deserializes both; the call of the one with a symbolic size raises an error of an unregistered
#           operation (vhlo.custom_call_v2).
# Hurts:    services that check a file by loading it, and find out at the first request. Compare versions at load.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.12 -m venv "$work/new" && python3.12 -m venv "$work/old"
"$work/new/bin/pip" install --quiet jax==0.12.0.1 flatbuffers==25.12.19 2>/dev/null
"$work/old/bin/pip" install --quiet jax==0.10.2 flatbuffers==25.12.19 2>/dev/null
cd "$work"
export JAX_PLATFORMS=cpu
"$work/new/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
from jax import export

double = jax.jit(lambda x: 2 * x)
for name, shape in {"fixed": (3,), "any": export.symbolic_shape("n")}.items():
    exported = export.export(double)(jax.ShapeDtypeStruct(shape, jnp.float32))
    open(name, "wb").write(exported.serialize())
PY
"$work/old/bin/python" - <<'PY'
import sys

import jax
import jax.numpy as jnp
from jax import export

seen = {}
for name in ("fixed", "any"):
    program = export.deserialize(bytearray(open(name, "rb").read()))
    try:
        seen[name] = program.call(jnp.ones(3)).tolist()
    except Exception as error:
        seen[name] = type(error).__name__
print("exported by jax 0.12.0.1, loaded by", jax.__version__, seen)
sys.exit(seen["fixed"] != [2.0, 2.0, 2.0] or isinstance(seen["any"], list))
PY
