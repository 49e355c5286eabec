"""Vectors on the command line."""

from __future__ import annotations


def parse_vector(option: str, text: str) -> tuple[float, float, float]:
    """Returns the numbers of a text such as "1,0,0".

    Raises:
        ValueError: There are not three; the message names the option.
    """
    try:
        x, y, z = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be three numbers with commas between them, got {text!r}") from None
    return x, y, z
