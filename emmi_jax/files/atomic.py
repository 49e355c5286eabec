"""Files and folders: atomic writes, JSON, and checks before anything is written."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import shutil
import tempfile
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emmi_jax.deploy.parsing import check_depth, finite_number, parse_json

JsonDict = dict[str, Any]

_MAX_TEXT = 1 << 28
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
CHECKSUM = "checksum"


class UnwritableFileError(OSError):
    """A file cannot be written, for instance because the disk is full; the message names the file."""


def acquire(path: Path) -> tuple[int, OSError | None]:
    """Opens a file, made if it is missing, and locks it; between the machines of a network file system too.

    The kernel releases the lock when the process ends, however it ends.

    Returns:
        The descriptor of the file, to be closed; and why it is not locked, if its file system has no locks.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):  # its last owner has renamed or removed it
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor, None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, error
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which becomes `path` at the end; an exception leaves no partial file.

    Folders that are missing are made. Of two processes that write one file, the second gets an error.

    Raises:
        UnwritableFileError: Writing failed, or another process writes this file.
    """
    # The extension stays last, because some writers go by it.
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    with naming_the_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor, _ = acquire(partial)
        except BlockingIOError:
            raise UnwritableFileError(f"{path} cannot be written: another process writes it") from None
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Writes comma-separated values atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue())


def write_json(path: Path, value: JsonDict) -> None:
    """Writes JSON atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON.
    """
    return _parse(path, "JSON", parse_json)


def read_toml(path: Path) -> JsonDict:
    """Reads TOML.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML.
    """
    return _parse(path, "TOML", parse_toml)


def parse_toml(content: bytes) -> JsonDict:
    """Parses TOML; raises a ValueError where it is none, is nested too deep, or has a number that is not finite."""
    try:
        values = tomllib.loads(content.decode(), parse_float=finite_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    check_depth(values)
    return values


def read_json_object(path: Path) -> JsonDict:
    """Reads a JSON object; raises as `read_json` does, and a ValueError for another value."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def sealed(values: JsonDict) -> JsonDict:
    """Returns an object that is written as JSON with its checksum."""
    return values | {CHECKSUM: zlib.crc32(json.dumps(values, sort_keys=True).encode())}


def unsealed(values: JsonDict) -> JsonDict:
    """Returns an object as it was before it was `sealed`; raises a ValueError where a value has changed since."""
    inner = {name: value for name, value in values.items() if name != CHECKSUM}
    if values != sealed(inner):
        raise ValueError("wrong checksum")
    return inner


def read_sealed(path: Path) -> JsonDict:
    """Reads a JSON object that was written `sealed`; raises as `read_json_object` and `unsealed` do."""
    values = read_json_object(path)
    try:
        return unsealed(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse(path: Path, kind: str, parse: Callable[[bytes], Any]) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _MAX_TEXT:
        raise ValueError(f"{path}: not {kind}: it has {_in_words(path.stat().st_size)}")
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not {kind}: {error!s:.200}") from None


def cache_folder() -> Path | None:
    """Returns the folder for what can be made again; None where this user has no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "emmi_jax"
    except RuntimeError:
        return None


def make_folder(path: Path) -> None:
    """Makes a folder to write to, and its parents, unless they exist.

    Raises:
        UnwritableFileError: It cannot be made, or files cannot be written to it.
    """
    with naming_the_file(path):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def check_space(path: Path, num_bytes: int) -> None:
    """Checks that a disk has enough space before any work is done.

    Args:
        path: A file or folder to write to; it need not exist.
        num_bytes: How much will be written. A file that it replaces counts in full, because it stays until then.

    Raises:
        UnwritableFileError: There is less space.
    """
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    with naming_the_file(path):
        free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise UnwritableFileError(
            f"{path}: up to {_in_words(num_bytes)} will be written and {_in_words(free)} are free: make room on that "
            "disk, or write to another"
        )


def check_memory(path: Path, num_bytes: int) -> None:
    """Refuses a file whose arrays cannot fit in the memory of this machine.

    Raises:
        ValueError: They need more; the message names the file.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > memory:
        raise ValueError(f"{path}: its arrays need {_in_words(num_bytes)}, this machine has {_in_words(memory)}")


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Names the file in the error of a failed write, which itself names none, or the partial file."""
    try:
        yield
    except UnwritableFileError:
        raise
    except OSError as error:
        raise UnwritableFileError(f"{path} cannot be written: {error.strerror or error}") from error


def _in_words(num_bytes: int) -> str:
    unit = "GiB" if num_bytes >= 2**30 else "MiB"
    return f"{num_bytes / (2**30 if unit == 'GiB' else 2**20):,.1f} {unit}"
