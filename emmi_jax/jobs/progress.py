"""Output of the commands: progress, tables and warnings."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from emmi_jax.config import Sampling
from emmi_jax.data.metrics import Metrics
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.notes import Box, box_warnings
from emmi_jax.files.names import printable
from emmi_jax.points import row_chunks

_NUM_LINES = 20
_PACE_WINDOW = 50
_DIGITS = re.compile(r"\d[\d,]*|parts?")
_HEADINGS = {"relative_l2": "rel. L2", "relative_l1": "rel. L1", "mae": "MAE", "r2": "R²"}


def say(console: Console, text: str) -> None:
    """Prints text with names of files, fields and cases as they are, on lines of any length."""
    console.print(printable(text), soft_wrap=True, markup=False, emoji=False, highlight=False)


class ProgressBar:
    """Shows what is done, the pace and the time left: a bar on a terminal, about twenty lines elsewhere.

    Args:
        console: Where to print.
        total: How many units there are.
        unit: What is counted.
        start: Units that were done before.
    """

    def __init__(self, console: Console, total: int, *, unit: str = "points", start: int = 0) -> None:
        self._console, self._total, self._unit, self._done = console, total, unit, start
        # Times are taken after a call of the model, so the first one, which compiles it, does not count.
        self._times: deque[tuple[int, float]] = deque(maxlen=_PACE_WINDOW)
        self._bar = Progress(
            TextColumn("{task.fields[text]}", markup=False), BarColumn(bar_width=None), console=console, expand=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=start, text=f"{total:,} {unit}, compiling …")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, num: int, text: str = "") -> None:
        """Counts units that are done; `text` tells more about them."""
        before, self._done = self._done, self._done + num
        self._times.append((self._done, time.monotonic()))
        total = f"{self._total:,}"
        line = "  ".join(filter(None, (f"{self._done:>{len(total)},}/{total} {self._unit}", text, self._pace())))
        self._bar.update(self._task, completed=self._done, text=line)
        step = self._total / _NUM_LINES
        if not self._console.is_terminal and (self._done // step > before // step or self._done == self._total):
            say(self._console, line)

    def _pace(self) -> str:
        (first_done, first), (last_done, last) = self._times[0], self._times[-1]
        if last <= first or last_done == first_done:
            return "…"
        pace = (last_done - first_done) / (last - first)
        minutes, seconds = divmod(round((self._total - self._done) / pace), 60)
        return f"{pace:,.{0 if pace >= 100 else 2}f} {self._unit}/s  {minutes}:{seconds:02d} left"


def new_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> Table:
    """Returns a table in the style of all tables: names at the left, numbers at the right."""
    table = Table(title=Text(printable(title), "table.title"), title_justify="left", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        head = Text(printable(column))  # brackets are no markup
        table.add_column(head, overflow="fold", justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        add_row(table, *row)
    return table


def add_row(table: Table, *cells: str, style: str | None = None) -> None:
    """Adds a row to a table, with names as they are."""
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def metrics_table(title: str, metrics: Mapping[str, Metrics]) -> Table:
    """Returns a table of metrics, one row per field."""
    names = list(next(iter(metrics.values())))
    columns = [_HEADINGS.get(name, name.replace("_", " ")) for name in names]
    rows = [[field, *(f"{row[name]:#.4g}" for name in names)] for field, row in metrics.items()]
    return new_table(title, ["field", *columns], rows)


def warn_outside(normalizer: Normalizer, what: Path | str, position: NDArray[Any], console: Console) -> None:
    """Warns of positions [N, n] outside the box of the training data."""
    if num_outside := sum(map(normalizer.num_outside, row_chunks(position))):
        warn(f"{what}: {num_outside:,} of {len(position):,} points are outside the box of the training data", console)
        if normalizer.position_high is not None:
            known = Box(np.array(normalizer.position_low), np.array(normalizer.position_high))
            print_warnings(box_warnings({"training data": known, str(what): Box.of(position)}), console)


def warn_few_anchors(sampling: Sampling, points: Mapping[str, NDArray[Any]], console: Console) -> None:
    """Warns of branches with fewer points [N, n] to draw anchors from than the model was trained with."""
    for branch, position in points.items():
        if len(position) < sampling.num_anchors:
            warn(f"{branch}: {len(position):,} anchors, the model was trained with {sampling.num_anchors:,}", console)


def print_sides(sides: Mapping[str, str], console: Console) -> None:
    """Prints how the outward sides of surfaces were told, one line per kind; only numbers differ within a kind."""
    alike: dict[str, list[str]] = {}
    for name, side in sides.items():
        if side:
            alike.setdefault(_DIGITS.sub("#", side), []).append(name)
    for names in alike.values():
        others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        say(console, f"{names[0]}{others}: normals: {sides[names[0]]}")


def print_left_out(lines: Iterable[str], console: Console, path: Path | str | None = None) -> None:
    """Prints what was not read, one thing a line; what a file lacks is said after its path."""
    for line in lines:
        text = line if path is None else f"{path}: {line}"
        say(console, f"left out: {text}")


def print_unusable(reasons: Mapping[str, str], console: Console) -> None:
    """Prints the cases that were left out, and why, after their number."""
    if reasons:
        print_left_out([f"{len(reasons):,} unusable cases"], console)
        print_left_out([f"{name}: {reason}" for name, reason in reasons.items()], console)


def print_warnings(lines: Iterable[str], console: Console) -> None:
    """Prints warnings, one a line."""
    for line in lines:
        warn(line, console)


def print_paths(paths: list[Path], console: Console) -> None:
    """Prints the paths of files, one a line."""
    for path in paths:
        say(console, str(path))


def warn(message: str, console: Console) -> None:
    """Prints a warning."""
    say(console, f"warning: {message}")
