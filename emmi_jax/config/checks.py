"""Checks of the values in configurations; each error quotes the value."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_MAX_NAME = 150

LARGEST_SIZE = 2**26
"""The most points, channels or neighbours of anything."""

_LARGEST = 1e38


def is_number(value: Any) -> bool:
    """Returns whether the value is a finite number; booleans are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_count(name: str, value: Any, minimum: int = 1, maximum: float = LARGEST_SIZE) -> None:
    """Refuses all but integers in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r:.80}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value!r:.80}")


def check_rate(name: str, value: Any) -> None:
    """Refuses all but numbers in [0, 1)."""
    if not is_number(value) or not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Refuses all but positive finite numbers."""
    if not is_number(value) or value <= 0:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def check_not_negative(name: str, value: Any) -> None:
    """Refuses all but finite numbers of at least 0."""
    if not is_number(value) or value < 0:
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}")


def check_between(name: str, value: Any, low: float, high: float, *, exclusive: bool = False) -> None:
    """Refuses all but numbers in a range; as float32, which neither overflows nor rounds to an end."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    value32 = float(np.float32(value)) if is_real and abs(value) < _LARGEST else math.nan
    if not (low < value32 < high if exclusive else low <= value32 <= high):
        expected = "positive" if exclusive else f"a number from {low} to {high}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_finite(name: str, value: Any) -> None:
    """Refuses all but finite numbers."""
    if not is_number(value):
        raise ValueError(f"{name} must be a finite number or None, got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuses all but the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_name(what: str, value: Any, forbidden: str = "/") -> None:
    """Refuses all but non-empty strings without the forbidden characters, which files can be named after."""
    if not isinstance(value, str) or not value or set(forbidden) & set(value):
        characters = " or ".join(repr(character) for character in forbidden)
        raise ValueError(f"{what} must be a non-empty string without {characters}, got {value!r}")
    if len(value.encode(errors="replace")) > _MAX_NAME or "\0" in value:
        raise ValueError(f"{what} must be at most {_MAX_NAME} bytes long, without NUL, got {value!r:.80}")


def as_names(what: str, value: Any) -> tuple[str, ...]:
    """Returns a sequence of names as a tuple; refuses a bare string."""
    names = () if isinstance(value, str | Mapping) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(name, str) for name in names) or (not names and value not in ((), [])):
        raise ValueError(f"{what} must be a sequence of names, got {value!r}")
    return names


def check_mlp(mlp_ratio: Any, mlp_hidden_dim: Any) -> None:
    """Refuses all but positive integers, one of which may be None."""
    if mlp_ratio is None and mlp_hidden_dim is None:
        raise ValueError("one of mlp_ratio and mlp_hidden_dim must be set, got mlp_ratio=None and mlp_hidden_dim=None")
    for name, value in (("mlp_ratio", mlp_ratio), ("mlp_hidden_dim", mlp_hidden_dim)):
        if value is not None:
            check_count(name, value)


def check_heads(dim: Any, num_heads: Any) -> None:
    """Refuses sizes that do not divide into heads."""
    check_count("dim", dim)
    check_count("num_heads", num_heads)
    if dim % num_heads:
        raise ValueError(f"dim must be divisible by num_heads, got dim={dim} and num_heads={num_heads}")
