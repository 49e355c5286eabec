"""Batches made ahead of time in threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


def prefetch(
    make: Callable[[int], _T],
    start: int,
    stop: int,
    *,
    finish: Callable[[_T], _T] = lambda item: item,
    num_threads: int = 1,
    depth: int = 2,
) -> Generator[_T]:
    """Yields `finish(make(start)) … finish(make(stop - 1))`, made ahead in threads.

    The threads end with the iterator, even if that is closed early. An error is raised in place of its item.

    Args:
        make: Makes the item of a number; runs in one thread.
        start: First number.
        stop: One past the last number.
        finish: What remains to be done with an item; runs for several items at once.
        num_threads: How many these are.
        depth: Most items that wait, beside one in each of these threads.
    """
    items: queue.Queue[Future[_T]] = queue.Queue(maxsize=depth + num_threads - 1)
    closed = threading.Event()

    def put(item: Future[_T]) -> None:
        while not closed.is_set():
            try:
                items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="finish")
        try:
            for number in range(start, stop):
                if closed.is_set():
                    break
                put(pool.submit(finish, make(number)))
        except BaseException as error:
            failed: Future[_T] = Future()
            failed.set_exception(error)
            put(failed)
        finally:
            pool.shutdown(cancel_futures=closed.is_set())

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            yield items.get().result()
    finally:
        closed.set()
        thread.join()
