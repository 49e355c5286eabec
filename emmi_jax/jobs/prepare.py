"""`emmi-jax prepare`: raw cases into a store that training reads at disk speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console

from emmi_jax.config.jobs import PrepareJob
from emmi_jax.convert.files import load_torch_tensor
from emmi_jax.data.case_folder import case_fingerprint, case_names, find_sources, read_case_folder
from emmi_jax.data.case_split import parse_split, split_content
from emmi_jax.data.field_sources import sources_to_json
from emmi_jax.data.known_forces import read_known_forces
from emmi_jax.data.notes import (
    Box,
    box_warnings,
    case_boxes,
    gathered,
    moments_box,
    rounding_warnings,
    unlike_cases,
)
from emmi_jax.data.store import write_case
from emmi_jax.data.stored_case import DTYPES, SPLIT_FILE, STORE_FILE, read_case, read_head, write_head
from emmi_jax.files.atomic import JsonDict
from emmi_jax.files.zarr import ArrayFolder
from emmi_jax.jobs.cases import check_cases, check_selection, folder_left_out, parse_stored_split, stored_split
from emmi_jax.jobs.pool import run_in_processes
from emmi_jax.jobs.progress import ProgressBar, print_left_out, print_sides, print_unusable, print_warnings, say


class _Prepared(NamedTuple):
    """What is to be said of a case, the box of its points, and how its outward side was found."""

    left_out: list[str]
    warnings: list[str]
    box: Box
    side: str


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
    names = case_names(job.data)
    if not names:
        raise ValueError(f"{job.data}: no cases in the folders of this folder")
    check_selection(job.data, job.foam)
    split, unusable = _read_split(job, names), dict[str, str]()
    if job.skip_unusable:
        unusable = _header_problems(job, names)
        names = [name for name in names if name not in unusable]
    check_cases(job.data, names, foam=job.foam)
    folder, sources = ArrayFolder(job.out), sources_to_json(find_sources(job.data / names[0], foam=job.foam))
    _write_head(folder, names, job.dtype, sources)
    _write_split(folder, split, names)
    prints = {name: case_fingerprint(job.data / name, job.data, job.foam) for name in names}
    missing = [name for name in names if not _is_done(folder, job.dtype, name, prints[name])]
    num_done = len(names) - len(missing)
    say(console, f"{job.data}: {len(names)} cases, {num_done} of them in {job.out}")
    fields = find_sources(job.data / names[0], foam=job.foam)
    print_left_out(folder_left_out(job.data, names, fields, job.foam), console)
    if missing:
        prepared: dict[str, _Prepared] = {}
        with ProgressBar(console, len(missing), unit="cases") as progress:
            for name, outcome in _prepare_all(job, missing, prints):
                progress.advance(1, name)
                if isinstance(outcome, str):
                    unusable[name] = outcome
                else:
                    prepared[name] = outcome
        _print_notes(prepared, console)
    if unusable:
        names = [name for name in names if name not in unusable]
        _write_head(folder, names, job.dtype, sources)
        _write_split(folder, split, names)
        print_unusable(unusable, console)


def _read_split(job: PrepareJob, names: Sequence[str]) -> JsonDict | None:
    content = stored_split(job.data) if job.split is None else split_content(job.split)
    if job.split is not None:
        parse_split(content, names, job.split, skip_absent=job.skip_unusable)
    else:
        parse_stored_split(job.data, names, skip_absent=job.skip_unusable)
    return content


def _write_split(folder: ArrayFolder, split: JsonDict | None, names: Sequence[str]) -> None:
    """Writes the split of the cases in the store."""
    if split is not None:
        known = set(names)
        folder.write_json(SPLIT_FILE, {part: [n for n in listed if n in known] for part, listed in split.items()})


def _header_problems(job: PrepareJob, names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            check_cases(job.data, [name], foam=job.foam)
        except ValueError as error:
            found[name] = str(error).splitlines()[0]
    return found


def _write_head(folder: ArrayFolder, names: Sequence[str], dtype: str, sources: JsonDict) -> None:
    """Writes the list of cases, or refuses a store of another kind."""
    if folder.read_json(STORE_FILE) is not None:
        stored = read_head(folder)
        for what, old, new in (("dtype", stored["dtype"], dtype), ("field mapping", stored["sources"], sources)):
            if old != new:
                raise ValueError(f"{folder.location}: the store was made with the {what} {old!r}, now it is {new!r}")
    elif folder.path is not None and folder.path.is_dir() and any(folder.path.iterdir()):
        raise ValueError(f"{folder.location}: the folder is neither empty nor a store")
    write_head(folder, names, dtype, sources)


def _is_done(folder: ArrayFolder, dtype: str, name: str, source: str) -> bool:
    """Returns whether a case is in the store, undamaged and made of the files that are there now."""
    try:
        stored = read_case(folder, dtype, name)
    except ValueError:
        return False
    return stored is not None and stored.source == source


def _print_notes(prepared: Mapping[str, _Prepared], console: Console) -> None:
    names = sorted(prepared)
    print_left_out(gathered({name: prepared[name].left_out for name in names}), console)
    print_warnings(gathered({name: prepared[name].warnings for name in names}), console)
    print_warnings(unlike_cases({name: prepared[name].box for name in names}), console)
    print_sides({name: prepared[name].side for name in names}, console)


def _prepare_all(
    job: PrepareJob, names: Sequence[str], prints: Mapping[str, str]
) -> Iterator[tuple[str, _Prepared | str]]:
    """Prepares cases and yields their names, and what is to be said of them, or is wrong, as they are finished."""
    if job.workers == 1:
        for name in names:
            yield name, _prepare_case(job, name, prints[name])
        return
    yield from run_in_processes(_prepare_case, {name: (job, name, prints[name]) for name in names}, job.workers)


def _prepare_case(job: PrepareJob, name: str, source: str) -> _Prepared | str:
    cell_sizes = False if job.no_cell_sizes else None
    path = job.data / name
    try:
        case = read_case_folder(
            path, load_torch_tensor, with_cell_sizes=cell_sizes, with_area_vectors=True, foam=job.foam
        )
        forces = read_known_forces(path)
    except ValueError as error:
        if not job.skip_unusable:
            raise
        return str(error).splitlines()[0]
    moments = write_case(ArrayFolder(job.out), name, case, dtype=job.dtype, source=source, forces=forces)
    warnings = [*box_warnings(case_boxes(case)), *rounding_warnings(moments, job.dtype)]
    return _Prepared(
        [f"{name}: {line}" for line in case.left_out],
        [f"{name}: {line}" for line in warnings],
        moments_box(moments),
        case.side,
    )
