"""Progress and warnings of long work; commands print them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext


class Report:
    """Says nothing."""

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int, str], object]]:
        """Returns a context in which units that are done are counted, by their number and a text about them."""
        return nullcontext(lambda num, text: None)

    def warn(self, lines: Iterable[str]) -> None:
        """Takes warnings."""


SILENT = Report()
