"""Small surrogates to export, one of every kind that the package trains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, SupernodePoolingConfig, Surrogate
from emmi_jax.config import Sampling
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.models.init import init_params

FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "vorticity": 3}}
GEOMETRY: dict[str, Any] = {"num_geometry_points": 24, "num_supernodes": 6, "num_test_supernodes": 8}
KINDS: dict[str, dict[str, Any]] = {
    "geometry": {"physics_blocks": ("perceiver", "cross"), "sampling": {**GEOMETRY, "supernode_method": "farthest"}},
    "radius, condition and weighted draws in bfloat16": {
        "fields": {"volume": FIELDS["volume"]},
        "physics_blocks": ("perceiver_untied", "self"),
        "condition_dim": 2,
        "dtype": jnp.bfloat16,
        "supernode_pooling": SupernodePoolingConfig(radius=400.0),
        "sampling": {**GEOMETRY, "method": "weighted"},
    },
    "curls": {"physics_blocks": ("self",), "vector_potentials": {"volume": ("velocity",)}},
    "bfloat16 with heads for cuDNN": {
        "dim": 32,
        "fields": {"volume": {"velocity": 3}},
        "physics_blocks": ("self",),
        "dtype": jnp.bfloat16,
    },
    "features": {
        "physics_blocks": ("perceiver",),
        "feature_dims": {"volume": 3},
        "supernode_pooling": SupernodePoolingConfig(radius=None, k=3, input_features_dim=2),
        "features": {"volume": {"distance": 1, "part": 2}, "geometry": {"normal": 2}},
        "sampling": GEOMETRY,
    },
    "one branch with a context": {
        "fields": {"volume": {"velocity": 3}},
        "physics_blocks": ("perceiver",),
        "sampling": GEOMETRY,
        "context": True,
    },
}


def surrogate(kind: str) -> Surrogate:
    """A surrogate with random parameters, whose fields have scales of every form."""
    options = {"fields": FIELDS, "geometry_depth": 0, **KINDS[kind]}
    sampling, context, features = options.pop("sampling", {}), None, options.pop("features", {})
    if options.pop("context", False):
        # More points and supernodes than the sampling draws.
        points = np.random.default_rng(1).uniform(-1, 1, (28, 3))
        context = Context({"volume": points[:9]}, Geometry(points, np.arange(9)))
    pooling = {"supernode_pooling": SupernodePoolingConfig(radius=None, k=3)}
    sizes = {"dim": 24, "num_heads": 2, "mlp_ratio": 1}
    config = AbUptConfig(decoder_depths={}, **{**sizes, **pooling, **options})
    model = AnchoredBranchedUPT(config)
    leaves, tree = jax.tree.flatten(init_params(model))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    leaves = [a + 0.1 * jax.random.normal(key, a.shape, a.dtype) for a, key in zip(leaves, keys, strict=True)]
    scales = {branch: {name: scale(name, size) for name, size in f.items()} for branch, f in config.fields.items()}
    return Surrogate(
        model,
        jax.tree.unflatten(tree, leaves),
        Normalizer(
            position_low=(-1.0, -1.5, -1.0),
            position_scale=300.0,
            fields=scales,
            features={part: {name: scale(name, size) for name, size in f.items()} for part, f in features.items()},
        ),
        Sampling(num_anchors=4, num_queries=4, num_test_anchors=12, **sampling),
        context,
    )


def scale(name: str, channels: int) -> FieldScale:
    limit = (2.0,) * channels if name == "vorticity" else None
    return FieldScale(mean=(0.1,) * channels, std=(1.5,) * channels, log_scale=limit is not None, limit=limit)


RNG = np.random.default_rng(0)
POINTS = {branch: RNG.uniform(-1, 1, (30, 3)) for branch in ("surface", "volume")}
SIZES = {branch: RNG.uniform(0, 1, 30) for branch in POINTS}
QUERIES = RNG.uniform(-1, 1, (11, 3)).astype(np.float32)
FEATURES = {"volume": RNG.normal(size=(30, 3)), "geometry": RNG.normal(size=(30, 2))}
OF_QUERIES = FEATURES["volume"][:11]
