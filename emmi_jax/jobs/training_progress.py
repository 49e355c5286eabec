"""What a run shows on the terminal: a bar on a screen, lines in a pipe, then a table of errors."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

_WINDOW = 50
_NUM_LINES = 20


class TrainingProgress:
    """Shows loss, learning rate, steps per second and the time left while it is entered.

    Args:
        console: Where to write; on a terminal a bar is redrawn, else about twenty lines come in all.
        steps: Steps of the whole run.
        start: Steps done already.
    """

    def __init__(self, console: Console, *, steps: int, start: int = 0) -> None:
        self._console, self._steps = console, steps
        self._times: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._line_every = max(1, steps // _NUM_LINES)
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=start, text="compiling …")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, row: Mapping[str, Any]) -> None:
        """Shows the metrics of one step."""
        step = row["step"]
        self._times.append((step, row["seconds"]))
        text = f"loss {row['loss']:.4f}  lr {row['learning_rate']:.1e}  {self._pace(step)}"
        self._bar.update(self._task, completed=step, text=text)
        if not self._console.is_terminal and (step % self._line_every == 0 or step == self._steps):
            self._console.print(f"step {step:>{len(str(self._steps))}}/{self._steps}  {text}", highlight=False)

    def _pace(self, step: int) -> str:
        (first_step, first), (last_step, last) = self._times[0], self._times[-1]
        if last <= first:
            return "…"
        pace = (last_step - first_step) / (last - first)
        minutes, seconds = divmod(round((self._steps - step) / pace), 60)
        return f"{pace:.2f} steps/s  {minutes}:{seconds:02d} left"


def error_table(errors: Mapping[str, Mapping[str, float]]) -> Table:
    """Lays out errors by field: the model first, then the baselines."""
    table = Table(title="Relative L2 error on the test part", title_justify="left")
    columns = list(next(iter(errors.values())))
    table.add_column("field")
    for column in columns:
        name = "model" if column == "relative_l2" else column.replace("_", " ")
        table.add_column(name, justify="right", style="bold" if column == "relative_l2" else "")
    for field, values in errors.items():
        table.add_row(field, *(f"{values[column]:.4f}" for column in columns))
    return table
