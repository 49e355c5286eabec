"""Batches made ahead of time in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

_T = TypeVar("_T")


def prefetch(make: Callable[[int], _T], start: int, stop: int, *, depth: int = 2) -> Generator[_T]:
    """Yields `make(start) … make(stop - 1)`, made up to `depth` items ahead in a thread.

    The thread ends with the iterator, even if that is closed early. An error in `make` is raised in place of its item.

    Args:
        make: Makes the item of a number; runs in the thread.
        start: First number.
        stop: One past the last number.
        depth: Most items that wait.
    """
    items: queue.Queue[tuple[_T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: _T | None, error: BaseException | None) -> None:
        while not closed.is_set():
            try:
                items.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for number in range(start, stop):
                if closed.is_set():
                    return
                put(make(number), None)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            item, error = items.get()
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
