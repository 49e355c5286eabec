"""The condition that an option names: parsed, checked, and announced where it is outside of the trained range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from rich.console import Console

from emmi_jax.deploy.conditions import check_names, outside_range
from emmi_jax.deploy.surrogate import ConditionLike
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
    given = {} if text is None else parse_condition(text)
    return replace(surrogate, condition=_checked(surrogate, given, console) or None)


def weighted_conditions(surrogate: Surrogate, texts: Sequence[str], console: Console) -> Weighted:
    """Returns the weights and conditions of texts such as "0.3*yaw=5", after warnings; by default the weight is 1.

    Raises:
        ValueError: A weight is no positive number, or a condition is missing, unknown or no number.
    """
    weighted = []
    for text in texts:
        weight, is_weighted, condition = text.rpartition("*")
        try:
            number = float(weight) if is_weighted else 1.0
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError(f"a weighted condition has the form 0.3*speed=40,yaw=5, got {text!r}")
        weighted.append((number, under_condition(surrogate, condition, console).condition or {}))
    return tuple(weighted)


def under_values(
    surrogate: Surrogate, text: str | None, name: str, values: Sequence[float], console: Console
) -> list[Surrogate]:
    """Returns a surrogate for each value of a condition beside others, after warnings of those outside their ranges.

    Raises:
        ValueError: A condition is missing or unknown, or is given twice.
    """
    others = {} if text is None else parse_condition(text)
    if name in others:
        raise ValueError(f"the condition {name!r} has a range and a value, got {text!r}")
    quiet = Console(quiet=True)
    of_ends = {0: console, len(values) - 1: console}
    return [
        replace(surrogate, condition=_checked(surrogate, {**others, name: (value,)}, of_ends.get(number, quiet)))
        for number, value in enumerate(values)
    ]


def _checked(surrogate: Surrogate, given: Mapping[str, Sequence[float]], console: Console) -> dict[str, Any]:
    """Returns a condition as a surrogate takes it, after warnings of values outside the trained ranges."""
    scales, config = surrogate.normalizer.conditions, surrogate.model.config
    sizes = config.named_conditions if config.conditioning_dims is not None else dict.fromkeys(scales, 1)
    if not sizes and config.condition_dim is not None:
        raise ValueError(
            f"the model takes a condition of {config.condition_dim} numbers that have no names: convert it with "
            "--conditions NAME,…"
        )
    if config.conditioning_dims is None:
        check_names(scales, given)
    elif set(given) != set(sizes):
        takes = ", ".join(f"{name} ({size})" for name, size in sorted(sizes.items()))
        raise ValueError(f"the model takes the conditions {takes}, got {', '.join(sorted(given)) or 'none'}")
    for name, numbers in given.items():
        if len(numbers) != sizes[name]:
            number = "1 number" if sizes[name] == 1 else f"{sizes[name]} numbers"
            raise ValueError(f"the condition {name!r} has {number}, got {list(numbers)}")
    if config.conditioning_dims is not None:
        return {name: list(numbers) for name, numbers in given.items()}
    values = {name: numbers[0] for name, numbers in given.items()}
    print_warnings(outside_range(scales, values), console)
    return values


def parse_condition(text: str) -> dict[str, tuple[float, ...]]:
    """Parses "speed=40,yaw=5" into numbers by name; a condition of several has commas between them, "wind=1,0,2,yaw=5".

    Raises:
        ValueError: It is not of this form, or a name comes twice.
    """
    values: dict[str, tuple[float, ...]] = {}
    name = ""
    for part in text.split(","):
        before, equals, number = (word.strip() for word in part.rpartition("="))
        is_new = bool(equals)
        name = before if is_new else name
        try:
            value = float(number)
        except ValueError:
            value = None
        if not name or value is None or is_new == (name in values):
            raise ValueError(f"a condition has the form speed=40,yaw=5, got {text!r}")
        values[name] = (*values.get(name, ()), value)
    return values
