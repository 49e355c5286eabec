"""How far a prediction is: a bar on a screen, a few lines in a pipe."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_NUM_LINES = 10


class PredictionProgress:
    """Shows points done, points per second and the time left while it is entered.

    Args:
        console: Where to write; on a terminal a bar is redrawn, else about ten lines come in all.
        num_points: Points in all.
    """

    def __init__(self, console: Console, num_points: int) -> None:
        self._console, self._num_points, self._done = console, num_points, 0
        # The first call of the model compiles it, so the pace counts from its end.
        self._first: tuple[int, float] | None = None
        self._bar = Progress(
            TextColumn("{task.fields[text]}"), BarColumn(bar_width=None), console=console, expand=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=num_points, text=f"{num_points:,} points, compiling …")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, num_points: int) -> None:
        """Counts points that are done."""
        before, self._done = self._done, self._done + num_points
        now = time.monotonic()
        text = f"{self._done:,}/{self._num_points:,} points  {self._pace(now)}"
        if self._first is None:
            self._first = self._done, now
        self._bar.update(self._task, completed=self._done, text=text)
        tenth = self._num_points / _NUM_LINES
        if not self._console.is_terminal and (self._done // tenth > before // tenth or self._done == self._num_points):
            self._console.print(text, highlight=False)

    def _pace(self, now: float) -> str:
        if self._first is None or now <= self._first[1]:
            return "…"
        pace = (self._done - self._first[0]) / (now - self._first[1])
        minutes, seconds = divmod(round((self._num_points - self._done) / pace), 60) if pace else (0, 0)
        return f"{pace:,.0f} points/s  {minutes}:{seconds:02d} left"
