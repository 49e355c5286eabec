"""Scales between physical units and what a model sees, of a live model and of an exported one.

NumPy arrays are computed on in float64 on the host. JAX arrays and tracers are computed on in float32, or float64 if
they are, so derivatives pass through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from .scaling_laws import Law, field_factor


class ChannelScale:
    """Mean and deviation of each channel of a field, of the logarithm where there is one; a base of data classes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_scale: bool
    limit: tuple[float, ...] | None

    def times(self, factor: float) -> Self:
        """Returns the scale of values that are larger by a factor."""
        if factor == 1:
            return self
        if self.log_scale:
            raise ValueError(f"values on a logarithmic scale cannot be divided by {factor:g}")
        mean, std = (tuple(factor * value for value in values) for values in (self.mean, self.std))
        changed: Self = dataclasses.replace(self, mean=mean, std=std)  # type: ignore[type-var]
        return changed

    def normalize(self, values: ArrayLike) -> Any:
        """Maps values [..., F] to mean 0 and deviation 1."""
        self._check(values)
        _, x, mean, std = float_arrays(signed_log1p(values) if self.log_scale else values, self.mean, self.std)
        return (x - mean) / std

    def denormalize(self, values: ArrayLike) -> Any:
        """Inverts `normalize`, up to the limit."""
        self._check(values)
        xp, x, mean, std = float_arrays(values, self.mean, self.std)
        x = x * std + mean
        if self.log_scale:
            sign = _sign(xp, x)
            x = sign * xp.expm1(sign * x)
        if self.limit is None:
            return x
        limit = xp.asarray(self.limit, x.dtype)
        return xp.clip(x, -limit, limit)

    def _check(self, values: ArrayLike) -> None:
        if np.shape(values)[-1:] != (len(self.mean),):
            raise ValueError(f"the scale has {len(self.mean)} channels, the values the shape {list(np.shape(values))}")


class Scales(Protocol):
    """Conversions between physical units and those of a model."""

    @property
    def feature_channels(self) -> Mapping[str, Mapping[str, int]]:
        """Number of channels by branch, or ``geometry``, and feature."""

    @property
    def normalize_position(self) -> Any:
        """Converts positions [..., n] to model units, float32."""

    @property
    def normalize_features(self) -> Any:
        """Converts features [..., C] of a branch, or of ``geometry``, to model units, float32."""

    @property
    def denormalize_field(self) -> Any:
        """Converts a field [..., F] of a branch and name to physical units, float32."""


class CaseScales:
    """Scales of positions, features and fields; a base of data classes."""

    position_low: tuple[float, ...]
    position_scale: float
    fields: Mapping[str, Mapping[str, Any]]
    features: Mapping[str, Mapping[str, Any]]
    nondimensionalize: Law | None

    @property
    def feature_channels(self) -> dict[str, dict[str, int]]:
        """Number of channels by branch, or ``geometry``, and feature."""
        return {part: {name: len(scale.mean) for name, scale in of.items()} for part, of in self.features.items()}

    def under(self, condition: Any) -> Self:
        """Returns the scales of fields in physical units under a condition, given by names.

        Raises:
            ValueError: Fields are relative to a condition that is missing or not positive.
        """
        law = self.nondimensionalize
        if law is None:
            return self
        fields = {
            branch: {name: scale.times(field_factor(name, law, condition)) for name, scale in scales.items()}
            for branch, scales in self.fields.items()
        }
        changed: Self = dataclasses.replace(self, fields=fields, nondimensionalize=None)  # type: ignore[type-var]
        return changed

    def normalize_position(self, position: ArrayLike) -> Any:
        """Converts positions [..., n] to model units, float32."""
        self._check_axes(position)
        xp, x = float_arrays(position)
        # In two parts, as the corner of a box far from the origin is no float32.
        corner = np.array(self.position_low)
        low = corner.astype(x.dtype)
        return _single(((x - xp.asarray(low)) - xp.asarray((corner - low).astype(x.dtype))) * self.position_scale)

    def normalize_field(self, branch: str, name: str, values: ArrayLike) -> Any:
        """Converts a field [..., F] to model units, float32."""
        return _single(self.fields[branch][name].normalize(values))

    def normalize_features(self, branch: str, values: Any) -> Any:
        """Converts features [..., C] of a branch, or of ``geometry``, to model units, float32."""
        parts, start = [], 0
        for scale in self.features[branch].values():
            parts.append(scale.normalize(values[..., start : start + len(scale.mean)]))
            start += len(scale.mean)
        return _single(float_arrays(values)[0].concatenate(parts, axis=-1))

    def denormalize_field(self, branch: str, name: str, values: ArrayLike) -> Any:
        """Converts a field [..., F] to physical units, float32."""
        return _single(self.fields[branch][name].denormalize(values))

    def _check_axes(self, position: ArrayLike) -> None:
        if np.shape(position)[-1:] != (len(self.position_low),):
            shape = list(np.shape(position))
            raise ValueError(f"the normalizer has {len(self.position_low)} axes, the positions the shape {shape}")


def float_arrays(*values: ArrayLike) -> tuple[Any, ...]:
    """Returns the array library to compute with, then the values as its arrays.

    Where a value is a JAX array or a tracer, these are `jax.numpy` and float32, or float64 if one of them is; else
    `numpy` and float64.
    """
    dtypes = {value.dtype for value in values if isinstance(value, jax.Array)}
    xp: Any = jnp if dtypes else np
    dtype: Any = np.float32 if dtypes and np.dtype(np.float64) not in dtypes else np.float64
    return xp, *(xp.asarray(value, dtype) for value in values)


def signed_log1p(values: ArrayLike) -> Any:
    """Maps values to sign(x) log(1 + |x|)."""
    xp, x = float_arrays(values)
    sign = _sign(xp, x)
    return sign * xp.log1p(sign * x)


def _single(values: Any) -> Any:
    """Returns NumPy arrays in float32, and JAX arrays in the dtype that they were computed in."""
    return values if isinstance(values, jax.Array) else values.astype(np.float32)


def _sign(xp: Any, x: Any) -> Any:
    """Returns -1 or 1; not 0 at 0, where the derivative of both logarithmic maps is 1."""
    return xp.where(x < 0, xp.asarray(-1.0, x.dtype), xp.asarray(1.0, x.dtype))
