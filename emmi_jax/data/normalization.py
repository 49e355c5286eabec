"""Scales of a run, measured or chosen; their arithmetic is that of `emmi_jax.deploy.scales`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import Config, FrozenMapping
from emmi_jax.config.conditions import ScalingLaw
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.moments import Moments
from emmi_jax.deploy.parsing import finite_numbers
from emmi_jax.deploy.scales import CaseScales, ChannelScale
from emmi_jax.deploy.scales import signed_log1p as signed_log1p

LOG_SCALED_FIELDS = frozenset({"vorticity", "omega", "epsilon"})
"""Fields whose magnitudes span decades; learned as sign(x) log(1 + |x|)."""

_BOX_MARGIN = 0.01
_Scale = TypeVar("_Scale", bound=Config)


@dataclass(frozen=True, kw_only=True)
class FieldScale(Config, ChannelScale):
    """Mean and standard deviation of each channel of a field, of the logarithm where there is one.

    Args:
        mean: F numbers, in the unit of the field.
        std: F positive numbers, in the unit of the field.
        log_scale: Whether values are first mapped to sign(x) log(1 + |x|).
        limit: Largest magnitude of each of the F channels that `denormalize` returns, in the unit of the field; None
            for no limit.

    Raises:
        ValueError: The numbers of channels differ, or a value is out of range.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_scale: bool = False
    limit: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(mean=finite_numbers("mean", self.mean), std=finite_numbers("std", self.std))
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ValueError(f"expected as many positive deviations as means, got {self.mean} and {self.std}")
        if self.limit is not None:
            self._set(limit=finite_numbers("limit", self.limit))
            if len(self.limit) != len(self.mean) or not all(limit >= 0 for limit in self.limit):
                raise ValueError(f"expected one limit >= 0 for each of {len(self.mean)} channels, got {self.limit}")

    @classmethod
    def of(
        cls,
        moments: Moments,
        compressed: Moments | None = None,
        *,
        common_std: bool = False,
        mask_nan: bool = False,
    ) -> FieldScale:
        """Returns the scale of values with these statistics; a constant channel gets the deviation 1.

        Log-scaled values are limited to the largest measured magnitude: beyond it, a small error of the logarithm would
        exceed the whole field.

        Args:
            moments: Statistics of the values.
            compressed: Statistics of the values after `signed_log1p`, for a logarithmic scale.
            common_std: Whether all channels get one deviation, the root mean square of theirs. A field is then free of
                divergence in model units exactly if it is in physical units, provided there is no logarithm.
            mask_nan: Whether values that are not finite are left out.

        Raises:
            ValueError: A value is not finite, and not masked; or none is.
        """
        if not moments.count or (moments.num_not_finite and not mask_nan):
            raise ValueError(
                f"expected finite values, got {moments.count} finite rows and {moments.num_not_finite} not"
            )
        scaled = moments if compressed is None else compressed
        std = np.full_like(scaled.std, np.sqrt(np.square(scaled.std).mean())) if common_std else scaled.std
        return cls(
            mean=tuple(scaled.mean),
            std=tuple(np.where(std > 0, std, 1.0)),
            log_scale=compressed is not None,
            limit=None if compressed is None else tuple(np.maximum(-moments.minimum, moments.maximum)),
        )


@dataclass(frozen=True, kw_only=True)
class Normalizer(Config, CaseScales):
    """Scales of positions and of every field.

    Positions map to `(x - position_low) * position_scale`, with the same scale on every axis to preserve angles.

    Args:
        position_low: n numbers, the lowest corner of the box, in the unit of the positions.
        position_scale: Model units per unit of position.
        fields: `FieldScale` by branch and field.
        position_high: The highest corner of the box; None if it is unknown.
        conditions: `ConditionScale` by name, if a case has conditions.
        nondimensionalize: Which of them fields are relative to: their scales are those of coefficients; see `under`.
        features: `FieldScale` by branch, or ``geometry``, and name of what the model takes beside positions, in order.

    Raises:
        ValueError: The corners do not match, or a value is out of range.
    """

    position_low: tuple[float, ...]
    position_scale: float
    fields: Mapping[str, Mapping[str, FieldScale]]
    position_high: tuple[float, ...] | None = None
    conditions: Mapping[str, ConditionScale] = field(default_factory=dict)
    nondimensionalize: ScalingLaw | None = None
    features: Mapping[str, Mapping[str, FieldScale]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(
            position_low=finite_numbers("position_low", self.position_low),
            position_scale=finite_numbers("position_scale", [self.position_scale])[0],
            fields=FrozenMapping({branch: _scales(FieldScale, scales) for branch, scales in self.fields.items()}),
            conditions=FrozenMapping(_scales(ConditionScale, self.conditions)),
            features=FrozenMapping({branch: _scales(FieldScale, scales) for branch, scales in self.features.items()}),
        )
        if self.nondimensionalize is not None:
            self.nondimensionalize.check(self.conditions)
        if self.position_high is not None:
            self._set(position_high=finite_numbers("position_high", self.position_high))
            if len(self.position_high) != len(self.position_low):
                raise ValueError(f"the corners {self.position_low} and {self.position_high} have different dimensions")
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
        features: Mapping[str, Mapping[str, FieldScale]] = FrozenMapping({}),
    ) -> Normalizer:
        """Returns the normalizer that maps the longest side of a box to 0 … `position_range`."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        extent = float((high - low).max())
        if not extent > 0:
            raise ValueError(f"all positions coincide: the box is {low.tolist()} … {high.tolist()}")
        return cls(
            position_low=tuple(low),
            position_scale=position_range / extent,
            fields=fields,
            position_high=tuple(high),
            features=features,
        )

    @property
    def means(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Mean [F] by branch and field, in the unit of the field; on a logarithmic scale, that of the logarithm."""
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
            divergence_free: Fields whose scales must preserve zero divergence.

        Raises:
            ValueError: A field has no scale, or an unsuitable one.
        """
        for branch, names in fields.items():
            for name, channels in names.items():
                scale = self.fields.get(branch, {}).get(name)
                if scale is None:
                    known = [f"{b}/{n}" for b, scales in self.fields.items() for n in scales]
                    raise ValueError(
                        f"the statistics lack {branch}/{name}, they are those of {', '.join(known) or 'no field'}"
                    )
                if len(scale.mean) != channels:
                    raise ValueError(
                        f"the statistics of {branch}/{name} have {len(scale.mean)} channels, the data have {channels}"
                    )
                if name in divergence_free and (scale.log_scale or len(set(scale.std)) > 1):
                    kind = "a logarithmic scale" if scale.log_scale else f"the deviations {list(scale.std)}"
                    raise ValueError(
                        f"{branch}/{name} cannot be divergence-free under statistics with {kind}: expected one "
                        "deviation for all channels"
                    )
        scales = {branch: {name: self.fields[branch][name] for name in names} for branch, names in fields.items()}
        return replace(self, fields=scales)

    def for_features(self, features: Mapping[str, Mapping[str, int]]) -> Normalizer:
        """Returns the scales of these features alone, in this order.

        Args:
            features: Number of channels by branch, or ``geometry``, and name.

        Raises:
            ValueError: A feature has no scale, or one of another number of channels.
        """
        known = self.feature_channels
        for part, names in features.items():
            for name, channels in names.items():
                if (measured := known.get(part, {}).get(name)) != channels:
                    has = "lack" if measured is None else f"have {measured} channels for"
                    raise ValueError(f"the statistics {has} the feature {name!r} of {part!r}, the data {channels}")
        scales = {part: {name: self.features[part][name] for name in names} for part, names in features.items()}
        return replace(self, features=scales)

    def check_features(self, channels: Mapping[str, int]) -> None:
        """Refuses scales of other features than a model takes.

        Args:
            channels: Number of channels by branch, or ``geometry``.

        Raises:
            ValueError: They differ.
        """
        measured = {branch: sum(names.values()) for branch, names in self.feature_channels.items()}
        if measured != dict(channels):
            raise ValueError(f"the model takes features of {dict(channels)} channels, the statistics have {measured}")

    def num_outside(self, position: ArrayLike) -> int:
        """Counts the positions [N, n] outside the box by more than 1 % of its longest side; 0 if it is unknown."""
        return int(np.count_nonzero(self.is_outside(position)))

    def is_outside(self, position: ArrayLike) -> NDArray[np.bool_]:
        """Returns which positions [N, n] are outside the box by more than 1 % of its longest side; none if unknown."""
        self._check_axes(position)
        x = np.asarray(position)
        if self.position_high is None:
            return np.zeros(len(x), bool)
        low, high = np.array(self.position_low), np.array(self.position_high)
        margin = _BOX_MARGIN * (high - low).max()
        outside: NDArray[np.bool_] = ((x < low - margin) | (x > high + margin)).any(axis=-1)
        return outside


def _scales(kind: type[_Scale], scales: Mapping[str, Any]) -> dict[str, _Scale]:
    return {name: scale if isinstance(scale, kind) else kind.from_dict(scale) for name, scale in scales.items()}
