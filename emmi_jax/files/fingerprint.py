"""A cheap fingerprint of files: large ones are not read whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_END_BYTES = 1 << 16


def fingerprint(paths: Iterable[Path], root: Path, *, with_times: bool = False, selected: str = "") -> str:
    """Returns a digest of the names of files below `root`, their sizes, and their first and last 64 KiB.

    Data that are copied elsewhere keep it. Files that are written anew do not: the end of a `.pt` or `.npz` file has
    checksums of its arrays.

    Args:
        paths: The files.
        root: The folder that names are relative to.
        with_times: Whether times of modification count too, so that every change shows; copies then differ.
        selected: What is read of the files, if that is not all.
    """
    digest = hashlib.sha256(selected.encode())
    for path in paths:
        status = path.stat()
        time = status.st_mtime_ns if with_times else 0
        digest.update(f"{os.path.relpath(path, root)}\0{status.st_size}\0{time}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(file.tell(), status.st_size - _END_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:32]
