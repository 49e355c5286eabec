"""The guard of what is read: an output never replaces it, nor lies inside it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PathLike = str | os.PathLike[str]


def check_output(out: PathLike, inputs: Iterable[PathLike | None], names: Iterable[str] = ()) -> None:
    """Refuses an output that is an input, by any name, or lies inside an input that is a folder.

    Args:
        out: A file, or a folder. A URL is not checked.
        inputs: Files and folders that are read; None and URLs are left out.
        names: The files that will be written to a folder.

    Raises:
        ValueError: It is, or does; the message names both.
    """
    if "://" in str(out):
        return
    for given in inputs:
        if given is None or "://" in str(given):
            continue
        path = Path(given)
        for target in (Path(out), *(Path(out, name) for name in names)):
            if _is_same(target, path):
                raise ValueError(f"{target} would replace {path}, which is read: choose another output")
        if path.is_dir() and path.resolve() in Path(out).resolve().parents:
            raise ValueError(f"{out} lies inside {path}, which is read: choose another output")


def _is_same(one: Path, other: Path) -> bool:
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)
