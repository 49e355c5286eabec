"""Output of `emmi-jax data`: what is expected of a published data set of meshes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from rich.console import Console

from emmi_jax.config.checks import check_choice
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.config.jobs import DataJob
from emmi_jax.config.mesh_dataset import DatasetCard, ForceTable, MeshDataset
from emmi_jax.data.mesh_dataset import published, published_sources
from emmi_jax.jobs.progress import say
from emmi_jax.meshes.components import ArrayName

_WIDTH = 80
_LABEL = 13


def run_job(job: DataJob, *, console: Console) -> None:
    """Runs `emmi-jax data`.

    Raises:
        ValueError: There is no such data set.
    """
    cards = {name: dataset.about for name, dataset in published().items() if dataset.about is not None}
    if job.name is None:
        for name, card in cards.items():
            _show(console, name, [card.title])
        return
    check_choice("the data set", job.name, tuple(cards))
    for label, lines in _described(job.name, published()[job.name], cards[job.name]):
        _show(console, label, lines)


def _described(name: str, dataset: MeshDataset, card: DatasetCard) -> Iterator[tuple[str, Iterable[str]]]:
    yield name, [card.title]
    yield "source", [card.source]
    yield "licence", [card.license]
    yield "size", [card.size]
    yield "split", [card.split]
    yield "files", [f"{file}: {text}" for file, text in card.files.items()]
    for branch, sources in published_sources(name).items():
        yield branch, [_field(*of) for of in ((field, s.array, s.unit) for field, s in sources.items())]
    yield "conditions", _conditions(dataset.conditions)
    if dataset.forces is not None:
        yield "forces", [_forces(dataset.forces)]
    yield "notes", card.notes
    yield "layout from", card.layout
    yield "not checked", [card.unchecked]


def _field(name: str, array: ArrayName, unit: str | None) -> str:
    arrays = array if isinstance(array, str) else ", ".join(array)
    return f"{name} ← {arrays}" + (" (unit unknown)" if unit is None else f" ({unit})" * (unit != "1"))


def _conditions(source: ConditionSource) -> Iterator[str]:
    if source.pattern is not None:
        yield f"in the name of a case: {source.pattern}"
    for condition, column in source.columns.items():
        unit = source.units.get(condition)
        yield f"{condition} ← {column} of {source.file}" + (f" ({unit})" if unit else "")


def _forces(table: ForceTable) -> str:
    area = f", area {table.area} of {table.area_file}" if table.area_file else ""
    return f"{table.drag} and {table.lift} of {table.file}{area}"


def _show(console: Console, label: str, texts: Iterable[str]) -> None:
    """Prints texts beside a label, in 80 columns."""
    width = _WIDTH - _LABEL
    lines = [
        line
        for text in texts
        for line in textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=True, break_on_hyphens=False)
    ]
    for number, line in enumerate(lines):
        say(console, f"{'' if number else label:{_LABEL}}{line}")
