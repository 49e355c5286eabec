"""How closely numbers must agree, by dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike


class Tolerance(NamedTuple):
    """Largest allowed difference, relative to the largest expected entry, of outputs and of gradients."""

    forward: float
    gradient: float


TOLERANCES = {"float32": Tolerance(1e-5, 1e-4), "bfloat16": Tolerance(2**-6, 2**-5)}


def assert_close(actual: ArrayLike, expected: ArrayLike, tolerance: float, *, largest: float | None = None) -> None:
    """Compares shapes and entries; `largest` stands in for the largest entry of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max(initial=0.0)
    largest = largest_entry([expected]) if largest is None else largest
    assert error <= tolerance * largest, f"error {error:.2e}, largest entry {largest:.2e}, tolerance {tolerance:.0e}"


def largest_entry(arrays: Sequence[ArrayLike]) -> float:
    return max(float(np.abs(np.asarray(array, np.float64)).max(initial=0.0)) for array in arrays)
