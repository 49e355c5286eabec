"""The arrays that describe one case, checked on the host and given the model's batch axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.data.normalization import Normalizer
from emmi_jax.inference.chunks import to_model_units
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.ops.neighbors import Neighbors


def case_inputs(
    config: AbUptConfig,
    anchors: Mapping[str, ArrayLike],
    geometry: Geometry | None,
    condition: ArrayLike | None,
    anchor_masks: Mapping[str, ArrayLike] | None,
    normalizer: Normalizer | None,
) -> dict[str, Any]:
    """Returns the keyword arguments of the model's call for one case, in model units; see `encode`.

    Raises:
        ValueError: An array has the wrong shape or dtype, a value is not finite, or an index is out of range.
    """
    axes = config.num_position_axes
    if normalizer is not None:
        normalizer = normalizer.for_fields(config.fields)
    inputs: dict[str, Any] = {
        "anchors": {b: to_model_units(f"the anchor {b}", a, axes, normalizer)[None] for b, a in anchors.items()},
        "condition": condition_input(condition),
    }
    if geometry is not None:
        inputs["geometry"] = _geometry_input(geometry, axes, normalizer)
    if anchor_masks is not None:
        inputs["anchor_masks"] = {b: _array(f"the anchor mask {b}", m, "b", 1)[None] for b, m in anchor_masks.items()}
    return inputs


def condition_input(condition: ArrayLike | None) -> NDArray[np.float32] | None:
    """Returns a condition [condition_dim] as [1, condition_dim] in float32."""
    if condition is None:
        return None
    values = _array("condition", condition, "fiu", 1).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"condition must be finite, got {values.tolist()}")
    return values[None]


def _geometry_input(geometry: Geometry, num_axes: int, normalizer: Normalizer | None) -> Geometry:
    position = to_model_units("the geometry", geometry.position, num_axes, normalizer)
    supernode_idx = _array("supernode_idx", geometry.supernode_idx, "iu", 1)
    mask = None if geometry.mask is None else _array("the geometry mask", geometry.mask, "b", 1)
    features = None if geometry.features is None else _array("geometry features", geometry.features, "fiu", 2)
    if mask is not None and mask.shape != supernode_idx.shape:
        raise ValueError(f"the geometry mask must have the shape {list(supernode_idx.shape)}, got {list(mask.shape)}")
    _check_range("supernode_idx", supernode_idx, mask, len(position))
    neighbors = geometry.neighbors
    if neighbors is not None:
        idx, is_neighbor = (
            _array("neighbor idx", neighbors.idx, "iu", 2),
            _array("neighbor mask", neighbors.mask, "b", 2),
        )
        if is_neighbor.shape != idx.shape:
            raise ValueError(f"the neighbor mask must have the shape {list(idx.shape)}, got {list(is_neighbor.shape)}")
        _check_range("neighbor idx", idx, is_neighbor, len(position))
        neighbors = Neighbors(idx.astype(np.int32), is_neighbor)
    if features is not None:
        features = features.astype(np.float32)
    checked = Geometry(position, supernode_idx.astype(np.int32), neighbors, features, mask)
    return jax.tree.map(lambda array: array[None], checked)


def _array(what: str, value: ArrayLike, kinds: str, num_axes: int) -> NDArray[Any]:
    """Returns a host array of this many axes whose dtype is of one of NumPy's kinds."""
    dtype = getattr(value, "dtype", None)
    array = np.asarray(value) if dtype is None or isinstance(dtype, np.dtype) else None
    if array is None or array.ndim != num_axes or array.dtype.kind not in kinds:
        names = {"f": "floats", "i": "integers", "u": "integers", "b": "booleans"}
        found = type(value).__name__ if array is None else f"{array.dtype} of shape {list(array.shape)}"
        expected = " or ".join(dict.fromkeys(names[kind] for kind in kinds))
        raise ValueError(f"{what} must be an array of {expected} with {num_axes} axes, got {found}")
    return array


def _check_range(what: str, idx: NDArray[Any], mask: NDArray[Any] | None, num_points: int) -> None:
    is_outside = (idx < 0) | (idx >= num_points)
    if mask is not None:
        is_outside &= mask
    if is_outside.any():
        first = idx[is_outside][0]
        raise ValueError(f"{what} must lie in 0 … {num_points - 1}, the points of the geometry, got {first}")
