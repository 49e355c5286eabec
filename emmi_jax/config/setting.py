"""Settings: a field's range, option and meaning are declared where its name, type and default are."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple, Union, get_args, get_origin

from emmi_jax.config.checks import LARGEST_SIZE, as_names, check_between, check_choice, check_count

_KEY = "setting"


class Setting(NamedTuple):
    """Declarations beside name, type and default.

    Args:
        help: What it means, in one sentence.
        low: Smallest value.
        high: Largest value.
        positive: Whether 0 is too small.
        choices: The names that it may be.
        check: Refuses what is out of another kind of range, by the name and the value.
        label: Its name in messages.
        noun: What a text is, in messages.
        option: Its name on the command line, "" for an argument; None derives it from the field, or leaves a setting of
            training to --set.
        metavar: What stands for the value there; None is that of its type.
        of: The configuration whose settings a mapping holds.
    """

    help: str
    low: float | None = None
    high: float = math.inf
    positive: bool = False
    choices: tuple[str, ...] = ()
    check: Callable[[str, Any], None] | None = None
    label: str | None = None
    noun: str = "a string"
    option: str | None = None
    metavar: str | None = None
    of: Any = None


def setting(default: Any, help: str, **declared: Any) -> Any:
    """Declares a field of a configuration.

    Args:
        default: Its default; a callable makes it, and `dataclasses.MISSING` requires a value.
        help: What it means, in one sentence.
        **declared: Further arguments of `Setting`.
    """
    metadata = {_KEY: Setting(help, **declared)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declared(field: dataclasses.Field[Any]) -> Setting | None:
    """Returns what is declared of a field."""
    return field.metadata.get(_KEY)


def documented(cls: type) -> str:
    """Returns the docstring of a class whose settings, and those of its bases, are listed among its arguments."""
    fields: dict[str, Any] = {}
    for base in reversed(cls.__mro__):  # not yet a dataclass itself
        fields |= vars(base).get("__dataclass_fields__", {}) if base is not cls else vars(cls)
    given = {name: field.metadata[_KEY] for name, field in fields.items() if _is_declared(field)}
    lines = [f"    {name}: {' '.join(_sentences(spec))}" for name, spec in given.items()]
    head, raises, errors = inspect.cleandoc(cls.__doc__ or "").partition("\nRaises:")
    if lines and "\nArgs:" not in head:
        lines.insert(0, "\nArgs:")
    return "\n".join([head.rstrip(), *lines]) + f"\n{raises}{errors}"


def _is_declared(field: Any) -> bool:
    return isinstance(field, dataclasses.Field) and _KEY in field.metadata


def _sentences(spec: Setting) -> list[str]:
    sentences = [spec.help.replace(", see above", "")]
    if spec.positive:
        sentences.append("Positive.")
    elif spec.low is not None:
        sentences.append(f"At least {spec.low}." if spec.high == math.inf else f"From {spec.low} to {spec.high}.")
    return sentences


def kind_of(hint: Any) -> tuple[Any, bool]:
    """Returns a type without None, and whether None is allowed."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
    return kinds[0], len(kinds) < len(get_args(hint))


def checked(name: str, value: Any, hint: Any, spec: Setting) -> Any:
    """Returns a value as its field holds it.

    Raises:
        ValueError: It is of another type or out of range; the message quotes it.
    """
    kind, is_optional = kind_of(hint)
    name = spec.label or name
    if value is None and is_optional:
        return None
    if spec.check is not None:
        spec.check(name, value)
    elif kind is int:
        if spec.low is None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be an integer, got {value!r}")
        if spec.low is not None:
            check_count(name, value, int(spec.low), LARGEST_SIZE if spec.high == math.inf else spec.high)
    elif kind is float and (spec.low is not None or spec.positive):
        check_between(name, value, spec.low or 0, spec.high, exclusive=spec.positive)
    elif kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    elif spec.choices:
        check_choice(name, value, spec.choices)
    elif kind is str and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} must be {spec.noun}{' or none' if is_optional else ''}, got {value!r}")
    elif get_origin(kind) is tuple:
        return tuple(value) if str not in get_args(kind) else as_names(name, value)
    return value
