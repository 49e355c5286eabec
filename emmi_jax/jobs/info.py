"""Output of `emmi-jax info`: blocks, shapes and numbers of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import NamedTuple

import jax
from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.table import Table

from emmi_jax.config.jobs import InfoJob
from emmi_jax.convert import CONSTANTS, load_torch_file
from emmi_jax.jobs.progress import add_row, new_table, say
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params, init_params
from emmi_jax.runs.directory import RunDirectory

Shape = tuple[int, ...]


class Block(NamedTuple):
    """A block of a model: its name without a number, the number, and the shapes of its parameters by name."""

    name: str
    number: int | None
    shapes: tuple[tuple[str, Shape], ...]


def run_job(job: InfoJob, *, console: Console) -> None:
    """Runs `emmi-jax info`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no run, or the file is unusable.
    """
    shapes = run_shapes(job.path) if job.path.is_dir() else file_shapes(job.path)
    console.print(summary_table(shapes, str(job.path)), highlight=False)
    if job.path.is_dir():
        normalizer = RunDirectory.open(job.path).read_config().normalizer
        for line in describe_features(normalizer.feature_channels):
            say(console, line)


def describe_features(features: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns a line that says what a model takes beside positions; none if it takes nothing."""
    listed = [
        f"{part}: {', '.join(f'{name} ({size})' for name, size in names.items())}" for part, names in features.items()
    ]
    return [f"features   {'; '.join(listed)}"] if listed else []


def summary_table(shapes: Mapping[str, Shape], title: str) -> Table:
    """Lists parameters block by block; neighbours that differ in their number alone share their rows.

    Args:
        shapes: Shapes by name, as ``physics_blocks_0/norm1/scale`` or ``physics_blocks.0.norm1.weight``.
        title: Headline.

    Returns:
        A table of blocks with their parameters, shapes and numbers, and the total below.
    """
    table = new_table(title, [])
    table.show_footer = True
    table.add_column("block", "total")
    table.add_column("shape")
    table.add_column("count", f"{sum(map(prod, shapes.values())):,}", justify="right")
    for _, equal in groupby(_blocks(shapes), key=lambda block: (block.name, block.shapes)):
        blocks = list(equal)
        count = sum(prod(shape) for _, shape in blocks[0].shapes)
        add_row(table, _label(blocks), "", f"{len(blocks) * count:,}", style="bold")
        for name, shape in blocks[0].shapes:
            times = f"{len(blocks)} × " if len(blocks) > 1 else ""
            add_row(table, f"  {name}", " × ".join(map(str, shape)), f"{times}{prod(shape):,}")
    return table


def run_shapes(path: Path) -> dict[str, Shape]:
    """Returns the shapes of a run's parameters, from its configuration.

    Raises:
        ValueError: The folder is not a run.
    """
    model = AnchoredBranchedUPT(RunDirectory.open(path).read_config().model)
    return param_shapes(jax.eval_shape(lambda: init_params(model, seed=0)))


def param_shapes(params: Params) -> dict[str, Shape]:
    """Returns the shapes of parameters by name."""
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def file_shapes(path: Path) -> dict[str, Shape]:
    """Returns the shapes in a file of PyTorch weights, without constants.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such run or file")
    state_dict = load_torch_file(path).state_dict
    return {name: a.shape for name, a in state_dict.items() if name.rpartition(".")[2] not in CONSTANTS}


def _blocks(shapes: Mapping[str, Shape]) -> list[Block]:
    grouped: dict[str, list[tuple[str, Shape]]] = {}
    for name, shape in shapes.items():
        match = re.match(r"([^/]+)/(.+)|(.+?\.\d+)\.(.+)|([^.]+)\.(.+)", name)
        block, parameter = (part for part in match.groups() if part) if match else ("", name)
        grouped.setdefault(block, []).append((parameter, shape))
    blocks = []
    for block, parameters in grouped.items():
        numbered = re.fullmatch(r"(.+)[._](\d+)", block)
        name, number = (numbered[1], int(numbered[2])) if numbered else (block, None)
        blocks.append(Block(name, number, tuple(parameters)))
    order = {block.name: place for place, block in reversed(list(enumerate(blocks)))}
    return sorted(blocks, key=lambda block: (order[block.name], block.number or 0))


def _label(blocks: Sequence[Block]) -> str:
    first, last = blocks[0], blocks[-1]
    if first.number is None:
        return first.name
    return f"{first.name} {first.number}" if first is last else f"{first.name} {first.number} … {last.number}"
