import threading
import time

import pytest

from emmi_jax.training.prefetch import prefetch


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_items_come_in_order():
    assert list(prefetch(lambda n: n * n, 2, 7)) == [4, 9, 16, 25, 36]


def test_an_empty_range_gives_nothing():
    assert list(prefetch(lambda n: n, 3, 3)) == []


def test_no_more_items_are_made_ahead_than_the_depth():
    made = []
    items = prefetch(lambda n: made.append(n) or n, 0, 100, depth=2)
    assert next(items) == 0
    time.sleep(0.2)
    assert len(made) <= 4  # one taken, two waiting, one in the thread's hand
    items.close()


def test_an_error_is_raised_where_its_item_would_come():
    def make(number: int) -> int:
        if number == 2:
            raise KeyError("broken")
        return number

    items = prefetch(make, 0, 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(KeyError, match="broken"):
        next(items)
    assert "prefetch" not in thread_names()


def test_closing_early_ends_the_thread():
    items = prefetch(lambda n: n, 0, 1000)
    next(items)
    assert "prefetch" in thread_names()
    items.close()
    assert "prefetch" not in thread_names()


def test_several_threads_finish_items_that_still_come_in_order():
    both = threading.Barrier(2, timeout=10)

    def finish(number: int) -> int:
        if number < 2:
            both.wait()  # passes only if two items are finished at once
        return 10 * number

    assert list(prefetch(lambda n: n, 0, 6, finish=finish, num_threads=2)) == [0, 10, 20, 30, 40, 50]


def test_an_error_in_finishing_is_raised_where_its_item_would_come():
    items = prefetch(lambda n: n, 0, 9, finish=lambda n: 1 // (2 - n), num_threads=3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert not [name for name in thread_names() if name.startswith(("prefetch", "finish"))]
