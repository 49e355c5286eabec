#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 keeps a checkpoint whose metric is NaN as the best one and deletes the real best.
#
# Expected: with best_mode="min" and max_to_keep=1, the checkpoint of error 0.5 outlives one of NaN and one of 0.7.
# Seen:     NaN replaces 0.5, and 0.7 then replaces NaN: the best checkpoint of the run is gone.
# Hurts:    a run that diverges for one validation loses its best weights. Give such a score as infinity.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 2>/dev/null
JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$work/run" <<'PY'
import sys
from importlib.metadata import version

import jax.numpy as jnp
import orbax.checkpoint as ocp


def kept(folder, errors):
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["error"], best_mode="min", max_to_keep=1)
    with ocp.CheckpointManager(folder, options=options) as manager:
        for step, error in enumerate(errors):
            manager.save(step, args=ocp.args.StandardSave({"a": jnp.arange(3.0)}), metrics={"error": error})
            manager.wait_until_finished()
        return manager.all_steps()


seen = {name: kept(f"{sys.argv[1]}/{name}", [0.5, middle, 0.7]) for name, middle in (("nan", float("nan")), ("inf", float("inf")))}
print("orbax-checkpoint", version("orbax-checkpoint"), "keeps step", seen)
sys.exit(seen != {"nan": [2], "inf": [0]})
PY
