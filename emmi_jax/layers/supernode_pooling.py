"""Pooling of a point cloud into supernodes."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from emmi_jax.config import SupernodePoolingConfig
from emmi_jax.layers.linear import Linear, NumericsConfig
from emmi_jax.layers.mlp import gelu
from emmi_jax.ops.neighbors import Neighbors, nearest_neighbors, radius_neighbors
from emmi_jax.ops.sincos import sincos_embedding


class Geometry(NamedTuple):
    """Points of a geometry [B, P, n] and its supernodes [B, M]."""

    position: jax.Array
    supernode_idx: jax.Array
    neighbors: Neighbors | None = None
    features: jax.Array | None = None
    mask: jax.Array | None = None


class SupernodePooling(nn.Module):
    """Each supernode gathers messages from the points around it.

    Args:
        dim: Number of channels C.
        pooling: Neighbourhood and messages.
        config: Where initialisation, dtypes and precision come from.
        max_wavelength: Largest wavelength over 2 pi of the position embeddings.

    Source: Alkin et al. 2024, "Universal physics transformers" (arXiv 2402.12365).
    """

    dim: int
    pooling: SupernodePoolingConfig
    config: NumericsConfig
    max_wavelength: float = 10_000

    @nn.compact
    def __call__(
        self,
        position: jax.Array,
        supernode_idx: jax.Array,
        *,
        features: jax.Array | None = None,
        neighbors: Neighbors | None = None,
    ) -> jax.Array:
        """Pools points into supernodes; one without neighbours pools to zero.

        Args:
            position: Coordinates of the points [B, P, n].
            supernode_idx: Which points are supernodes [B, M].
            features: Point features [B, P, F], given if and only if the configuration says `input_features_dim`.
            neighbors: Points around each supernode [B, M, K], searched for if not given.

        Returns:
            Array [B, M, C].

        Raises:
            ValueError: Features are missing or superfluous, or a shape is wrong.
        """
        pooling = self.pooling
        self._check_features(features, position)
        if neighbors is None:
            neighbors = _find_neighbors(pooling, position, supernode_idx)
        idx, mask = jnp.asarray(neighbors.idx), jnp.asarray(neighbors.mask)
        supernodes = _gather(position, supernode_idx)
        hidden = gelu(self._messages(position, supernodes, supernode_idx, idx, features))
        hidden = jnp.where(mask[..., None], hidden, 0).sum(axis=2)
        degree = mask.sum(axis=2, keepdims=True).astype(hidden.dtype)
        # The second layer is linear, so it acts once a supernode instead of once an edge.
        kernel, bias = _weights(Linear(self.dim, self.config, name="message_2"), self.dim, hidden)
        weight = degree if pooling.aggregation == "sum" else jnp.minimum(degree, 1)
        if pooling.aggregation == "mean":
            hidden = hidden / jnp.maximum(degree, 1)
        pooled = jnp.dot(hidden, kernel, precision=self.config.precision) + weight * bias
        if not pooling.readd_supernode_pos:
            return pooled
        return Linear(self.dim, self.config, name="proj")(
            jnp.concatenate([pooled, self._embed(supernodes, pooled.dtype)], axis=-1)
        )

    def _messages(
        self,
        position: jax.Array,
        supernodes: jax.Array,
        supernode_idx: jax.Array,
        neighbor_idx: jax.Array,
        features: jax.Array | None,
    ) -> jax.Array:
        """Returns the first layer's output of each edge [B, M, K, C].

        A product with a concatenation is a sum of products: what depends on a point alone is multiplied once a point.
        """
        mode, dim = self.pooling.mode, self.dim
        dtype = self.config.dtype or jnp.float32
        relative = None
        if mode != "abspos":
            relative = self._embed(
                _offset_and_distance(supernodes[:, :, None] - _gather(position, neighbor_idx)), dtype
            )
            if mode == "relpos" and features is None:
                return Linear(dim, self.config, name="message_0")(relative)
        point = self._embed(position, dtype)
        if features is not None:
            features = Linear(dim, self.config, name="feature_projection")(features)
            down = Linear(dim, self.config, name="feature_down_projection")
            if mode == "relpos":
                edge = self._edge_linear(down, relative, features, supernode_idx, neighbor_idx)
                return Linear(dim, self.config, name="message_0")(edge)
            point = down(jnp.concatenate([point, features], axis=-1))
        message = Linear(dim, self.config, name="message_0")
        return self._edge_linear(message, relative, point, supernode_idx, neighbor_idx, relative_first=False)

    def _edge_linear(
        self,
        linear: Linear,
        relative: jax.Array | None,
        point: jax.Array,
        supernode_idx: jax.Array,
        neighbor_idx: jax.Array,
        *,
        relative_first: bool = True,
    ) -> jax.Array:
        """Applies a layer to [point(p), point(s)] with the edge's embedding before or behind, or without one."""
        num_parts = 2 if relative is None else 3
        kernel, bias = _weights(linear, num_parts * self.dim, point)
        parts = jnp.split(kernel, num_parts)
        edge_kernel = None if relative is None else parts.pop(0 if relative_first else 2)
        of_point, of_supernode = (jnp.dot(point, part, precision=self.config.precision) for part in parts)
        y = _gather(of_point, neighbor_idx) + _gather(of_supernode, supernode_idx)[:, :, None]
        if edge_kernel is not None and relative is not None:
            y = y + jnp.dot(relative, edge_kernel, precision=self.config.precision)
        return y + bias

    def _embed(self, position: jax.Array, dtype: DTypeLike) -> jax.Array:
        return sincos_embedding(position, self.dim, self.max_wavelength).astype(dtype)

    def _check_features(self, features: jax.Array | None, position: jax.Array) -> None:
        expected = self.pooling.input_features_dim
        if (features is None) != (expected is None):
            state = "missing" if features is None else "given"
            raise ValueError(f"the configuration has input_features_dim={expected} but features are {state}")
        if features is not None and features.shape != (*position.shape[:2], expected):
            raise ValueError(
                f"features must have the shape {[*position.shape[:2], expected]}, got {list(features.shape)}"
            )


def _find_neighbors(pooling: SupernodePoolingConfig, position: jax.Array, supernode_idx: jax.Array) -> Neighbors:
    if pooling.k is not None:
        return nearest_neighbors(position, supernode_idx, k=pooling.k)
    return radius_neighbors(position, supernode_idx, radius=pooling.radius or 0.0, max_degree=pooling.max_degree)


def _weights(linear: Linear, in_features: int, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias in the dtype of the array that they meet."""
    kernel, bias = linear.weights(in_features)
    return kernel.astype(like.dtype), jnp.zeros((), like.dtype) if bias is None else bias.astype(like.dtype)


def _offset_and_distance(offset: jax.Array) -> jax.Array:
    """Returns [offset, |offset|] along the last axis."""
    squared = (offset**2).sum(axis=-1, keepdims=True)
    # sqrt has no derivative at 0, where a supernode meets itself.
    distance = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return jnp.concatenate([offset, distance], axis=-1)


def _gather(points: jax.Array, idx: jax.Array) -> jax.Array:
    """Returns rows of points [B, P, C] at idx [B, ...] as [B, ..., C]."""
    flat = jnp.take_along_axis(points, idx.reshape(idx.shape[0], -1, 1), axis=1, mode="clip")
    return flat.reshape(*idx.shape, points.shape[-1])
