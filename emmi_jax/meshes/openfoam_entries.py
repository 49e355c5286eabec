"""Entries of OpenFOAM's dictionaries, and the macros that stand for others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

Tokens: TypeAlias = list[Any]
"""The value of an entry: words as text, and arrays [N, F] for lists of numbers."""

MOST_DEPTH = 20
"""Dictionaries, or macros, inside one another."""


class FoamDict(dict[str, "FoamDict | Tokens"]):
    """A dictionary of OpenFOAM; keys in quotes, which are regular expressions, keep the quotes."""

    def __init__(self, parent: FoamDict | None = None) -> None:
        super().__init__()
        self.parent = parent

    def tokens(self, key: str, depth: int = 0) -> Tokens | None:
        """Returns the value of an entry, macros replaced; None if there is no such entry.

        Raises:
            ValueError: It is computed by a directive, or a macro is unknown.
        """
        value = self.get(key)
        if value is None or isinstance(value, FoamDict):
            return None
        tokens_read: Tokens = []
        for token in value:
            if isinstance(token, str) and token.startswith("#"):
                raise ValueError(f"{key} is computed by {token}")
            if not isinstance(token, str) or not token.startswith("$"):
                tokens_read.append(token)
                continue
            scope, name = self._scope_of(token)
            of_macro = None if scope is None or depth > MOST_DEPTH else scope.tokens(name, depth + 1)
            if of_macro is None:
                raise ValueError(f"{key} is {token}, which is not defined")
            tokens_read += of_macro
        return tokens_read

    def macro(self, token: str) -> FoamDict | None:
        """Returns the dictionary that a macro names, if it is one."""
        scope, name = self._scope_of(token)
        value = None if scope is None else scope.get(name)
        return value if isinstance(value, FoamDict) else None

    def _scope_of(self, token: str) -> tuple[FoamDict | None, str]:
        name, scope = token[1:].strip("{}"), self
        if name[:1] in (":", "!", "/"):
            name = name.lstrip(":!/")
            while scope.parent is not None:
                scope = scope.parent
        elif name.startswith(".."):
            up = len(name) - len(name.lstrip(".")) - 1
            name = name.lstrip(".")
            for _ in range(up):
                scope = scope.parent or scope
        else:
            name = name.lstrip(".")
        *path, last = re.split(r"[./]", name) if name not in scope else [name]
        while (path or [last])[0] not in scope and scope.parent is not None:
            scope = scope.parent
        for step in path:
            below = scope.get(step)
            if not isinstance(below, FoamDict):
                return None, last
            scope = below
        return (scope if last in scope else None), last


def numbers(tokens: Tokens) -> Iterator[float]:
    """Yields the numbers among words and brackets.

    Raises:
        ValueError: A word is no number.
    """
    for token in tokens:
        if token not in ("(", ")"):
            yield float(token)
