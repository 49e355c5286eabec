"""Divisors that leave fields without a unit: powers of the speed and the density of the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

_PRESSURE = (2, 1, 0.5)
LAWS: Mapping[str, tuple[int, int, float]] = {
    "velocity": (1, 0, 1.0),
    "k": (2, 0, 1.0),
    "p": _PRESSURE,
    "pressure": _PRESSURE,
    "total_pressure": _PRESSURE,
    "wallshearstress": _PRESSURE,
    "wall_shear_stress": _PRESSURE,
}
"""By field the powers of speed and density, and the factor before them; other fields stay as they are."""


class Law(Protocol):
    """Names of the conditions that fields are relative to; a density of None is 1."""

    @property
    def speed(self) -> str: ...  # noqa: D102
    @property
    def density(self) -> str | None: ...  # noqa: D102


def field_factor(field: str, law: Law, condition: Mapping[str, Any] | None) -> float:
    """Returns the unit that a field has under a condition: U for velocities, ρU²/2 for pressures and shear stresses.

    Args:
        field: Its name.
        law: The names of the conditions.
        condition: The values of the conditions, by name.

    Raises:
        ValueError: The speed or the density is missing or not positive.
    """
    if field not in LAWS:
        return 1.0
    of_speed, of_density, factor = LAWS[field]
    return factor * _value(law.speed, condition) ** of_speed * _value(law.density, condition) ** of_density


def _value(name: str | None, condition: Mapping[str, Any] | None) -> float:
    if name is None:
        return 1.0
    if not isinstance(condition, Mapping) or name not in condition:
        raise ValueError(f"fields are relative to the condition {name!r}: give the conditions by their names")
    value = float(condition[name])
    if not 0 < value < math.inf:
        raise ValueError(f"fields are relative to the condition {name!r}, which must be positive, got {value:g}")
    return value
