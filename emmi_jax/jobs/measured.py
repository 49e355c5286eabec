"""Statistics of the training data, which are measured once: in parallel, and kept for the next run."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.case_folder import CaseFolder, FolderCases
from emmi_jax.data.cases import BranchShape
from emmi_jax.data.notes import moments_box, unlike_cases
from emmi_jax.data.samples import Dataset
from emmi_jax.data.statistics import DataMoments, measure, merge, point_chunks
from emmi_jax.files.atomic import JsonDict, cache_folder, read_json_object, write_json
from emmi_jax.jobs.pool import run_in_processes
from emmi_jax.jobs.progress import ProgressBar, print_warnings

CACHE_FILE = ".emmi_jax_statistics.json"

_VERSION = 1
_SMALL_BYTES = 1 << 28
"""Data that are measured before more processes have started."""

_MEMORY_PER_BYTE = 4
"""Memory to read a case, per byte of its files, which may be compressed."""


def measure_collection(dataset: CaseCollection, *, console: Console) -> DataMoments:
    """Returns the statistics of the training cases; in folders, only new ones and changed ones are measured.

    Cases to validate and to test on are measured as well, so that one that is unusable is found before training.
    The statistics of each case are kept beside the cases, or in `~/.cache/emmi_jax` where that folder is read-only.

    Args:
        dataset: The cases.
        console: Where progress is printed.

    Raises:
        ValueError: A case is unusable or has other fields than the first.
    """
    cases = dataset.cases
    if not isinstance(cases, FolderCases):
        return dataset.measure()
    found = _measure_cases(cases, dataset, [*dataset.split.train, *_held_out(dataset)], console)
    return merge(found[name] for name in dataset.split.train)


def check_held_out(dataset: Dataset, *, console: Console) -> None:
    """Reads the cases to validate and to test on, except those that were measured before and have not changed.

    Raises:
        ValueError: A case is unusable or has other fields than the first.
    """
    if isinstance(dataset, CaseCollection) and isinstance(dataset.cases, FolderCases):
        _measure_cases(dataset.cases, dataset, _held_out(dataset), console)


def _held_out(dataset: CaseCollection) -> list[str]:
    return [*dataset.split.validation, *dataset.split.test]


def _measure_cases(
    cases: FolderCases, dataset: CaseCollection, names: Sequence[str], console: Console
) -> dict[str, DataMoments]:
    path, folders = cases.root, cases.folders
    keys = {name: folders[name].fingerprint(path, with_times=True) for name in names}
    kept = _read_cache(path)
    found = {name: kept[name][1] for name in names if name in kept and kept[name][0] == keys[name]}
    missing = [name for name in names if name not in found]
    if missing:
        with (
            ProgressBar(console, len(missing), unit="cases measured") as progress,
            closing(_measure_all(dataset, {name: folders[name] for name in missing})) as measured,
        ):
            try:
                for name, moments in measured:
                    found[name] = moments
                    progress.advance(1, name)
            finally:
                _write_cache(path, kept | {name: (keys[name], moments) for name, moments in found.items()})
    for name in names:
        dataset.check_shapes(name, _shapes(found[name]))
    print_warnings(unlike_cases({name: moments_box(found[name]) for name in names}), console)
    return found


def _shapes(moments: DataMoments) -> dict[str, BranchShape]:
    return {
        branch: BranchShape(next(plain.count for plain, _ in of_branch.values()), moments.channels[branch])
        for branch, of_branch in moments.fields.items()
    }


def _measure_all(
    dataset: CaseCollection, folders: Mapping[str, CaseFolder]
) -> Generator[tuple[str, DataMoments], None, None]:
    sizes = [sum(file.stat().st_size for file in folder.files) for folder in folders.values()]
    workers = 1
    if sum(sizes) > _SMALL_BYTES:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        workers = max(1, min(os.cpu_count() or 1, len(folders), free // (_MEMORY_PER_BYTE * max(sizes))))
    if workers == 1:
        for name in folders:
            yield name, dataset.measure_case(name)
        return
    yield from run_in_processes(_measure_folder, {name: (folder,) for name, folder in folders.items()}, workers)


def _measure_folder(folder: CaseFolder) -> DataMoments:
    return measure(point_chunks(folder.read().points))


def _cache_paths(path: Path) -> list[Path]:
    """Returns where statistics may be kept: beside the cases, unless that folder is read-only, or else at home."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    beside = [path / CACHE_FILE] if path.stat().st_mode & stat.S_IWUSR else []
    home = cache_folder()
    return beside if home is None else [*beside, home / f"statistics-{digest}.json"]


def _read_cache(path: Path) -> dict[str, tuple[str, DataMoments]]:
    """Returns the key and the statistics of each case that was measured before; an unreadable file counts as none."""
    for file in _cache_paths(path):
        with suppress(OSError, ValueError):
            match read_json_object(file):
                case {"version": 1, "cases": dict(cases)}:
                    return {name: _parse(entry) for name, entry in cases.items()}
    return {}


def _parse(entry: Any) -> tuple[str, DataMoments]:
    match entry:
        case {"key": str(key), "statistics": statistics}:
            return key, DataMoments.from_dict(statistics)
    raise ValueError(f"expected a key and statistics, got {entry!r:.80}")


def _write_cache(path: Path, cases: Mapping[str, tuple[str, DataMoments]]) -> None:
    entries = {name: {"key": key, "statistics": moments.to_dict()} for name, (key, moments) in cases.items()}
    content: JsonDict = {"version": _VERSION, "cases": entries}
    for file in _cache_paths(path):
        with suppress(OSError):
            write_json(file, content)
            return
