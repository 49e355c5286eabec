"""What a user of the wheel runs first; run from outside of the checkout. `python smoke.py [model.emmi]`."""

import sys

import jax
import numpy as np

import emmi_jax

assert "site-packages" in emmi_jax.__file__, f"not the installed package: {emmi_jax.__file__}"
if len(sys.argv) == 1:
    layer = emmi_jax.SelfAnchorAttention(emmi_jax.AnchorAttentionConfig(dim=24, num_heads=2, branches=("surface",)))
    specs = (emmi_jax.TokenSpec("surface_anchors", 8), emmi_jax.TokenSpec("surface_queries", 4))
    x = jax.random.normal(jax.random.key(0), (1, 12, 24))
    assert np.isfinite(layer.apply(layer.init(jax.random.key(1), x, specs), x, specs)).all()
else:
    surrogate = emmi_jax.deploy.load(sys.argv[1])
    points = {branch: np.random.default_rng(0).uniform(-1, 1, (20, 3)) for branch in surrogate.fields}
    fields = surrogate.encode(points=points).predict(points)
    assert fields
    assert all(np.isfinite(values).all() for values in fields.values())
print("works:", " ".join(sys.argv[1:]) or "a layer")
