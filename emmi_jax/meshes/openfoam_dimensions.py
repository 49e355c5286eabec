"""Dimensions of OpenFOAM's fields: seven or five numbers, names and units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ENTRY = re.compile(r"(?<![\w.])dimensions\s*(?:\[([^\]]*)\]|([A-Za-z]\w*))\s*;")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_WORD = re.compile(r"\s*([A-Za-z]\w*|[-+]?\d[\d.]*(?:[eE][-+]?\d+)?|[*/^()])")
_NAMED = {
    "dimless": (), "mass": (1,), "kg": (1,), "length": (0, 1), "m": (0, 1), "time": (0, 0, 1), "s": (0, 0, 1),
    "temperature": (0, 0, 0, 1), "K": (0, 0, 0, 1), "moles": (0, 0, 0, 0, 1), "mol": (0, 0, 0, 0, 1),
    "kmol": (0, 0, 0, 0, 1), "current": (0, 0, 0, 0, 0, 1), "A": (0, 0, 0, 0, 0, 1),
    "luminousIntensity": (0, 0, 0, 0, 0, 0, 1), "Cd": (0, 0, 0, 0, 0, 0, 1), "cd": (0, 0, 0, 0, 0, 0, 1),
    "area": (0, 2), "volume": (0, 3), "rate": (0, 0, -1), "Hz": (0, 0, -1), "velocity": (0, 1, -1),
    "momentum": (1, 1, -1), "acceleration": (0, 1, -2), "density": (1, -3), "force": (1, 1, -2), "N": (1, 1, -2),
    "energy": (1, 2, -2), "J": (1, 2, -2), "power": (1, 2, -3), "W": (1, 2, -3), "pressure": (1, -1, -2),
    "Pa": (1, -1, -2), "kinematicPressure": (0, 2, -2), "compressibility": (0, -2, 2), "gasConstant": (0, 2, -2, -1),
    "specificHeatCapacity": (0, 2, -2, -1), "kinematicViscosity": (0, 2, -1), "dynamicViscosity": (1, -1, -1),
    "thermalConductivity": (1, 1, -3, -1), "volumetricFlux": (0, 3, -1), "massFlux": (1, 0, -1),
}  # fmt: skip
"""Exponents of kg, m, s, K, mol, A and cd, up to the last that is not zero."""


class Dimensions(NamedTuple):
    """Dimensions as they are written, and the exponents of kg, m, s, K, mol, A and cd; none if they are not known."""

    written: str
    exponents: tuple[float, ...]


def read_dimensions(text: str) -> Dimensions:
    """Reads the entry `dimensions` of a field.

    Args:
        text: A field file up to its values.
    """
    entry = _ENTRY.search(_COMMENT.sub(" ", text))
    if entry is None:
        return Dimensions("none", ())
    written = entry[2] if entry[1] is None else entry[1]
    shown = written if entry[1] is None else f"[{' '.join(written.split())}]"
    words = _WORD.findall(written)
    if "".join(words) != "".join(written.split()):
        return Dimensions(shown, ())
    try:
        numbers = None if any(word[0].isalpha() for word in words) else [float(word) for word in words]
        if numbers is None:
            exponents = _product(words)
            return Dimensions(shown, tuple(exponents.tolist()) if not words else ())
        return Dimensions(shown, tuple(_seven(numbers).tolist()) if len(numbers) in (0, 5, 7) else ())
    except (KeyError, IndexError, ValueError):
        return Dimensions(shown, ())


def _product(words: list[str]) -> NDArray[np.float64]:
    """Returns the exponents of factors up to a closing bracket, and takes their words away."""
    total, sign = np.zeros(7), 1.0
    while words and words[0] != ")":
        word = words.pop(0)
        if word in "*/":
            sign = -1.0 if word == "/" else 1.0
            continue
        factor = _product(words) if word == "(" else _seven(_NAMED[word])
        if word == "(":
            words.pop(0)
        if words[:1] == ["^"]:
            factor = factor * float(words[1])
            del words[:2]
        total, sign = total + sign * factor, 1.0
    return total


def _seven(exponents: Sequence[float]) -> NDArray[np.float64]:
    return np.array([*exponents, *[0.0] * (7 - len(exponents))])
