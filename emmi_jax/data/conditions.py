"""Conditions of cases, and how they are scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from emmi_jax.config import Config
from emmi_jax.config.setting import setting
from emmi_jax.deploy.conditions import KINDS, check_scale, turn
from emmi_jax.deploy.parsing import finite_numbers


class CaseCondition(NamedTuple):
    """A condition of one case.

    Attributes:
        value: In its unit.
        unit: Such as "m/s"; None if it has none or it is unknown.
        kind: One of `KINDS`.
    """

    value: float
    unit: str | None = None
    kind: str = "plain"


Conditions = Mapping[str, CaseCondition]
"""The conditions of a case by name."""


def condition_values(conditions: Conditions, scales: Mapping[str, ConditionScale]) -> dict[str, float] | None:
    """Returns the values of the conditions of a case that a run takes; None if it takes none.

    Raises:
        ValueError: One is missing or has another unit.
    """
    for name, scale in scales.items():
        if name not in conditions:
            raise ValueError(f"no condition {name!r}")
        if (unit := conditions[name].unit) != scale.unit and None not in (unit, scale.unit):
            raise ValueError(f"the condition {name!r} is in {unit}, the run takes it in {scale.unit}")
    return {name: conditions[name].value for name in scales} or None


def parse_stored_conditions(values: Any) -> dict[str, CaseCondition]:
    """Returns the conditions of a case from JSON: by name what `_asdict` gives.

    Raises:
        ValueError: They are of another form.
    """
    try:
        conditions = {str(name): CaseCondition(**condition) for name, condition in values.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"expected conditions by name: {error}") from None
    for name, (value, unit, kind) in conditions.items():
        if kind not in KINDS or not isinstance(unit, str | None):
            raise ValueError(f"the condition {name!r} must have a unit and be one of {', '.join(KINDS)}")
        finite_numbers(f"the condition {name!r}", [value])
    return conditions


@dataclass(frozen=True, kw_only=True)
class ConditionScale(Config):
    """Scale of a condition, which reaches the model as (x - mean) / std, of its logarithm where it is logarithmic.

    An angle whose range spans more than half a turn reaches it as sine and cosine.
    """

    unit: str | None = setting(None, "Its unit, such as m/s or deg.")
    kind: str = setting("plain", "plain, logarithmic or angle (in degrees, or in rad).", choices=KINDS)
    low: float | None = setting(None, "Smallest value in training; none if it is unknown.")
    high: float | None = setting(None, "Largest value in training; none if it is unknown.")
    mean: float = setting(0.0, "Mean in training, of the logarithm where it is logarithmic.")
    std: float = setting(1.0, "Standard deviation in training.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale("of a run", self)

    @classmethod
    def of(cls, name: str, conditions: Mapping[str, CaseCondition]) -> ConditionScale:
        """Returns the scale of a condition with these values by training case.

        Raises:
            ValueError: It is constant, or not positive where it is logarithmic, or the units or kinds differ.
        """
        first, *_ = conditions.values()
        values = np.array([condition.value for condition in conditions.values()])
        if differing := {(c.unit, c.kind) for c in conditions.values()} - {(first.unit, first.kind)}:
            unit, kind = min(differing, key=str)
            raise ValueError(
                f"the condition {name!r} is in {first.unit} and {first.kind} in {next(iter(conditions))}, and in "
                f"{unit} and {kind} elsewhere: expected one unit and kind"
            )
        low, high = float(values.min()), float(values.max())
        is_constant = not high - low > 1e-9 * max(abs(low), abs(high))
        if first.kind == "angle":
            turned = (values - low) / turn(cls(unit=first.unit))  # by whole turns, it is the same direction
            is_constant |= bool(np.allclose(turned, np.round(turned), rtol=0, atol=1e-9))
        if is_constant:
            raise ValueError(
                f"the condition {name!r} is {low:g} in all {len(values)} training cases, so that nothing can be "
                f"learned of it: leave it out, or train on cases where it differs"
            )
        if first.kind == "logarithmic":
            if low <= 0:
                case = min(conditions, key=lambda case: conditions[case].value)
                raise ValueError(f"{case}: the condition {name!r} is logarithmic and must be positive, got {low:g}")
            values = np.log(values)
        return cls(
            unit=first.unit, kind=first.kind, low=low, high=high, mean=float(values.mean()), std=float(values.std())
        )

    @classmethod
    def uniform(cls, low: float, high: float, *, unit: str, kind: str) -> ConditionScale:
        """Returns the scale of values that are uniform between two limits."""
        std = (high - low) / math.sqrt(12)
        return cls(unit=unit, kind=kind, low=low, high=high, mean=(low + high) / 2, std=std)


def measure_conditions(by_case: Mapping[str, Conditions]) -> dict[str, ConditionScale]:
    """Returns the scales of the conditions of training cases, which all have the same.

    Raises:
        ValueError: A condition is constant or has several units.
    """
    names = sorted({name for conditions in by_case.values() for name in conditions})
    return {name: ConditionScale.of(name, {case: of_case[name] for case, of_case in by_case.items()}) for name in names}
