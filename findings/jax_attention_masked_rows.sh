#!/usr/bin/env bash
# jax.nn.dot_product_attention (jax 0.10.2, `xla`) gives a query with nothing to attend to the mean of all values, and
# lets NaN through the mask.
#
# Expected: zeros, as torch.nn.functional.scaled_dot_product_attention gives since 2.5; a masked value has no influence.
# Seen:     the mean of the masked values, also with key_value_seq_lengths of 0; one NaN behind the mask makes all NaN.
# Hurts:    padded batches: an empty sample trains on its padding, and NaN in padding spoils the rest of the sample.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet jax==0.10.2 2>/dev/null
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PY'
import sys

import jax
import jax.numpy as jnp

q, k, v = (jax.random.normal(key, (1, 4, 1, 8)) for key in jax.random.split(jax.random.key(0), 3))
attend = jax.nn.dot_product_attention
mean = jnp.broadcast_to(v.mean(axis=1, keepdims=True), v.shape)
empty = attend(q, k, v, mask=jnp.zeros((1, 1, 4, 4), bool))
no_keys = attend(q, k, v, key_value_seq_lengths=jnp.array([0]))
nan_behind = attend(q, k, v.at[0, 3].set(jnp.nan), key_value_seq_lengths=jnp.array([3]))
seen = (
    bool(jnp.allclose(empty, mean, atol=1e-6)),
    bool(jnp.allclose(no_keys, mean, atol=1e-6)),
    bool(jnp.isnan(nan_behind).all()),
)
print("jax", jax.__version__, "mean of all values, by mask and by length; NaN behind a mask in all outputs:", *seen)
sys.exit(seen != (True, True, True))
PY
