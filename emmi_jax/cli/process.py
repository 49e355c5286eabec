"""The process of a command: an interrupt ends it cleanly at any moment, and its streams survive what they are tied to.

Import this first: until `end_of_imports`, an interrupt ends the process at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from types import CoroutineType, FrameType
from typing import Any, NoReturn

INTERRUPTED = 128 + signal.SIGINT
_RETRY_SECONDS = 0.05
_raised = threading.Event()  # an interrupt has been: a library may raise something else for it


class _Lasting(io.FileIO):
    """A stream that goes on into nothing once it cannot be written; `error` says why, unless its reader has gone."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = None if isinstance(error, BrokenPipeError) else error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def take_over() -> None:
    """Prepares the streams and the signals of this process, which runs one command."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None:
            stream.flush()
        encoding, is_terminal = getattr(stream, "encoding", "utf-8"), os.isatty(number)
        binary = io.BufferedWriter(_Lasting(number, "wb", closefd=False))
        lines = is_terminal or name == "stderr"
        setattr(sys, name, io.TextIOWrapper(binary, encoding, errors="replace", line_buffering=lines))
    for signal_number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(signal_number, _interrupt)
    sys.unraisablehook = _keep_interrupt
    # For the process that tidies up after workers, and would tell of what an interrupt leaves to it.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")


def flush() -> OSError | None:
    """Flushes the streams; returns why what was printed is lost, if it is."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Lasting) else None


def leave(status: int) -> NoReturn:
    """Ends the process at once: some threads would wait for minutes after a failure, or abort after an interrupt."""
    flush()
    os._exit(status)


def ignore_interrupts() -> bool:
    """Lets an interrupt that comes after the work change nothing; returns whether there was an earlier one."""
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    return signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0 or _raised.is_set()


def end_of_imports() -> None:
    """Gives interrupts their usual meaning."""
    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; later, where a worker starts or a module is imported, whose native code would abort."""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith("<frozen importlib") or (name == "start" and file.endswith("multiprocessing/process.py")):
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
            return
        frame = frame.f_back
    if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
        for child in multiprocessing.active_children():
            child.kill()
    _raised.set()
    raise KeyboardInterrupt


def _keep_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeats an interrupt that hit a finalizer, which swallows it; what is in a coroutine has been raised, too."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
    elif not isinstance(unraisable.object, CoroutineType):
        sys.__unraisablehook__(unraisable)


if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _leave_at_once)
