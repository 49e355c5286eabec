"""Names from files made safe for a terminal: their control characters are escaped."""

from __future__ import annotations


def printable(text: str) -> str:
    """Returns text in which control characters are escaped, so that no name moves the cursor or changes colours."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
