"""Locks on folders: one process writes to a folder, and the next is told which one does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from emmi_jax.files.atomic import acquire, naming_the_file

LOCK_FILE = ".lock"

_log = logging.getLogger(__name__)


class FolderInUseError(ValueError):
    """Another process writes to a folder; the message says which one."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder: that of its file `.lock`, which says who holds it.

    The kernel releases it when the process ends, however it ends. It holds between the machines of a network file
    system too. Where a file system has no locks, a warning is logged and nothing is locked.

    Args:
        folder: A folder that exists. It may be renamed meanwhile.

    Raises:
        FolderInUseError: Another process holds it.
        UnwritableFileError: The file cannot be written.
    """
    descriptor = _acquire(folder)
    place = os.open(folder, os.O_RDONLY)  # follows the folder when it is renamed
    try:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with naming_the_file(folder / LOCK_FILE):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(LOCK_FILE, dir_fd=place)
        os.close(place)
        os.close(descriptor)


def _acquire(folder: Path) -> int:
    path = folder / LOCK_FILE
    with naming_the_file(path):
        try:
            descriptor, problem = acquire(path)
        except BlockingIOError:
            raise FolderInUseError(f"{folder} is in use by {_owner(path)}: wait until it ends, or stop it") from None
        except FileNotFoundError:
            if folder.is_dir():
                raise
            raise FolderInUseError(f"{folder} was in use until now, and is gone") from None
    if problem is not None:
        _log.warning("%s: this file system has no locks (%s): let no other process write there", folder, problem)
    return descriptor


def _owner(path: Path) -> str:
    try:
        values = json.loads(path.read_bytes())
        return f"process {values['pid']} on {values['host']} since {values['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
