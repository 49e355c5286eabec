"""The condition that an option names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from rich.console import Console

from emmi_jax.deploy.conditions import check_names, outside_range
from emmi_jax.inference.inputs import ConditionLike
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.progress import print_warnings

Weighted: TypeAlias = tuple[tuple[float, ConditionLike], ...]
"""Weights and conditions."""


def under_condition(surrogate: Surrogate, text: str | None, console: Console) -> Surrogate:
    """Returns a surrogate whose cases are under a condition, after warnings of values outside the trained ranges.

    Args:
        surrogate: The surrogate.
        text: Such as "speed=40,yaw=5"; None for no condition.
        console: Where warnings are printed.

    Raises:
        ValueError: A condition is missing, unknown or no number.
    """
    values, config = {} if text is None else parse_condition(text), surrogate.model.config
    scales = surrogate.normalizer.conditions
    if config.conditioning_dims is not None:
        return replace(surrogate, condition={name: [value] for name, value in values.items()})
    if not scales and config.condition_dim is not None:
        raise ValueError(
            f"the model takes a condition of {config.condition_dim} numbers that have no names: convert it with "
            "--conditions NAME,…"
        )
    check_names(scales, values)
    print_warnings(outside_range(scales, values), console)
    return replace(surrogate, condition=values or None)


def weighted_conditions(surrogate: Surrogate, texts: Sequence[str], console: Console) -> Weighted:
    """Returns the weights and conditions of texts such as "0.3*yaw=5", after warnings; by default the weight is 1.

    Raises:
        ValueError: A weight is no positive number, or a condition is missing, unknown or no number.
    """
    found = []
    for text in texts:
        weight, is_weighted, condition = text.rpartition("*")
        try:
            number = float(weight) if is_weighted else 1.0
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError(f"a weighted condition has the form 0.3*speed=40,yaw=5, got {text!r}")
        found.append((number, under_condition(surrogate, condition, console).condition or {}))
    return tuple(found)


def under_values(
    surrogate: Surrogate, text: str | None, name: str, values: Sequence[float], console: Console
) -> list[Surrogate]:
    """Returns a surrogate for each value of a condition beside others, after warnings of those outside their ranges.

    Raises:
        ValueError: A condition is missing or unknown, or is given twice.
    """
    others, scales = {} if text is None else parse_condition(text), surrogate.normalizer.conditions
    if name in others:
        raise ValueError(f"the condition {name!r} has a range and a value, got {text!r}")
    under = [{**others, name: value} for value in values]
    for condition in under[:1]:
        check_names(scales, condition)
    print_warnings(dict.fromkeys(line for at in (under[0], under[-1]) for line in outside_range(scales, at)), console)
    return [replace(surrogate, condition=condition) for condition in under]


def parse_condition(text: str) -> dict[str, float]:
    """Parses "speed=40,yaw=5" into numbers by name.

    Raises:
        ValueError: It is not of this form, or a name comes twice.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (word.strip() for word in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = None
        if not name or not equals or value is None or name in values:
            raise ValueError(f"a condition has the form speed=40,yaw=5, got {text!r}")
        values[name] = value
    return values
