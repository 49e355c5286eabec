"""Frozen, hashable configurations that convert to JSON and back."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, get_type_hints

import jax.numpy as jnp
import numpy as np

from emmi_jax.config.setting import checked, declared, documented, kind_of

_V = TypeVar("_V")


class FrozenMapping(Mapping[str, _V], Generic[_V]):
    """A hashable mapping whose order matters: the order of branches is part of a model."""

    def __init__(self, items: Mapping[str, _V]) -> None:
        self._items: dict[str, Any] = {
            key: FrozenMapping(value) if isinstance(value, Mapping) else _plain(value) for key, value in items.items()
        }

    def __getitem__(self, key: str) -> _V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def as_mapping(what: str, value: Any) -> FrozenMapping[Any]:
    """Returns a frozen copy; refuses all but mappings."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a mapping, got {value!r}")
    return FrozenMapping(value)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations: conversion to and from plain JSON values.

    A mapping that is given for a configuration becomes one.

    Raises:
        ValueError: A flag is not a boolean, or a setting is out of its range.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__doc__ = documented(cls)

    def __post_init__(self) -> None:
        cls: Any = type(self)
        hints = type_hints(cls)
        for field in dataclasses.fields(self):
            value, (kind, is_optional), spec = (
                _plain(getattr(self, field.name)),
                kind_of(hints[field.name]),
                declared(field),
            )
            is_nested = isinstance(kind, type) and issubclass(kind, Config)
            if is_nested and isinstance(value, Mapping):
                value = kind.from_dict(value)
            if kind is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name} must be True or False, got {value!r}")
            if is_nested and not isinstance(value, kind) and not (value is None and is_optional):
                raise ValueError(f"{field.name} must be a mapping, got {value!r}")
            self._set(**{field.name: value if spec is None else checked(field.name, value, hints[field.name], spec)})

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON values: dtypes by name, nested configurations as dicts."""
        return {field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a configuration from the output of `to_dict`.

        Raises:
            ValueError: A key is missing or unknown; the message names it, and the closest known key.
        """
        known = [field.name for field in dataclasses.fields(cls) if field.init]
        for key in values:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown key {key!r} for {cls.__name__}; did you mean {nearest!r}?")
        for field in dataclasses.fields(cls):
            has_default = {field.default, field.default_factory} != {dataclasses.MISSING}
            if field.init and not has_default and field.name not in values:
                raise ValueError(f"{cls.__name__} lacks the key {field.name!r}")
        return cls(**values)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@functools.cache
def type_hints(cls: type) -> dict[str, Any]:
    """Returns the types of the fields of a configuration."""
    return get_type_hints(cls)


def _plain(value: Any) -> Any:
    """Returns a NumPy scalar as the Python number that it holds."""
    return value.item() if isinstance(value, np.generic) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, jnp.dtype):
        return value.name
    return value
