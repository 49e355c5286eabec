"""Work that is shared among processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_in_processes(
    function: Callable[..., _T], arguments: Mapping[str, tuple[Any, ...]], workers: int
) -> Generator[tuple[str, _T], None, None]:
    """Calls a function in other processes; yields the name of each call and what it returned, as they are done."""
    # Processes that are forked off one with threads may hang. An interrupt ends them in silence: this one tells of it.
    context, quietly = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=quietly) as pool:
        futures = {pool.submit(function, *given): name for name, given in arguments.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
