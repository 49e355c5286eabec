"""`emmi-jax ensemble`: several runs in one, which predicts their mean and how far they are from one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from emmi_jax.config.jobs import EnsembleJob
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.progress import say
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunConfig, RunDirectory, check_new
from emmi_jax.runs.load import load_run, stack_members

_COMPARED = ("model", "normalizer", "sampling", "sources", "positions")
_FREE = ("implementation", "precision", "remat", "drop_path_rate", "init_weights")
"""Options of a model that change how it is computed or trained, not what it predicts."""


def join_runs(job: EnsembleJob, *, console: Console) -> None:
    """Joins runs, the members of ensembles among them, in a new run.

    A case counts as one to train on if any of them was trained on it.

    Raises:
        ValueError: A folder is no run, there is only one model, or the runs differ in more than their weights and their
            training. Nothing is written.
    """
    paths = [Path(file) for file in job.files]
    check_new(job.out)
    configs = [RunDirectory.open(path).read_config() for path in paths]
    for path, config in zip(paths[1:], configs[1:], strict=True):
        _check_same(paths[0], configs[0], path, config)
    surrogates = [load_run(path, job.checkpoint) for path in paths]
    _check_contexts(paths, surrogates)
    members = list(chain.from_iterable(surrogate.members for surrogate in surrogates))
    if job.member is not None:
        if job.member >= len(members):
            raise ValueError(f"member must be one of 0 to {len(members) - 1}, got {job.member}")
        members = [members[job.member]]
    elif len(members) < 2:
        raise ValueError(f"an ensemble needs at least two models, got {', '.join(map(str, paths))}")
    config = replace(configs[0], num_members=len(members), split=_joined_split(configs))
    making = RunDirectory.making(job.out, config, surrogates[0].context)
    with making as run, Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(0, {"params": stack_members([member.params for member in members])})
    say(console, f"{job.out}: {len(members)} members of {', '.join(map(str, paths))}")


def _check_same(path: Path, config: RunConfig, other_path: Path, other: RunConfig) -> None:
    one, another = (
        {name: value for name, value in _flat(settings.to_dict()).items() if name.split(".")[-1] not in _FREE}
        for settings in (config, other)
    )
    for name in [*one, *(name for name in another if name not in one)]:
        first, second = one.get(name), another.get(name)
        if name.split(".")[0] in _COMPARED and first != second:
            raise ValueError(
                f"{other_path} has {name} = {second!r:.80}, {path} has {first!r:.80}: members differ in "
                "their weights alone"
            )


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return flat


def _check_contexts(paths: Sequence[Path], surrogates: Sequence[Surrogate]) -> None:
    """Refuses runs on single cases that show the model other points."""
    first = surrogates[0].context
    for path, surrogate in zip(paths[1:], surrogates[1:], strict=True):
        context = surrogate.context
        kinds: Any = [jax.tree.structure(each) for each in (context, first)]
        if kinds[0] != kinds[1] or not jax.tree.all(jax.tree.map(np.array_equal, context, first)):
            raise ValueError(f"{path} shows the model other points of its case than {paths[0]}")


def _joined_split(configs: Sequence[RunConfig]) -> dict[str, str] | None:
    splits = [config.split for config in configs if config.split is not None]
    if not splits:
        return None
    names = dict.fromkeys(name for split in splits for name in split)
    parts = {name: [split[name] for split in splits if name in split] for name in names}
    return {name: "train" if "train" in roles else roles[0] for name, roles in parts.items()}
