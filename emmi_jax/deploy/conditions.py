"""Named conditions of a case, such as a speed: their scaling to what a model takes, and the range of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .parsing import finite_numbers

KINDS = ("plain", "logarithmic", "angle")
_RADIANS = ("rad", "radian", "radians")


class Scale(Protocol):
    """Scaling of a condition: its unit, kind, trained range, and the statistics of what is scaled."""

    @property
    def unit(self) -> str | None: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def high(self) -> float | None: ...  # noqa: D102
    @property
    def mean(self) -> float: ...  # noqa: D102
    @property
    def std(self) -> float: ...  # noqa: D102


Scales: TypeAlias = Mapping[str, Scale]
"""Scales by the name of the condition."""


class Condition(NamedTuple):
    """A scale as an exported file has it."""

    unit: str | None
    kind: str
    low: float | None
    high: float | None
    mean: float
    std: float


def parse_conditions(values: Mapping[str, Any]) -> dict[str, Condition]:
    """Reads the scales of a manifest; a KeyError, TypeError or ValueError says what is wrong."""
    conditions = {}
    for name, of_name in values.items():
        condition = Condition(**of_name)
        check_scale(name, condition)
        conditions[str(name)] = condition
    return conditions


def check_scale(name: str, scale: Scale) -> None:
    """Refuses a scale that cannot be.

    Raises:
        ValueError: A number is not finite, the deviation is not positive, or the kind is unknown.
    """
    if scale.kind not in KINDS or not isinstance(scale.unit, str | None):
        raise ValueError(f"condition {name!r} must be one of {', '.join(KINDS)}, got {scale.kind!r:.40}")
    finite_numbers(f"the scale of condition {name!r}", [scale.mean, scale.std])
    limits = [limit for limit in (scale.low, scale.high) if limit is not None]
    finite_numbers(f"the range of condition {name!r}", limits)
    if not scale.std > 0 or len(limits) == 1 or limits != sorted(limits):
        raise ValueError(f"condition {name!r} needs a positive deviation and a range, got {scale.std} and {limits}")


def turn(scale: Scale) -> float:
    """Returns a full turn in the unit of an angle."""
    return 2 * math.pi if scale.unit in _RADIANS else 360.0


def wraps(scale: Scale) -> bool:
    """Returns whether an angle comes round: its range spans more than half a turn."""
    if scale.kind != "angle" or scale.low is None or scale.high is None:
        return False
    return scale.high - scale.low > turn(scale) / 2


def condition_dim(scales: Scales) -> int | None:
    """Returns the number of channels that these conditions have together; None if there are none."""
    return sum(2 if wraps(scale) else 1 for scale in scales.values()) or None


def describe(name: str, scale: Scale) -> str:
    """Returns name, unit and trained range, as "yaw [deg], trained from -15 to 15"."""
    unit = "" if scale.unit is None else f" [{scale.unit}]"
    return f"{name}{unit}" + ("" if scale.low is None else f", trained from {scale.low:g} to {scale.high:g}")


def condition_channels(scales: Scales, values: Mapping[str, Any]) -> NDArray[np.float32]:
    """Returns the channels that a model takes, in the order of the scales; the order of the values does not matter.

    Args:
        scales: The scales.
        values: Numbers, or arrays of one shape [...], by name, each in the unit of its condition.

    Returns:
        Array [..., condition_dim].

    Raises:
        ValueError: A condition is missing, unknown or no finite number; the message says what is expected.
    """
    check_names(scales, values)
    channels: list[Any] = []
    for name, scale in scales.items():
        value = _checked(name, scale, values[name])
        if wraps(scale):
            angle = value * (2 * math.pi / turn(scale))
            channels += [np.sin(angle), np.cos(angle)]
        else:
            scaled = np.log(value) if scale.kind == "logarithmic" else within_turn(scale, value)
            channels.append((scaled - scale.mean) / scale.std)
    return np.stack(channels, axis=-1).astype(np.float32) if channels else np.zeros(0, np.float32)


def in_model_units(scales: Scales, condition: Any, condition_dim: Any) -> Any:
    """Returns a condition as the model takes it: numbers by name become channels.

    Raises:
        ValueError: A condition of the run has no value, or a value has no condition.
    """
    if condition is None and scales:
        condition = {}
    if isinstance(condition, Mapping) and (scales or condition_dim is None):
        return condition_channels(scales, condition)
    return condition


def condition_slopes(scales: Scales, values: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Returns the derivative [condition_dim] of the channels by each condition, per unit of it."""
    slopes, start = {}, 0
    for name, scale in scales.items():
        value = float(_checked(name, scale, values[name]))
        slope = np.zeros(condition_dim(scales) or 0)
        if wraps(scale):
            rate = 2 * math.pi / turn(scale)
            slope[start : start + 2] = rate * math.cos(rate * value), -rate * math.sin(rate * value)
            start += 2
        else:
            slope[start] = 1 / (scale.std * (value if scale.kind == "logarithmic" else 1.0))
            start += 1
        slopes[name] = slope.astype(np.float32)
    return slopes


def check_names(scales: Scales, values: Mapping[str, Any]) -> None:
    """Refuses values that are not those of the conditions.

    Raises:
        ValueError: One is missing or unknown; the message has the unit and the trained range of what is missing.
    """
    if missing := [describe(name, scales[name]) for name in sorted(set(scales) - set(values))]:
        given = f"; given: {', '.join(values)}" if values else ""
        raise ValueError(f"the model needs a value of the condition {'; and of '.join(missing)}{given}")
    if unknown := sorted(set(values) - set(scales)):
        raise ValueError(f"the model takes {_listed(scales)}, got a value of {', '.join(map(repr, unknown))}")


def outside_range(scales: Scales, values: Mapping[str, Any]) -> list[str]:
    """Returns what is outside the trained ranges, and by how much, one line each."""
    lines = []
    for name, scale in scales.items():
        if scale.low is None or scale.high is None or wraps(scale):
            continue
        value = float(within_turn(scale, np.float64(values[name])))
        beyond = max(scale.low - value, value - scale.high)
        if beyond > 1e-9 * max(abs(scale.low), abs(scale.high)):
            unit = "" if scale.unit is None else f" {scale.unit}"
            share = beyond / (scale.high - scale.low)
            lines.append(
                f"the condition {name} is {value:g}{unit}, outside the trained range {scale.low:g} … {scale.high:g} by "
                f"{beyond:g}{unit}, {share:.0%} of the range"
            )
    return lines


def _listed(scales: Scales) -> str:
    return f"the conditions {', '.join(sorted(scales))}" if scales else "no condition"


def within_turn(scale: Scale, value: Any) -> Any:
    """Returns an angle within half a turn of the middle of the trained range: 355 degrees are -5 within -15 … 15."""
    if scale.kind != "angle" or scale.low is None or scale.high is None:
        return value
    around = (scale.low + scale.high) / 2
    return value - turn(scale) * np.round((value - around) / turn(scale))


def _checked(name: str, scale: Scale, value: Any) -> NDArray[np.float64]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"the condition {describe(name, scale)}, must be a finite number, got {value!r:.40}")
    if scale.kind == "logarithmic" and not (array > 0).all():
        raise ValueError(f"the condition {describe(name, scale)}, is logarithmic and must be positive, got {value}")
    return array.astype(np.float64)
