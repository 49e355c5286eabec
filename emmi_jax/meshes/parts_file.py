"""Files of several meshes: parts, and patches, chosen by name or pattern, times by value."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emmi_jax.meshes.components import ArrayName
from emmi_jax.meshes.vtk import ArrayNames

_STEP = re.compile(r"step:(\d+)")


class Part(NamedTuple):
    """A mesh of a file.

    Args:
        name: Its name, that of each block above it before a slash. Several pieces of one part have the same.
        dataset: A `pyvista.DataSet`.
        is_wall: Whether it is a wall, where the file says so.
        is_patch: Whether it is a patch of OpenFOAM, whose faces point out of the fluid.
    """

    name: str
    dataset: Any
    is_wall: bool | None = None
    is_patch: bool = False


class PartsFile(ABC):
    """A file of several meshes, or the file that names those.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def times(self) -> list[float]:
        """Returns the times of the file, sorted; none if it has no times."""
        return []

    @abstractmethod
    def files(self, time: float | None) -> list[Path]:
        """Returns the other files that are read at a time."""

    @abstractmethod
    def array_names(self, time: float | None) -> ArrayNames:
        """Returns the names of the arrays of any part."""

    @abstractmethod
    def read(self, time: float | None, arrays: Collection[ArrayName] | None) -> list[Part]:
        """Reads the parts at a time.

        Args:
            time: One of `times`; None where there is none.
            arrays: The arrays to read; None for all.

        Raises:
            FileNotFoundError: A file that it names is missing.
            ValueError: A file is damaged.
        """

    def time(self, wanted: str | None) -> float | None:
        """Returns the time to read: the latest, or that of a value as `0.5` or a number from 0 on as `step:3`.

        Raises:
            ValueError: There is no such time.
        """
        times = self.times()
        if wanted is None:
            return times[-1] if times else None
        if (step := _STEP.fullmatch(wanted)) and int(step[1]) < len(times):
            return times[int(step[1])]
        try:
            value = float(wanted)
        except ValueError:
            value = float("nan")
        near = [time for time in times if abs(time - value) <= 1e-6 * max(abs(time), abs(value))]
        if not near:
            listed = _shortened([f"{time:g}" for time in times])
            raise ValueError(f"{self.path}: no time {wanted!r}, it has {listed or 'none'} (or step:0, step:1, …)")
        return min(near, key=lambda time: abs(time - value))


def linked_file(path: Path, name: str) -> Path:
    """Returns a file that another one names.

    Raises:
        FileNotFoundError: It does not exist.
        ValueError: It lies outside the folder of the file that names it.
    """
    folder, file = path.absolute().parent, path.absolute().parent / name
    if not name or not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}: it names the file {name!r:.200}, expected one in its folder or deeper")
    if not file.is_file():
        raise FileNotFoundError(f"{path.parent / name}: no such file, which {path.name} names")
    return path.parent / name


def chosen_names(path: Path, names: Collection[str], patterns: Collection[str], *, kind: str = "part") -> set[str]:
    """Returns the parts whose whole name, or the last word of it, matches one of some regular expressions.

    Args:
        path: The file or case, for messages.
        names: Names of the parts.
        patterns: The regular expressions.
        kind: What a part is called there.

    Raises:
        ValueError: A regular expression is none, or matches no part.
    """
    chosen = set[str]()
    for pattern in patterns:
        try:
            matching = {n for n in names if re.fullmatch(pattern, n) or re.fullmatch(pattern, n.rpartition("/")[2])}
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        if not matching:
            raise ValueError(f"{path}: no {kind} matches {pattern!r}, it has {_shortened(list(names)) or 'none'}")
        chosen |= matching
    return chosen


def _shortened(words: Sequence[str], most: int = 20) -> str:
    return ", ".join(words if len(words) <= most else [*words[: most - 1], "…", words[-1]])
