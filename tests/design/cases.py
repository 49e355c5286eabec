"""Small surrogates and surfaces, and float64 throughout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Surrogate
from emmi_jax.config import Sampling, SupernodePoolingConfig
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.design import Surface
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.models.init import init_params
from emmi_jax.points import PointSet

FIELDS = {"surface": {"pressure": 1, "wall_shear_stress": 3}, "volume": {"pressure": 1, "velocity": 3}}
SAMPLING = Sampling(
    num_anchors=4, num_queries=0, num_test_anchors=8, num_geometry_points=16, num_supernodes=4, num_test_supernodes=5
)
RNG = np.random.default_rng(5)
VOLUME = PointSet(RNG.uniform(-2, 2, size=(30, 3)), {}, RNG.uniform(0.5, 1.5, size=30))


def ellipsoid(semi_axes: tuple[float, float, float] = (1.0, 0.7, 0.5), resolution: int = 8) -> Surface:
    """An ellipsoid of triangles at its poles and quadrilaterals elsewhere."""
    pyvista = import_pyvista()
    dataset = pyvista.Sphere(radius=1.0, theta_resolution=resolution, phi_resolution=resolution)
    dataset.points = np.asarray(dataset.points, np.float64) * semi_axes
    faces, quads = np.asarray(dataset.faces).reshape(-1, 4)[:, 1:], []
    # Pairs of triangles between two meridians become quadrilaterals, so that cells differ in their corners.
    poles, rest = faces[: 2 * resolution], faces[2 * resolution :]
    for first, second in rest.reshape(-1, 2, 3):
        a = next(v for v in first if v not in second)
        at = list(first).index(a)
        b = next(v for v in second if v not in first)
        quads.append([4, a, first[(at + 1) % 3], b, first[(at + 2) % 3]])
    cells = np.concatenate([np.insert(poles, 0, 3, axis=1).reshape(-1), np.reshape(quads, -1)])
    return Surface.from_mesh(Mesh(Path("body.vtp"), pyvista.PolyData(np.asarray(dataset.points), faces=cells)))


def build(
    fields: dict[str, dict[str, int]] = FIELDS, blocks: tuple[str, ...] = ("perceiver", "joint"), **changes: Any
) -> Surrogate:
    config = AbUptConfig(
        **{
            "dim": 12,
            "num_heads": 2,
            "fields": fields,
            "physics_blocks": blocks,
            "geometry_depth": 0,
            "decoder_depths": {},
            "mlp_ratio": 1,
            "supernode_pooling": SupernodePoolingConfig(radius=None, k=3),
            "init_weights": "torch",
        }
        | changes
    )
    scales = {
        branch: {name: FieldScale(mean=(0.5,) * c, std=(2.0,) * c) for name, c in names.items()}
        for branch, names in fields.items()
    }
    features = {
        part: {"part": FieldScale(mean=(0.2,) * channels, std=(0.7,) * channels)}
        for part, channels in config.input_features.items()
    }
    normalizer = Normalizer(position_low=(-2.0,) * 3, position_scale=10.0, fields=scales, features=features)
    model = AnchoredBranchedUPT(config)
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: init_params(model, seed=0))  # compiles nothing
    params = jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) * leaf.shape[0] ** -0.5).astype(np.float32), shapes
    )
    return Surrogate(model, params, normalizer, SAMPLING)


@contextmanager
def double_precision() -> Iterator[None]:
    """Makes what the model computes in float32 whatever its dtype float64."""
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
    ):
        patch.setattr(jnp, "float32", jnp.float64)
        patch.setattr("emmi_jax.ops.attention_passes._exp2", _exp2)
        jax.clear_caches()
        yield
    jax.clear_caches()


def _exp2(x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Stands in for the polynomial, which has the digits of float32."""
    return jnp.exp2(x) if mask is None else jnp.where(mask, jnp.exp2(x), 0.0)


def in_double(surrogate: Surrogate) -> Surrogate:
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), surrogate.params)
    return Surrogate(surrogate.model, params, surrogate.normalizer, surrogate.sampling)
