"""`emmi-jax prepare`: raw cases into a store that training reads at disk speed."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from rich.console import Console

from emmi_jax.config.jobs import PrepareJob
from emmi_jax.data.case_conditions import BESIDE_CASES
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.case_split import parse_split, split_content
from emmi_jax.data.cases import ReadOptions
from emmi_jax.data.conditions import Conditions
from emmi_jax.data.mesh_dataset import sources_to_json
from emmi_jax.data.notes import (
    Box,
    box_warnings,
    case_boxes,
    gathered,
    masked,
    moments_box,
    rounding_warnings,
    unlike_cases,
)
from emmi_jax.data.open import OpenFolders, check_selection
from emmi_jax.data.store import write_case
from emmi_jax.data.stored_case import DTYPES, SPLIT_FILE, STORE_FILE, VERSION, read_case, read_store_index
from emmi_jax.files.atomic import JsonDict, make_folder, sealed
from emmi_jax.files.locks import locked
from emmi_jax.files.processes import run_in_processes
from emmi_jax.files.zarr import ArrayFolder
from emmi_jax.jobs.progress import ProgressBar, print_left_out, print_sides, print_unusable, print_warnings, say
from emmi_jax.meshes.cells import POSITIONS


class _Prepared(NamedTuple):
    """Notes on a case, the box of its points, and how its outward side was told."""

    left_out: list[str]
    warnings: list[str]
    box: Box
    side: str


_Task: TypeAlias = tuple[PrepareJob, str, CaseFolder, str, Conditions]
"""The arguments of `_prepare_case`: a job, the name, the folder, the fingerprint and the conditions of a case."""


def prepare(job: PrepareJob, *, console: Console) -> None:
    """Makes a store, or completes one; cases that are in it already and have not changed are kept.

    Args:
        job: What to prepare.
        console: Where progress is printed.

    Raises:
        FileNotFoundError: There is no split file.
        ValueError: There are no cases, the store is of other data, or files of cases are missing or broken; nothing is
            written. Or a case has unusable values: then the store has the cases that were finished before.
    """
    if job.dtype not in DTYPES:
        raise ValueError(f"the dtype must be one of {', '.join(DTYPES)}, got {job.dtype!r}")
    if "://" not in job.out and Path(job.out).resolve() in job.data.resolve().parents:
        raise ValueError(f"{job.data} lies inside the store {job.out}: choose another store")
    opened = OpenFolders(job.data, ReadOptions(inputs=_inputs(job), mask_nan=job.mask_nan), job.foam)
    if opened.is_single or not opened.names:
        raise ValueError(f"{job.data}: no cases in the folders of this folder")
    check_selection(job.data, job.foam, opened)
    names, split, unusable = opened.names, _read_split(job, opened), dict[str, str]()
    conditions = opened.conditions(BESIDE_CASES)
    if job.skip_unusable:
        unusable = _header_problems(opened) | dict(conditions.problems)
        names = [name for name in names if name not in unusable]
    opened.check(names or opened.names, conditions.problems)
    folder, sources = ArrayFolder(job.out), sources_to_json(opened.cases.folders[names[0]].sources())
    under = {name: conditions.by_case[name] for name in names}
    prints = {name: opened.cases.fingerprint(name) + _digest(of_case) for name, of_case in under.items()}
    head = {"version": VERSION, "positions": POSITIONS, "dtype": job.dtype, "cases": names, "sources": sources}
    _missing(folder, head, prints)  # refuses before anything is written
    with _locked(folder, console):
        missing = _missing(folder, head, prints)
        _write_head(folder, head, split)
        done = f"{len(names)} cases, {len(names) - len(missing)} of them in {job.out}"
        say(console, f"{job.data}: {done}")
        print_left_out(opened.left_out(names), console)
        if missing:
            tasks = {name: (job, name, opened.cases.folders[name], prints[name], under[name]) for name in missing}
            unusable |= _complete(job, tasks, console)
        if unusable:
            if not (usable := [name for name in names if name not in unusable]):
                name, problem = next(iter(unusable.items()))
                raise ValueError(f"{job.data}: no case is usable: {name}: {problem}")
            _write_head(folder, head | {"cases": usable}, split)
            print_unusable(unusable, console)


def _inputs(job: PrepareJob) -> dict[str, tuple[str, ...]]:
    """Returns the further arrays to read by branch.

    Raises:
        ValueError: One is not BRANCH/NAME.
    """
    inputs: dict[str, tuple[str, ...]] = {}
    for text in job.feature:
        branch, _, name = text.partition("/")
        if not branch or not name:
            raise ValueError(f"--feature takes BRANCH/NAME, such as surface/normal, got {text!r}")
        inputs[branch] = (*inputs.get(branch, ()), name)
    return inputs


def _digest(conditions: Conditions) -> str:
    """Returns what changes if the conditions of a case do; nothing without any."""
    return f" {hashlib.sha256(repr(sorted(conditions.items())).encode()).hexdigest()[:16]}" if conditions else ""


def _complete(job: PrepareJob, tasks: Mapping[str, _Task], console: Console) -> dict[str, str]:
    """Prepares cases and prints what is to be said of them; returns what is wrong with those that are left out."""
    prepared, unusable = dict[str, _Prepared](), dict[str, str]()
    with ProgressBar(console, len(tasks), unit="cases") as progress:
        for name, outcome in _prepare_all(job, tasks):
            progress.advance(1, name)
            if isinstance(outcome, str):
                unusable[name] = outcome
            else:
                prepared[name] = outcome
    _print_notes(prepared, console)
    return unusable


def _read_split(job: PrepareJob, opened: OpenFolders) -> JsonDict | None:
    if job.split is None:
        opened.stored_split(skip_absent=job.skip_unusable)
        return opened.split_content()
    content = split_content(job.split)
    parse_split(content, opened.names, job.split, skip_absent=job.skip_unusable)
    return content


def _write_head(folder: ArrayFolder, head: JsonDict, split: JsonDict | None) -> None:
    """Writes the list of cases and their split, where they are not there already."""
    known = set(head["cases"])
    if split is not None:
        split = {part: [name for name in listed if name in known] for part, listed in split.items()}
    for key, content in ((STORE_FILE, sealed(head)), (SPLIT_FILE, split)):
        if content is not None and folder.read_json(key) != content:
            folder.write_json(key, content)


def _header_problems(opened: OpenFolders) -> dict[str, str]:
    problems = {}
    for name in opened.names:
        try:
            opened.check([name])
        except ValueError as error:
            problems[name] = str(error).splitlines()[0]
    return problems


@contextlib.contextmanager
def _locked(folder: ArrayFolder, console: Console) -> Iterator[None]:
    """Holds the lock of a store; one behind a URL has none, and a line says so."""
    if folder.path is None:
        print_warnings([f"{folder.location}: a URL has no lock: let no other process write there"], console)
        yield
        return
    make_folder(folder.path)
    with locked(folder.path):
        yield


def _missing(folder: ArrayFolder, head: JsonDict, prints: Mapping[str, str]) -> list[str]:
    """Returns the cases that are not in the store, or changed or damaged there.

    Raises:
        ValueError: The store is of another kind or of other data.
    """
    where = folder.location
    if folder.read_json(STORE_FILE) is None:
        if not folder.is_empty:
            raise ValueError(f"{where}: the folder is neither empty nor a store")
        return list(prints)
    stored = read_store_index(folder)
    for key, what in (("dtype", "dtype"), ("sources", "field mapping")):
        if stored[key] != head[key]:
            raise ValueError(f"{where}: the store was made with the {what} {stored[key]!r}, now it is {head[key]!r}")
    if others := [name for name in stored["cases"] if name not in prints]:
        raise ValueError(
            f"{where}: a store of other data: they lack {len(others)} of its {len(stored['cases'])} cases, "
            f"{others[0]!r} is the first: choose another store, or remove this one"
        )
    sources = {name: _source(folder, head["dtype"], name) for name in stored["cases"]}
    finished = [name for name, source in sources.items() if source is not None]
    if finished and all(sources[name] != prints[name] for name in finished):
        raise ValueError(
            f"{where}: a store of other data with cases of the same names, such as {finished[0]!r}: choose another "
            "store, or remove this one"
        )
    return [name for name, source in prints.items() if sources.get(name) != source]


def _source(folder: ArrayFolder, dtype: str, name: str) -> str | None:
    """Returns the fingerprint of the files that a case was made of; None if it is not in the store, or damaged."""
    try:
        stored = read_case(folder, dtype, name)
    except ValueError:
        return None
    return None if stored is None else stored.source


def _print_notes(prepared: Mapping[str, _Prepared], console: Console) -> None:
    names = sorted(prepared)
    print_left_out(gathered({name: prepared[name].left_out for name in names}), console)
    print_warnings(gathered({name: prepared[name].warnings for name in names}), console)
    print_warnings(unlike_cases({name: prepared[name].box for name in names}), console)
    print_sides({name: prepared[name].side for name in names}, console)


def _prepare_all(job: PrepareJob, tasks: Mapping[str, _Task]) -> Iterator[tuple[str, _Prepared | str]]:
    """Prepares cases and yields their names, and what is to be said of them, or is wrong, as they are finished."""
    if job.workers == 1:
        for name, task in tasks.items():
            yield name, _prepare_case(*task)
        return
    yield from run_in_processes(_prepare_case, dict(tasks), job.workers)


def _prepare_case(
    job: PrepareJob, name: str, folder: CaseFolder, source: str, conditions: Conditions
) -> _Prepared | str:
    cell_sizes = False if job.no_cell_sizes else None
    try:
        case, forces = folder.read(ReadOptions(with_cell_sizes=cell_sizes, with_area_vectors=True)), folder.forces
    except ValueError as error:
        if not job.skip_unusable:
            raise
        return str(error).splitlines()[0]
    kept: dict[str, Any] = {"source": source, "forces": forces, "conditions": conditions}
    moments = write_case(ArrayFolder(job.out), name, case, dtype=job.dtype, **kept)
    warnings = [*box_warnings(case_boxes(case)), *rounding_warnings(moments, job.dtype), *masked(moments)]
    return _Prepared(
        [f"{name}: {line}" for line in case.left_out],
        [f"{name}: {line}" for line in warnings],
        moments_box(moments),
        case.side,
    )
