"""Commands in processes that are forked after the imports, and that stop where a test wants them to.

The faults come from an audit hook, which Python calls before it opens, renames or removes a file.
"""

from __future__ import annotations

import errno
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from emmi_jax.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["tests.faults.children", "emmi_jax.jobs.train", "emmi_jax.jobs.prepare", "emmi_jax.jobs.export", "torch"]
)
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Fault(NamedTuple):
    """What happens to a command at one of its changes of files, counted from 0.

    Args:
        at: The change.
        kind: ``kill``, which may come some time later; ``full``: this change and all after it find the disk full.
        delay: Seconds until the kill, which may hit a thread that writes.
    """

    at: int
    kind: str
    delay: float = 0.0


class Ended(NamedTuple):
    """The exit status of a command (negative: the signal), what it wrote to stderr, and how often it changed files."""

    status: int
    errors: str
    num_changes: int


class Child:
    """A command that runs in another process.

    Args:
        arguments: The command line without the program's name.
        folder: Only changes in here count.
        fault: What happens to it; None for nothing.
    """

    def __init__(self, arguments: Sequence[object], folder: Path, fault: Fault | None = None) -> None:
        self._log = folder.with_name(f"{folder.name}.stderr")
        self._num_changes = _CONTEXT.Value("i", 0)
        words = ["emmi-jax", *map(str, arguments)]
        target = (words, str(folder), fault, self._log, self._num_changes)
        self.process: BaseProcess = _CONTEXT.Process(target=_run, args=target)
        self.process.start()

    def end(self, timeout: float = 300) -> Ended:
        """Waits for the end."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            os.kill(self.process.pid or 0, signal.SIGABRT)  # prints where every thread is
            self.process.join()
            raise TimeoutError(self._log.read_text())
        return Ended(self.process.exitcode, self._log.read_text(), self._num_changes.value)


def ended(arguments: Sequence[object], folder: Path, fault: Fault | None = None) -> Ended:
    """Runs a command to its end."""
    return Child(arguments, folder, fault).end()


def is_one_line(errors: str) -> bool:
    """Returns whether this is the line of an expected failure."""
    return errors.count("\n") == 1 and errors.startswith("emmi-jax ") and ": error: " in errors


def _run(words: list[str], folder: str, fault: Fault | None, log: Path, num_changes: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    faulthandler.enable(file=2)
    sys.argv = words
    lock = threading.Lock()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not _changes(event, arguments, folder):
            return
        with lock:
            number = num_changes.value
            num_changes.value += 1
        if fault is None or number < fault.at:
            return
        if fault.kind == "full":
            if event in ("open", "os.mkdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])
        elif number == fault.at:
            if fault.delay:
                threading.Thread(target=_kill_later, args=(fault.delay,), daemon=True).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sys.exit(main())


def _kill_later(delay: float) -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def _changes(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
            return False
    elif event not in _CHANGES:
        return False
    name = arguments[0]
    return not isinstance(name, int) and os.path.join(folder, os.fsdecode(name)).startswith(f"{folder}/")
