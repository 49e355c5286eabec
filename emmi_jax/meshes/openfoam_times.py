"""The times of an OpenFOAM case: which folders hold them, their fields, and which of them are written completely."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.meshes.foam_to_vtk import is_time, vtk_times
from emmi_jax.meshes.openfoam_files import open_foam
from emmi_jax.meshes.openfoam_mesh import has_mesh, read_neighbours

_VOLUME_FIELD = re.compile(rb"\bclass\s+vol(?:Scalar|Vector|SymmTensor|SphericalTensor|Tensor)Field\s*;")
_HEAD_BYTES, _TAIL_BYTES = 1 << 12, 1 << 12
_COMMENTS = re.compile(rb"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENDS = (b"}", b";", b'"')
_NUM_COMPARED = 4
"""Other times whose fields say which fields a time should have."""


def case_roots(path: Path) -> list[Path]:
    """Returns the folders that have the meshes: that of the case, or else those of its processors in their order."""
    return [path] if has_mesh(path) else processors(path)


def processors(path: Path) -> list[Path]:
    """Returns the folders of the processors in their order.

    Raises:
        ValueError: One is missing, or their files are collated.
    """
    there = {int(p.name[9:]): p for p in path.glob("processor*") if p.name[9:].isdigit() and p.is_dir()}
    used = {number: there[number] for number in sorted(there) if has_mesh(there[number])}
    if not used:
        if any(map(has_mesh, path.glob("processors*"))):
            raise ValueError(f"{path}: files of all processors are collated: run reconstructPar first")
        return []
    wanted = set(range(max(there) + 1)).union(*(read_neighbours(root) for root in used.values()))
    if missing := sorted(wanted - set(used)):
        names = ", ".join(f"processor{number}" for number in missing[:5])
        raise ValueError(f"{path}: {len(missing)} of {len(wanted)} processors have no mesh here: {names}")
    return list(used.values())


def foam_time(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> str | None:
    """Returns the name of the time that is read; None for a case without any.

    By default this is the latest complete time, or else the latest; see `passed_over`.

    Raises:
        ValueError: The case does not have the time.
    """
    times = _times(path)
    if selection.time is None:
        return _latest(path, times)[0]
    if not is_time(selection.time) or float(selection.time) not in map(float, times):
        raise ValueError(f"{path}: no time {selection.time!r}, it has {', '.join(times) or 'none'}")
    return next(name for name in times if float(name) == float(selection.time))


def passed_over(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> list[str]:
    """Returns a line for each time that is later than the one read and incomplete, with what it lacks."""
    if selection.time is not None:
        return []
    time, incomplete = _latest(path, _times(path))
    return [f"time {name}, which is incomplete ({why}): {time} is read" for name, why in incomplete.items()]


def roots_at(path: Path, selection: FoamSelection) -> list[Path]:
    """Returns the folders that have the meshes and the time; none for output of foamToVTK."""
    roots = case_roots(path)
    return _roots_of(path, roots, foam_time(path, selection)) if roots else []


def field_files(root: Path, time: str | None) -> list[Path]:
    """Returns the files of a time that hold fields of cells, by their headers."""
    return sorted(p for p in _listed(root, time).values() if _VOLUME_FIELD.search(_head(p)))


def other_files(root: Path, time: str | None) -> list[str]:
    """Returns the names of the files of a time that hold anything else, such as fluxes through faces."""
    return [name for name, file in _listed(root, time).items() if not _is_volume_field(file)]


def _roots_of(path: Path, roots: list[Path], time: str | None) -> list[Path]:
    if roots == [path] and time is not None and not (path / time).is_dir():
        return processors(path)
    return roots


def _times(path: Path) -> list[str]:
    """Returns the names of the times in their order."""
    if not case_roots(path):
        return sorted(vtk_times(path), key=float)
    folders = [path]
    with suppress(ValueError):  # what is left of a decomposition does not matter beside the whole mesh
        folders += processors(path)
    return sorted({p.name for f in folders for p in f.iterdir() if is_time(p.name) and p.is_dir()}, key=float)


def _latest(path: Path, times: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Returns the time to read by default, and what is wrong with each later one.

    The start has no results, so it is neither compared with the others nor read in their place.
    """
    incomplete, results = dict[str, str](), [name for name in times if float(name)]
    for name in reversed(results):
        others = [other for other in results if other != name][-_NUM_COMPARED:]
        problem = _problem(path, name, others)
        if problem is None:
            return name, incomplete
        incomplete[name] = problem
    return max(times, key=float, default=None), {}


def _problem(path: Path, time: str, others: Sequence[str]) -> str | None:
    """Says why a time is incomplete; None if it is complete."""
    roots = case_roots(path)
    if not roots:
        return _vtk_problem(path, time, others)
    roots = _roots_of(path, roots, time)
    listed = {root: _listed(root, time) for root in roots}
    everywhere = [_common(path, other) for other in others]
    wanted = set.union(*(set(files) for files in listed.values())) | (
        set.intersection(*everywhere) if everywhere else set()
    )
    for root, files in listed.items():
        absent = [name for name in sorted(wanted - set(files)) if _is_field(path, name, [time, *others])]
        where = f" in {root.name}" * (root != path)
        if absent:
            return f"no {', '.join(absent)}{where}"
        for file in files.values():
            if not file.stat().st_size or (_is_volume_field(file) and not _is_whole(file)):
                return f"{file.name}{where} is truncated"
    return None


def _vtk_problem(path: Path, time: str, others: Sequence[str]) -> str | None:
    by_time = vtk_times(path)
    files = {file.name: file for file in (by_time[time].internal, *by_time[time].patches.values())}
    common = set.intersection(*(set(by_time[other].patches) for other in others)) if others else set[str]()
    if absent := sorted(common - set(by_time[time].patches)):
        return f"no {', '.join(absent)}"
    for name, file in files.items():
        if file.suffix in (".vtu", ".vtp") and b"</VTKFile>" not in _tail(file):
            return f"{name} is truncated"
    return None


def _listed(root: Path, time: str | None) -> dict[str, Path]:
    """Returns the files of a time by the names of what they hold."""
    folder = None if time is None else root / time
    if folder is None or not folder.is_dir():
        return {}
    # As the solver does it, a compressed file counts where there is no other.
    entries = sorted(folder.iterdir(), key=lambda p: (p.suffix != ".gz", p.name))
    return {p.name.removesuffix(".gz"): p for p in entries if p.is_file() and p.name[0] != "."}


def _common(path: Path, time: str) -> set[str]:
    """Returns the names of the files of a time that all its folders have."""
    return set.intersection(*(set(_listed(root, time)) for root in _roots_of(path, case_roots(path), time)))


def _is_field(path: Path, name: str, times: Sequence[str]) -> bool:
    """Returns whether the first file of this name is a field of cells."""
    files = (_listed(r, time).get(name) for time in times for r in _roots_of(path, case_roots(path), time))
    return any(_is_volume_field(file) for file in files if file is not None)


def _is_volume_field(file: Path) -> bool:
    try:
        return _VOLUME_FIELD.search(_head(file)) is not None
    except ValueError:  # a truncated archive; reading says so
        return True


def _is_whole(file: Path) -> bool:
    """Returns whether a file ends where an entry does."""
    stat = file.stat()
    return _ends(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _ends(file: Path, size: int, modified: int) -> bool:
    del size, modified  # part of the key
    try:
        end = _unzipped_tail(file) if file.suffix == ".gz" else _tail(file)
    except (OSError, EOFError, zlib.error):
        return False
    return _COMMENTS.sub(b"", end).rstrip().endswith(_ENDS)


def _unzipped_tail(file: Path) -> bytes:
    """Returns the last bytes of a compressed file, which is read to its end."""
    end = b""
    with open_foam(file) as content:
        while chunk := content.read(1 << 20):
            end = (end + chunk)[-_TAIL_BYTES:]
    return end


def _tail(file: Path) -> bytes:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        return content.read()


def _head(path: Path) -> bytes:
    with open_foam(path) as file:
        try:
            head: bytes = file.read(_HEAD_BYTES)
            return head
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged: {error}") from None
