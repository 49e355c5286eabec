"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JsonDict = dict[str, Any]


class UnwritableFileError(OSError):
    """A file cannot be written, because the disk is full for instance; the message names the file."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields the path to write to, which becomes `path` at the end; after an exception nothing is left.

    Raises:
        UnwritableFileError: Writing failed.
    """
    # Writers that go by the extension find the same one.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with naming_the_file(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: JsonDict) -> None:
    """Writes JSON that appears under its name only when it is complete."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete."""
    with whole_file(path) as partial:
        partial.write_text(text)


def make_folder(path: Path) -> None:
    """Makes a folder to write to, unless it exists; its parent must.

    Raises:
        UnwritableFileError: It cannot be made, or nothing can be written in it.
    """
    with naming_the_file(path):
        path.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def check_space(path: Path, num_bytes: int) -> None:
    """Makes sure that a disk has room for what is going to be written, before hours of work are lost to a full one.

    Args:
        path: A file or folder to write to; it need not exist, but its parent must.
        num_bytes: How much will be written. A file that it replaces counts in full, for it stays until then.

    Raises:
        UnwritableFileError: There is less room.
    """
    with naming_the_file(path):
        free = shutil.disk_usage(path if path.is_dir() else path.parent).free
    if num_bytes > free:
        raise UnwritableFileError(
            f"{path}: up to {_in_words(num_bytes)} will be written and {_in_words(free)} are free: make room on that "
            "disk, or write to another"
        )


def _in_words(num_bytes: int) -> str:
    unit = "GiB" if num_bytes >= 2**30 else "MiB"
    return f"{num_bytes / (2**30 if unit == 'GiB' else 2**20):,.1f} {unit}"


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Says which file could not be written: a failed write does not know, and the partial file would only confuse."""
    try:
        yield
    except UnwritableFileError:
        raise
    except OSError as error:
        raise UnwritableFileError(f"{path} cannot be written: {error.strerror or error}") from error
