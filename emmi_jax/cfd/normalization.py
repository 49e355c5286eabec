"""Scales between physical units and what a model sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import Config, FrozenMapping

LOG_SCALED_FIELDS = frozenset({"vorticity"})
"""Fields whose magnitudes span decades; learned as sign(x) log(1 + |x|)."""


@dataclass(frozen=True, kw_only=True)
class FieldScale(Config):
    """Mean and standard deviation of each channel of a field, after the logarithm where there is one.

    Args:
        mean: F numbers, in the unit of the field.
        std: F positive numbers, in the unit of the field.
        log_scale: Whether values are first taken to sign(x) log(1 + |x|).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_scale: bool = False

    def __post_init__(self) -> None:
        self._set(mean=tuple(map(float, self.mean)), std=tuple(map(float, self.std)))
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(f"expected as many positive deviations as means, got {self.mean} and {self.std}")

    @classmethod
    def fit(cls, values: ArrayLike, *, log_scale: bool = False, common_std: bool = False) -> FieldScale:
        """Measures the scale of values [N, F]; a constant channel keeps the deviation 1.

        Args:
            values: The values, in the unit of the field.
            log_scale: Whether to take their logarithm first.
            common_std: Whether all channels get one deviation, the root mean square of theirs. Then, without a
                logarithm, a field without divergence has none in model units either, and the other way round.
        """
        x = np.asarray(values, dtype=np.float64)
        x = _compress(x) if log_scale else x
        std = x.std(axis=0)
        std = np.full_like(std, np.sqrt(np.square(std).mean())) if common_std else std
        return cls(mean=tuple(x.mean(axis=0)), std=tuple(np.where(std > 0, std, 1.0)), log_scale=log_scale)

    def normalize(self, values: ArrayLike) -> NDArray[np.float64]:
        """Takes values [..., F] to mean 0 and deviation 1."""
        x = np.asarray(values, dtype=np.float64)
        normalized: NDArray[np.float64] = ((_compress(x) if self.log_scale else x) - self.mean) / self.std
        return normalized

    def denormalize(self, values: ArrayLike) -> NDArray[np.float64]:
        """Inverts `normalize`."""
        x: NDArray[np.float64] = np.asarray(values, dtype=np.float64) * self.std + self.mean
        return np.sign(x) * np.expm1(np.abs(x)) if self.log_scale else x


@dataclass(frozen=True, kw_only=True)
class Normalizer(Config):
    """Scales of positions and of every field.

    Positions map to `(x - position_low) * position_scale`, the same scale for every axis, so that angles survive.

    Args:
        position_low: n numbers, the lowest corner of the box, in the unit of the positions.
        position_scale: Model units a unit of position.
        fields: `FieldScale` by branch and field.
    """

    position_low: tuple[float, ...]
    position_scale: float
    fields: Mapping[str, Mapping[str, FieldScale]]

    def __post_init__(self) -> None:
        self._set(
            position_low=tuple(map(float, self.position_low)),
            position_scale=float(self.position_scale),
            fields=FrozenMapping({branch: _field_scales(scales) for branch, scales in self.fields.items()}),
        )
        if not self.position_scale > 0:
            raise ValueError(f"position_scale must be positive, got {self.position_scale}")

    @classmethod
    def from_box(
        cls,
        low: ArrayLike,
        high: ArrayLike,
        *,
        position_range: float,
        fields: Mapping[str, Mapping[str, FieldScale]],
    ) -> Normalizer:
        """Builds the normaliser that takes the longest side of a box to 0 … `position_range`."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        extent = float((high - low).max())
        if not extent > 0:
            raise ValueError(f"all positions coincide: the box is {low.tolist()} … {high.tolist()}")
        return cls(position_low=tuple(low), position_scale=position_range / extent, fields=fields)

    def normalize_position(self, position: ArrayLike) -> NDArray[np.float32]:
        """Takes positions [..., n] to model units."""
        shifted = np.asarray(position, dtype=np.float64) - self.position_low
        return (shifted * self.position_scale).astype(np.float32)

    def normalize_field(self, branch: str, name: str, values: ArrayLike) -> NDArray[np.float32]:
        """Takes a field [..., F] to model units."""
        return self.fields[branch][name].normalize(values).astype(np.float32)

    def denormalize_field(self, branch: str, name: str, values: ArrayLike) -> NDArray[np.float32]:
        """Takes a field [..., F] back to physical units."""
        return self.fields[branch][name].denormalize(values).astype(np.float32)


def _field_scales(scales: Mapping[str, Any]) -> dict[str, FieldScale]:
    return {
        name: scale if isinstance(scale, FieldScale) else FieldScale.from_dict(scale) for name, scale in scales.items()
    }


def _compress(x: NDArray[np.float64]) -> NDArray[np.float64]:
    compressed: NDArray[np.float64] = np.sign(x) * np.log1p(np.abs(x))
    return compressed
