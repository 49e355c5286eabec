"""Pooling of a point cloud into supernodes."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from emmi_jax.config import NumericsConfig, SupernodePoolingConfig
from emmi_jax.deploy.draws import Geometry as Geometry
from emmi_jax.layers.linear import Linear
from emmi_jax.layers.mlp import gelu
from emmi_jax.ops.arrays import AnyArray, check_array, is_concrete, over_channels, safe_norm
from emmi_jax.ops.neighbors import Neighbors, nearest_neighbors, radius_neighbors
from emmi_jax.ops.neighbors_host import nearest_neighbors_host, radius_neighbors_host
from emmi_jax.ops.sharding import partition_automatically
from emmi_jax.ops.sincos import sincos_embedding


def check_geometry(geometry: Geometry, num_position_axes: int | str = "n", features_dim: int | None = None) -> None:
    """Checks dtypes and shapes, and those indices whose values are known.

    Args:
        geometry: The geometry.
        num_position_axes: Number of position axes; a string stands for any.
        features_dim: Channels of the point features; None means that there must be none.

    Raises:
        ValueError: An array has the wrong dtype or shape, features are missing or superfluous, or the index of a real
            supernode or neighbour is not that of a point.
    """
    position, idx, neighbors, features, mask = geometry
    check_array("geometry.position", position, "float32", ("batch", "points", num_position_axes))
    batch, num_points = position.shape[:2]
    check_array("geometry.supernode_idx", idx, "integer", (batch, "supernodes"))
    if mask is not None:
        check_array("geometry.mask", mask, "bool", idx.shape)
    _check_indices("geometry.supernode_idx", idx, mask, num_points)
    if neighbors is not None:
        check_array("geometry.neighbors.idx", neighbors.idx, "integer", (*idx.shape, "K"))
        check_array("geometry.neighbors.mask", neighbors.mask, "bool", neighbors.idx.shape)
        _check_indices("geometry.neighbors.idx", neighbors.idx, neighbors.mask, num_points)
    if (features is None) != (features_dim is None):
        state = "missing" if features is None else "given"
        raise ValueError(f"the configuration has input_features_dim={features_dim} but geometry.features are {state}")
    if features is not None and features_dim is not None:
        check_array("geometry.features", features, "floating point", (batch, num_points, features_dim))


def _check_indices(name: str, idx: AnyArray, mask: AnyArray | None, num_points: int) -> None:
    if not is_concrete(idx) or not is_concrete(mask):
        return
    outside = (np.asarray(idx) < 0) | (np.asarray(idx) >= num_points)
    if mask is not None:
        outside &= np.asarray(mask)
    if outside.any():
        wrong = np.asarray(idx)[outside][0]
        raise ValueError(f"{name} must lie in [0, {num_points}) where it is not masked, got {wrong}")


def supernodes(geometry: Geometry) -> tuple[jax.Array, jax.Array]:
    """Returns the positions of the supernodes [B, M, n], and which of them are real [B, M].

    A supernode is not real if it is masked, if its index is not that of a point, or if its point is absent; then its
    position is 0.
    """
    idx = geometry.supernode_idx
    position = _gather(jnp.asarray(geometry.position), idx)
    is_real = _is_inside(idx, geometry) & _is_present(position)
    if geometry.mask is not None:
        is_real &= geometry.mask
    return jnp.where(is_real[..., None], position, 0), is_real


def search_neighbors(
    position: AnyArray, supernode_idx: AnyArray, pooling: SupernodePoolingConfig, *, on_host: bool = False
) -> Neighbors:
    """Returns the points around supernodes; the host finds the same as the device.

    Args:
        position: Coordinates [..., P, n]; on the host, NumPy arrays.
        supernode_idx: Indices [..., M]; on the device, -1 has no neighbours.
        pooling: The neighbourhood.
        on_host: Whether to search on the host.
    """
    if pooling.k is not None:
        return (nearest_neighbors_host if on_host else nearest_neighbors)(position, supernode_idx, k=pooling.k)
    search = radius_neighbors_host if on_host else radius_neighbors
    return search(position, supernode_idx, radius=pooling.radius or 0.0, max_degree=pooling.max_degree)


class SupernodePooling(nn.Module):
    """Each supernode gathers messages from the points around it.

    Args:
        dim: Number of channels C.
        pooling: Neighbourhood and messages.
        config: Source of initialisation, dtypes and precision.

    Source: Alkin et al. 2024, "Universal physics transformers" (arXiv 2402.12365).
    """

    dim: int
    pooling: SupernodePoolingConfig
    config: NumericsConfig

    @nn.compact
    def __call__(self, geometry: Geometry) -> jax.Array:
        """Pools points into supernodes; one that has no neighbours, or is not real, pools to zero.

        Args:
            geometry: The points and which of them are supernodes.

        Returns:
            Array [B, M, C]; with messages that are pooled as they are, `pooling.out_dim(C)` channels.

        Raises:
            ValueError: The geometry does not fit the configuration; see `check_geometry`.
        """
        check_geometry(geometry, features_dim=self.pooling.input_features_dim)
        centers, is_real = supernodes(geometry)
        neighbors = self._neighbors(geometry, is_real)
        # A gradient through NaN stays NaN, even behind a mask.
        is_present = _is_present(geometry.position)[..., None]
        position = jnp.where(is_present, geometry.position, 0)
        features = None if geometry.features is None else jnp.where(is_present, geometry.features, 0)
        relative = self._relative(position, centers, neighbors.idx)
        point = self._embed(position)
        if features is not None:
            features = self._linear("feature_projection")(features)
            down = self._linear("feature_down_projection")
            if relative is None:
                point = down(jnp.concatenate([point, features], axis=-1))
            else:
                relative = self._edge_linear(down, relative, features, geometry.supernode_idx, neighbors.idx)
        pooled = self._pool(relative, point, geometry.supernode_idx, neighbors)
        if not self.pooling.readd_supernode_pos:
            return pooled
        is_in_point = features is not None and self.pooling.mode == "abspos"
        own = _gather(point, geometry.supernode_idx) if is_in_point else self._embed(centers)
        return self._linear("proj")(jnp.concatenate([pooled, own.astype(pooled.dtype)], axis=-1))

    def _neighbors(self, geometry: Geometry, is_real: jax.Array) -> Neighbors:
        """Returns the neighbours of the real supernodes."""
        pooling, position, given = self.pooling, geometry.position, geometry.neighbors
        if given is not None:
            is_point = _is_inside(given.idx, geometry) & _gather(_is_present(position)[..., None], given.idx)[..., 0]
            return Neighbors(_as_idx(given.idx), given.mask & is_point & is_real[..., None])
        idx = jnp.where(is_real, _as_idx(geometry.supernode_idx), -1)
        return search_neighbors(position, idx, pooling)

    def _relative(self, position: jax.Array, centers: jax.Array, neighbor_idx: jax.Array) -> jax.Array | None:
        """Returns the embedding [B, M, K, C] of each edge, if messages hold it."""
        if self.pooling.mode == "abspos":
            return None
        return self._embed(_with_distance(centers[:, :, None] - _gather(position, neighbor_idx)))

    def _pool(
        self, relative: jax.Array | None, point: jax.Array, supernode_idx: AnyArray, neighbors: Neighbors
    ) -> jax.Array:
        """Returns the sum or mean over the neighbours of what becomes of each message."""
        mode = self.pooling.message_mode
        if mode == "identity":
            parts = [] if self.pooling.mode == "relpos" else [_gather(point, neighbors.idx)]
            parts += [jnp.broadcast_to(_gather(point, supernode_idx)[:, :, None], part.shape) for part in parts]
            parts += [] if relative is None else [relative]
            return self._sum_or_mean(jnp.concatenate(parts, axis=-1), neighbors.mask)
        first = self._linear("message_0" if mode == "mlp" else "message")
        if relative is not None and self.pooling.mode == "relpos":
            messages = first(relative)
        else:
            messages = self._edge_linear(first, relative, point, supernode_idx, neighbors.idx, relative_first=False)
        return self._sum_or_mean(messages, neighbors.mask) if mode == "linear" else self._second(messages, neighbors)

    def _edge_linear(
        self,
        linear: Linear,
        relative: jax.Array | None,
        point: jax.Array,
        supernode_idx: AnyArray,
        neighbor_idx: jax.Array,
        *,
        relative_first: bool = True,
    ) -> jax.Array:
        """Applies a layer to [point(p), point(s)], with the embedding of the edge before or after it, or without.

        A product with a concatenation is a sum of products: what depends on a point alone is multiplied once per point.
        """
        num_parts = 2 if relative is None else 3
        kernel, bias = _weights(linear, num_parts * self.dim, point)
        parts = jnp.split(kernel, num_parts)
        edge_kernel = None if relative is None else parts.pop(0 if relative_first else 2)
        of_point, of_supernode = (jnp.dot(point, part, precision=self.config.precision) for part in parts)
        y = _gather(of_point, neighbor_idx) + _gather(of_supernode, supernode_idx)[:, :, None]
        if edge_kernel is not None and relative is not None:
            y = y + jnp.dot(relative, edge_kernel, precision=self.config.precision)
        return y + over_channels(bias, y)

    def _second(self, messages: jax.Array, neighbors: Neighbors) -> jax.Array:
        """Applies GELU and the second layer to [B, M, K, C] and takes the sum or mean over the neighbours [B, M, C]."""
        hidden = self._sum_or_mean(gelu(messages), neighbors.mask)
        degree = neighbors.mask.sum(axis=2, keepdims=True).astype(hidden.dtype)
        # The second layer is linear, so it acts once per supernode instead of once per edge.
        kernel, bias = _weights(self._linear("message_2"), self.dim, hidden)
        weight = degree if self.pooling.aggregation == "sum" else jnp.minimum(degree, 1)
        return jnp.dot(hidden, kernel, precision=self.config.precision) + weight * over_channels(bias, weight)

    def _sum_or_mean(self, messages: jax.Array, mask: jax.Array) -> jax.Array:
        total = jnp.where(mask[..., None], messages, 0).sum(axis=2)
        if self.pooling.aggregation == "sum":
            return total
        return total / jnp.maximum(mask.sum(axis=2, keepdims=True).astype(total.dtype), 1)

    def _linear(self, name: str) -> Linear:
        return Linear(self.dim, self.config, self.pooling.bias, name=name)

    def _embed(self, position: jax.Array) -> jax.Array:
        embedded = sincos_embedding(position, self.dim, self.pooling.max_wavelength)
        return embedded.astype(self.config.dtype or embedded.dtype)


def _weights(linear: Linear, in_features: int, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias in the dtype of the array that they are applied to."""
    kernel, bias = linear.weights(in_features)
    return kernel.astype(like.dtype), jnp.zeros((1,), like.dtype) if bias is None else bias.astype(like.dtype)


def _with_distance(offset: jax.Array) -> jax.Array:
    """Returns [offset, |offset|] along the last axis."""
    return jnp.concatenate([offset, safe_norm(offset)[..., None]], axis=-1)


def _is_inside(idx: AnyArray, geometry: Geometry) -> jax.Array:
    idx = _as_idx(idx)
    return (idx >= 0) & (idx < geometry.position.shape[1])


def _is_present(position: AnyArray) -> jax.Array:
    return jnp.isfinite(position).all(axis=-1)


def _gather(points: AnyArray, idx: AnyArray) -> jax.Array:
    """Returns rows of points [B, P, C] at idx [B, ...] as [B, ..., C]; an index outside gets some row."""
    points, idx = jnp.asarray(points), _as_idx(idx)
    gather = jax.vmap(lambda rows, at: rows.at[at].get(mode="clip"))
    spec = P(*jax.typeof(idx).sharding.spec, *[None] * (points.ndim - 2))
    return partition_automatically(gather, spec, points, idx)(points, idx)


def _as_idx(idx: AnyArray) -> jax.Array:
    """Returns indices in int32: the number of points may be none of an int8."""
    return jnp.asarray(idx).astype(jnp.int32)
