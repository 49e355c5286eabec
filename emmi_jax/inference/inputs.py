"""The arrays that describe one case, checked on the host and given the model's batch axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.data.normalization import Normalizer
from emmi_jax.deploy.case import check_not_empty
from emmi_jax.deploy.draws import check_unmasked
from emmi_jax.deploy.features import GEOMETRY
from emmi_jax.deploy.scales import Scales
from emmi_jax.deploy.streaming import model_positions
from emmi_jax.deploy.surrogate import ConditionLike
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.models.inputs import Tokens, check_inputs


class _ModelUnits(NamedTuple):
    """Stands for scales where all is in model units already."""

    feature_channels: Mapping[str, Mapping[str, int]]

    def normalize_position(self, position: Any) -> NDArray[np.float32]:
        return np.asarray(position, np.float32)

    def normalize_features(self, part: str, values: Any) -> Any:
        return values

    def denormalize_field(self, branch: str, name: str, values: Any) -> Any:
        return values


def scales_of(config: AbUptConfig, normalizer: Normalizer | None) -> Scales:
    """Returns the scales of a normalizer, or those of model units."""
    if normalizer is not None:
        return normalizer.for_fields(config.fields)
    return _ModelUnits({part: {"channels": size} for part, size in config.input_features.items()})


def case_inputs(
    config: AbUptConfig,
    anchors: Mapping[str, ArrayLike],
    geometry: Geometry | None,
    condition: ConditionLike | None,
    anchor_masks: Mapping[str, ArrayLike] | None,
    anchor_features: Mapping[str, ArrayLike] | None,
    normalizer: Normalizer | None,
) -> dict[str, Any]:
    """Returns the keyword arguments of the model's call for one case, in model units; see `encode`.

    Raises:
        ValueError: An array has the wrong shape or dtype, a value is not finite, or an index is out of range.
    """
    axes = config.num_position_axes
    scales = scales_of(config, normalizer)

    def in_model_units(what: str, position: Any) -> NDArray[np.float32]:
        return model_positions(what, position, axes, scales.normalize_position)

    if geometry is not None:
        position = in_model_units("the geometry", geometry.position)
        # The other leaves may be lists, which are no leaves to JAX.
        geometry = Geometry(position, *(_host("geometry", leaf) for leaf in geometry[1:]))
        if geometry.features is not None:
            geometry = geometry._replace(features=features_input(GEOMETRY, geometry.features, normalizer))
        geometry = jax.tree.map(lambda array: array[None], geometry)
    inputs: dict[str, Any] = {
        "anchors": {b: in_model_units(f"the anchor {b}", a)[None] for b, a in anchors.items()},
        "geometry": geometry,
        "condition": condition_input(condition),
        "anchor_masks": {b: _host(f"anchor_masks[{b!r}]", m)[None] for b, m in (anchor_masks or {}).items()},
        "anchor_features": {b: features_input(b, a, normalizer)[None] for b, a in (anchor_features or {}).items()},
    }
    tokens = Tokens(inputs["anchors"], {}, inputs["anchor_features"], {})
    check_inputs(config, tokens, geometry, inputs["condition"], inputs["anchor_masks"])
    masks = inputs["anchor_masks"]
    unbatched = None if geometry is None else jax.tree.map(lambda array: array[0], geometry)
    check_not_empty({b: a[0] for b, a in inputs["anchors"].items()}, unbatched, lambda branch: masks.get(branch))
    return inputs


def condition_input(condition: ConditionLike | None) -> Any:
    """Returns a condition [condition_dim], or one by name each, as [1, condition_dim] in float32."""
    if condition is None:
        return None
    if isinstance(condition, Mapping):
        return {name: _finite(f"condition[{name!r}]", values)[None] for name, values in condition.items()}
    return _finite("condition", condition)[None]


def features_input(branch: str, features: ArrayLike, normalizer: Normalizer | None) -> NDArray[np.float32]:
    """Returns the features [T, channels] of tokens, or of points of the geometry, in model units and float32."""
    values = _finite(f"the features of {branch!r}", features)
    if normalizer is None:
        return values
    if branch not in normalizer.features:
        raise ValueError(f"the statistics lack the features of {branch!r}")
    scaled: NDArray[np.float32] = normalizer.normalize_features(branch, values)
    return scaled


def _finite(what: str, value: Any) -> NDArray[np.float32]:
    values = _host(what, value)
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(
            f"{what} must hold finite numbers, got {values.tolist() if values.size < 20 else values.dtype}"
        )
    return np.asarray(values, np.float32)


def _host(what: str, value: Any) -> Any:
    """Returns lists, numbers, and the arrays of NumPy and JAX as NumPy arrays, in tuples too."""
    if value is None or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return value and type(value)(*(_host(what, leaf) for leaf in value))
    if not isinstance(value, list | tuple | int | float | np.ndarray | jax.Array):
        raise ValueError(f"{what} must be an array, got {type(value).__module__}.{type(value).__name__}")
    check_unmasked(what, value)
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
