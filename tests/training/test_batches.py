import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.training.batches import made_ahead


def square(number: int) -> dict[str, np.ndarray | None]:
    return {"square": np.full(3, number**2), "nothing": None}


def broken_at_3(number: int) -> np.ndarray:
    if number == 3:
        raise KeyError("broken")
    return np.array(number)


def killed_at_3(number: int) -> np.ndarray:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.array(number)


class StrangeError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


ERRORS = {
    "runtime": (RuntimeError("not finite"), RuntimeError, "^not finite"),
    "unpicklable": (ValueError("held", threading.Lock()), ValueError, "ValueError: .*held"),
    "with other arguments": (StrangeError("very", "strange"), ValueError, "^StrangeError: very strange"),
    "stop": (StopIteration(), ValueError, "^StopIteration: "),
}


@dataclass
class FailsAt3:
    kind: str

    def __call__(self, number: int) -> np.ndarray:
        if number == 3:
            raise ERRORS[self.kind][0]
        return np.array(number)


def process_id(number: int) -> np.ndarray:
    return np.array(os.getpid())


def is_running(pid: int) -> bool:
    """A process that has ended but is not waited for counts as ended."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120  # of a busy machine
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    assert holds()


def wait_until_ended(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("workers", [0, 3])
def test_items_come_in_order_however_many_workers_make_them(workers):
    items = list(made_ahead(square, 2, 7, workers=workers))
    assert [item["square"].tolist() for item in items] == [[n * n] * 3 for n in range(2, 7)]
    assert all(item["nothing"] is None for item in items)


def test_an_empty_range_gives_nothing():
    assert list(made_ahead(square, 3, 3)) == []


def test_few_items_are_made_ahead():
    made: list[int] = []
    items = made_ahead(lambda number: made.append(number) or np.array(number), 0, 100)
    assert next(items) == 0
    wait_until(lambda: len(made) >= 2)
    time.sleep(0.2)
    assert len(made) <= 4
    items.close()


@pytest.mark.parametrize("workers", [0, 2], ids=["thread", "processes"])
def test_an_error_is_raised_where_its_item_would_come(workers):
    items = made_ahead(broken_at_3, 1, 9, workers=workers)
    assert [int(next(items)), int(next(items))] == [1, 2]
    with pytest.raises(KeyError, match="broken"):
        next(items)


@pytest.mark.parametrize("workers", [0, 1], ids=["thread", "process"])
@pytest.mark.parametrize("kind", ERRORS)
def test_no_error_is_lost_or_taken_for_another(kind, workers):
    _, expected, message = ERRORS[kind]
    items = made_ahead(FailsAt3(kind), 2, 9, workers=workers)
    assert int(next(items)) == 2
    with pytest.raises(expected, match=message):
        next(items)


def test_a_killed_worker_is_reported():
    with pytest.raises(ValueError, match="a worker ended with exit code -9; if memory is short, take fewer workers"):
        list(made_ahead(killed_at_3, 0, 9, workers=2))


def test_closing_early_ends_the_processes():
    items = made_ahead(process_id, 0, 1000, workers=2)
    pids = [int(next(items)), int(next(items))]
    assert os.getpid() not in pids
    assert pids[0] != pids[1]
    items.close()
    wait_until_ended(pids)


def test_closing_early_ends_the_thread():
    made: list[int] = []
    items = made_ahead(lambda number: made.append(number) or np.array(number), 0, 1000)
    next(items)
    items.close()
    num_made = len(made)
    time.sleep(0.2)
    assert len(made) <= num_made + 1


def test_workers_leave_signals_to_the_process_that_trains():
    items = made_ahead(process_id, 0, 1000, workers=2)
    pids = [int(next(items)), int(next(items))]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert [int(next(items)) for _ in range(10)] == pids * 5
    items.close()


def test_workers_end_with_a_killed_parent():
    script = (
        "import os, signal\n"
        "from emmi_jax.training.batches import made_ahead\n"
        "from tests.training.test_batches import process_id\n"
        "items = made_ahead(process_id, 0, 1000, workers=2)\n"
        "print(int(next(items)), int(next(items)), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert killed.returncode == -signal.SIGKILL
    wait_until_ended([int(pid) for pid in killed.stdout.split()])
