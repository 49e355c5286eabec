"""Notes on the data: the arrays that are fields, what is not read, and what does not fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console

from emmi_jax.data.notes import box_warnings, case_boxes
from emmi_jax.data.report import Report
from emmi_jax.data.samples import Dataset
from emmi_jax.jobs.progress import ProgressBar, print_left_out, print_unusable, print_warnings


class ConsoleReport(Report):
    """Prints to a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def progress(self, total: int, unit: str) -> AbstractContextManager[Callable[[int, str], object]]:
        """Shows a bar."""
        return _advance(ProgressBar(self._console, total, unit=unit))

    def warn(self, lines: Iterable[str]) -> None:
        """Prints warnings."""
        print_warnings(lines, self._console)


@contextmanager
def _advance(bar: ProgressBar) -> Iterator[Callable[[int, str], object]]:
    with bar:
        yield bar.advance


def describe_sources(dataset: Dataset) -> list[str]:
    """Returns lines that say which arrays of which files are the fields; none if the data are no folder."""
    lines = []
    for branch, fields in ({} if dataset.opened is None else dataset.opened.sources_json).items():
        arrows = (
            f"{name} ← {source['array']}" + f" · {source['scale']:g}" * (source["scale"] != 1)
            for name, source in fields.items()
        )
        lines.append(f"{branch:<10} {', '.join(arrows)}")
    return lines if dataset.opened is None else lines + dataset.opened.describe()


def print_notes(dataset: Dataset, console: Console) -> None:
    """Prints what was left out of the data, and where the boxes of the first case do not fit."""
    if (case := dataset.first_case()) is None:
        return
    unusable, left_out = dataset.notes()
    print_unusable(unusable, console)
    print_left_out(left_out, console)
    print_warnings(box_warnings(case_boxes(case)), console)
