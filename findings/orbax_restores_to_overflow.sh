#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 casts what it restores to the dtype asked for, without a word where numbers do not fit.
#
# Expected: an error, as for another shape ("Requested shape ... is not compatible with the stored shape").
# Seen:     float64 1e300 comes back as float32 infinity, int64 2**40 + 1 as int32 1.
# Hurts:    cases indexed beyond 2**31, states kept in float64. Compare the stored dtypes (`item_metadata`) first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 2>/dev/null
JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$work/run" <<'PY'
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
stored = {"float": np.array([1e300]), "int": np.array([2**40 + 1])}
asked = {"float": jnp.float32, "int": jnp.int32}
with ocp.CheckpointManager(sys.argv[1]) as manager:
    manager.save(0, args=ocp.args.StandardSave(stored))
    manager.wait_until_finished()
    like = {name: jax.ShapeDtypeStruct((1,), dtype, sharding=here) for name, dtype in asked.items()}
    restored = manager.restore(0, args=ocp.args.StandardRestore(like))
seen = {name: array.item() for name, array in restored.items()}
print("orbax-checkpoint", version("orbax-checkpoint"), "restores", seen)
sys.exit(seen != {"float": float("inf"), "int": 1})
PY
