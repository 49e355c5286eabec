"""Statistics of cases in folders, which are measured once: in parallel, and kept for the next run."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.report import Report
from emmi_jax.data.statistics import DataMoments, measure, point_chunks
from emmi_jax.files.atomic import cache_folder, read_sealed, sealed, write_json
from emmi_jax.files.processes import run_in_processes

CACHE_FILE = ".emmi_jax_statistics.json"

_VERSION = 1
_SMALL_BYTES = 1 << 28
"""Data that are measured before more processes have started, within seconds."""

_MEMORY_PER_BYTE = 4
"""Memory to read a case, per byte of its files, which may be compressed."""


def measure_folders(
    root: Path, folders: Mapping[str, CaseFolder], measure_case: Callable[[str], DataMoments], report: Report
) -> dict[str, DataMoments]:
    """Returns the statistics of cases; only new ones and changed ones are measured.

    They are kept beside the cases, or in `~/.cache/emmi_jax` where that folder is read-only.

    Args:
        root: The folder of the cases.
        folders: The cases by name.
        measure_case: Measures one of them in this process.
        report: Where progress and warnings go.

    Raises:
        ValueError: A case is unusable.
    """
    keys, kept = _keys(root, folders), _read_cache(root)
    by_case = {name: kept[name][1] for name in folders if name in kept and kept[name][0] == keys[name]}
    missing = {name: folder for name, folder in folders.items() if name not in by_case}
    if missing:
        with (
            report.progress(len(missing), "cases measured") as advance,
            closing(_measure(missing, measure_case)) as measured,
        ):
            try:
                for name, moments in measured:
                    by_case[name] = moments
                    advance(1, name)
            finally:
                _write_cache(root, kept | {name: (keys[name], moments) for name, moments in by_case.items()})
    return {name: by_case[name] for name in folders}


def quick_folders(root: Path, folders: Mapping[str, CaseFolder]) -> list[str]:
    """Returns the cases that were measured before, and the first others whose files are small all together."""
    keys, kept = _keys(root, folders), _read_cache(root)
    quick, num_bytes = list[str](), 0
    for name, folder in folders.items():
        is_known = name in kept and kept[name][0] == keys[name]
        num_bytes += 0 if is_known else _size(folder)
        if is_known or num_bytes <= _SMALL_BYTES:
            quick.append(name)
    return quick


def _keys(root: Path, folders: Mapping[str, CaseFolder]) -> dict[str, str]:
    return {name: folder.fingerprint(root, with_times=True) for name, folder in folders.items()}


def _size(folder: CaseFolder) -> int:
    return sum(file.stat().st_size for file in folder.files)


def _measure(
    folders: Mapping[str, CaseFolder], measure_case: Callable[[str], DataMoments]
) -> Generator[tuple[str, DataMoments], None, None]:
    sizes = [_size(folder) for folder in folders.values()]
    workers = 1
    if sum(sizes) > _SMALL_BYTES:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        workers = max(1, min(os.cpu_count() or 1, len(folders), free // (_MEMORY_PER_BYTE * max(sizes))))
    if workers == 1:
        for name in folders:
            yield name, measure_case(name)
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
            match read_sealed(file):
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
    content = sealed({"version": _VERSION, "cases": entries})
    for file in _cache_paths(path):
        with suppress(OSError):
            write_json(file, content)
            return
