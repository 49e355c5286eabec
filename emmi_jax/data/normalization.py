"""Scales between physical units and what a model sees."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import Config, FrozenMapping
from emmi_jax.data.moments import Moments

LOG_SCALED_FIELDS = frozenset({"vorticity"})
"""Fields whose magnitudes span decades; learned as sign(x) log(1 + |x|)."""

_BOX_MARGIN = 0.01


@dataclass(frozen=True, kw_only=True)
class FieldScale(Config):
    """Mean and standard deviation of each channel of a field, after the logarithm where there is one.

    Args:
        mean: F numbers, in the unit of the field.
        std: F positive numbers, in the unit of the field.
        log_scale: Whether values are first taken to sign(x) log(1 + |x|).
        limit: F largest magnitudes that `denormalize` returns, in the unit of the field; None for no limit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_scale: bool = False
    limit: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._set(mean=tuple(map(float, self.mean)), std=tuple(map(float, self.std)))
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(f"expected as many positive deviations as means, got {self.mean} and {self.std}")
        if self.limit is not None:
            self._set(limit=tuple(map(float, self.limit)))
            if len(self.limit) != len(self.mean) or not all(limit >= 0 for limit in self.limit):
                raise ValueError(f"expected one limit >= 0 for each of {len(self.mean)} channels, got {self.limit}")

    @classmethod
    def fit(cls, values: ArrayLike, *, log_scale: bool = False, common_std: bool = False) -> FieldScale:
        """Measures the scale of values [N, F]; a constant channel keeps the deviation 1.

        Log-scaled values are limited to the largest measured magnitude: a small error of the logarithm beyond it would
        be larger than the whole field.

        Args:
            values: The values, in the unit of the field.
            log_scale: Whether to take their logarithm first.
            common_std: Whether all channels get one deviation, the root mean square of theirs. Then, without a
                logarithm, a field without divergence has none in model units either, and the other way round.
        """
        return cls.fit_chunks([values], log_scale=log_scale, common_std=common_std)

    @classmethod
    def fit_chunks(
        cls, chunks: Iterable[ArrayLike], *, log_scale: bool = False, common_std: bool = False
    ) -> FieldScale:
        """Measures the scale of values that come in pieces [n_i, F], in one pass; up to rounding that of the whole."""
        if not log_scale:
            return cls.of(Moments.of_chunks(chunks), common_std=common_std)
        plain, compressed = zip(*((Moments.of(x), Moments.of(compress(x))) for x in chunks), strict=True)
        return cls.of(reduce(Moments.merge, plain), reduce(Moments.merge, compressed), common_std=common_std)

    @classmethod
    def of(cls, moments: Moments, compressed: Moments | None = None, *, common_std: bool = False) -> FieldScale:
        """Takes the scale from statistics.

        Args:
            moments: Those of the values.
            compressed: Those of the values after `compress`, for a logarithmic scale.
            common_std: See `fit`.

        Raises:
            ValueError: A value was not finite, or there was none.
        """
        if moments.num_not_finite or not moments.count:
            raise ValueError(
                f"expected finite values, got {moments.count} rows that are and {moments.num_not_finite} that are not"
            )
        scaled = moments if compressed is None else compressed
        std = np.full_like(scaled.std, np.sqrt(np.square(scaled.std).mean())) if common_std else scaled.std
        return cls(
            mean=tuple(scaled.mean),
            std=tuple(np.where(std > 0, std, 1.0)),
            log_scale=compressed is not None,
            limit=None if compressed is None else tuple(np.maximum(-moments.minimum, moments.maximum)),
        )

    def normalize(self, values: ArrayLike) -> NDArray[np.float64]:
        """Takes values [..., F] to mean 0 and deviation 1."""
        x = np.asarray(values, dtype=np.float64)
        normalized: NDArray[np.float64] = ((compress(x) if self.log_scale else x) - self.mean) / self.std
        return normalized

    def denormalize(self, values: ArrayLike) -> NDArray[np.float64]:
        """Inverts `normalize`, up to the limit."""
        x: NDArray[np.float64] = np.asarray(values, dtype=np.float64) * self.std + self.mean
        if self.log_scale:
            x = np.sign(x) * np.expm1(np.abs(x))
        return x if self.limit is None else np.clip(x, np.negative(self.limit), self.limit)


@dataclass(frozen=True, kw_only=True)
class Normalizer(Config):
    """Scales of positions and of every field.

    Positions map to `(x - position_low) * position_scale`, the same scale for every axis, so that angles survive.

    Args:
        position_low: n numbers, the lowest corner of the box, in the unit of the positions.
        position_scale: Model units a unit of position.
        fields: `FieldScale` by branch and field.
        position_high: The highest corner of the box; None if it is not known.
    """

    position_low: tuple[float, ...]
    position_scale: float
    fields: Mapping[str, Mapping[str, FieldScale]]
    position_high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._set(
            position_low=tuple(map(float, self.position_low)),
            position_scale=float(self.position_scale),
            fields=FrozenMapping({branch: _field_scales(scales) for branch, scales in self.fields.items()}),
        )
        if self.position_high is not None:
            self._set(position_high=tuple(map(float, self.position_high)))
            if len(self.position_high) != len(self.position_low):
                raise ValueError(f"the box {self.position_low} … {self.position_high} has corners of different spaces")
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
        return cls(
            position_low=tuple(low), position_scale=position_range / extent, fields=fields, position_high=tuple(high)
        )

    @property
    def means(self) -> dict[str, dict[str, NDArray[np.floating[Any]]]]:
        """Mean [F] by branch and field, in the unit of the field; on a logarithmic scale that of the logarithm."""
        return {
            branch: {name: scale.denormalize(np.zeros(len(scale.mean))) for name, scale in scales.items()}
            for branch, scales in self.fields.items()
        }

    def for_fields(
        self, fields: Mapping[str, Mapping[str, int]], *, divergence_free: Collection[str] = ()
    ) -> Normalizer:
        """Returns the scales of these fields alone.

        Args:
            fields: Number of channels by branch and field.
            divergence_free: Fields whose scales must keep the divergence zero.

        Raises:
            ValueError: A field has no scale, or one that does not fit.
        """
        for branch, names in fields.items():
            for name, channels in names.items():
                scale = self.fields.get(branch, {}).get(name)
                if scale is None:
                    known = [f"{b}/{n}" for b, scales in self.fields.items() for n in scales]
                    raise ValueError(f"the statistics lack {branch}/{name}, they are those of {', '.join(known)}")
                if len(scale.mean) != channels:
                    raise ValueError(
                        f"the statistics of {branch}/{name} have {len(scale.mean)} channels, the data have {channels}"
                    )
                if name in divergence_free and (scale.log_scale or len(set(scale.std)) > 1):
                    kind = "a logarithmic scale" if scale.log_scale else f"the deviations {list(scale.std)}"
                    raise ValueError(
                        f"{branch}/{name} cannot be without divergence under statistics with {kind}: expected one "
                        "deviation for all channels"
                    )
        scales = {branch: {name: self.fields[branch][name] for name in names} for branch, names in fields.items()}
        return replace(self, fields=scales)

    def num_outside(self, position: ArrayLike) -> int:
        """Counts the positions [N, n] outside the box by more than 1 % of its longest side; 0 if it is not known."""
        if self.position_high is None:
            return 0
        x, low, high = np.asarray(position), np.array(self.position_low), np.array(self.position_high)
        margin = _BOX_MARGIN * (high - low).max()
        return int(np.count_nonzero(((x < low - margin) | (x > high + margin)).any(axis=-1)))

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


def compress(values: ArrayLike) -> NDArray[np.float64]:
    """Takes values to sign(x) log(1 + |x|), float64."""
    x = np.asarray(values, dtype=np.float64)
    compressed: NDArray[np.float64] = np.sign(x) * np.log1p(np.abs(x))
    return compressed
