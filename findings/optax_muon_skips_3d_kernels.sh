#!/usr/bin/env bash
# optax.contrib.muon 0.2.8 gives every array that is not a matrix to AdamW, silently: also the kernels of Flax's
# MultiHeadDotProductAttention, which are [features, heads, head_dim].
#
# Expected: the weights of attention are orthogonalised, as in PyTorch, where they are matrices.
# Seen:     the update of a [8, 2, 4] kernel has entries of one size, +-lr (Adam's first step); flattened to [8, 8],
#           Muon's update differs.
# Hurts:    "training with Muon" that trains the attention of a Flax model with AdamW.
#           `muon_weight_dimension_numbers` names the axes to fold.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optax==0.2.8 flax==0.12.8 jax==0.10.2 2>/dev/null
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PY'
import sys
from importlib.metadata import version

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

attention = nn.MultiHeadDotProductAttention(num_heads=2)
params = attention.init(jax.random.key(0), jnp.ones((1, 3, 8)))["params"]["query"]
shape = params["kernel"].shape
grad = jax.random.normal(jax.random.key(1), shape)


def sizes(grad):
    optimizer = optax.contrib.muon(1e-2)
    update, _ = optimizer.update({"kernel": grad}, optimizer.init({"kernel": grad}), {"kernel": grad})
    sizes = jnp.abs(update["kernel"])
    return float(sizes.max() / sizes.min())


whole, matrix = sizes(grad), sizes(grad.reshape(8, 8))
print("optax", version("optax"), f"kernel {shape}: largest over smallest entry of the update {whole:.6f}; as a matrix {matrix:.3g}")
sys.exit(not (shape == (8, 2, 4) and whole < 1.0001 and matrix > 2))
PY
