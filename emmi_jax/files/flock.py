"""Locks on files, which the kernel releases when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import NamedTuple

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Held(NamedTuple):
    """The descriptor of a file, to be closed; `problem` says why it is not locked, if its file system has no locks."""

    descriptor: int
    problem: OSError | None


def acquire(path: Path) -> Held:
    """Opens a file, made if it is missing, and locks it; between the machines of a network file system too.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: It cannot be opened.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # its last owner has renamed or removed it
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return Held(descriptor, None)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return Held(descriptor, error)
            os.close(descriptor)
            raise
        os.close(descriptor)
