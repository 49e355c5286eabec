"""Work that is shared among processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_in_processes(
    function: Callable[..., _T], arguments: Mapping[str, tuple[Any, ...]], workers: int
) -> Generator[tuple[str, _T], None, None]:
    """Calls a function in other processes; yields the name of each call and what it returned, as they are done.

    Raises:
        OSError: A process was killed.
    """
    # Processes that are forked off one with threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_in_silence) as pool:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            futures = {pool.submit(function, *given): name for name, given in arguments.items()}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise OSError("a worker was killed, perhaps for lack of memory: try fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_in_silence() -> None:
    """Lets an interrupt, which is blocked while a process starts, end it without a word: the first process tells."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
