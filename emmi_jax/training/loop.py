"""The training loop: batches in, losses and checkpoints out; a signal can stop it at any step."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.samples import Sample
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.training.prefetch import prefetch
from emmi_jax.training.step import Metrics, TrainState, TrainStep

Row = dict[str, Any]


class Stop:
    """The signal that has asked the loop to stop, if any."""

    signal_number: int | None = None


class LoopEnd(NamedTuple):
    """How the loop ended: the state, the steps done, the seconds of training, and the signal that stopped it early."""

    state: TrainState
    step: int
    seconds: float
    signal_number: int | None


def fit(
    state: TrainState,
    *,
    run: RunDirectory,
    train_step: TrainStep,
    make_batch: Callable[[int], Sample],
    learning_rates: NDArray[np.float32],
    start: int,
    steps: int,
    checkpoint_every: int,
    checkpoints: Checkpoints,
    show: Callable[[Row], None],
) -> LoopEnd:
    """Trains from step `start` to `steps`, and saves checkpoints: periodically, at a signal, and at the end.

    A batch depends only on its step, so a loop resumed from a checkpoint gives the same result as an uninterrupted one.

    Raises:
        ValueError: The loss or the gradient is not finite; the last checkpoint precedes this.
    """
    rows = run.truncate_metrics(start)
    seconds_before = rows[-1]["seconds"] if rows else 0.0
    begin = time.monotonic()

    def seconds() -> float:
        return seconds_before + time.monotonic() - begin

    batches = prefetch(make_batch, start, steps)
    step = start
    with contextlib.closing(batches), stop_on_signal() as stop, open(run.metrics_log, "a") as log:

        def record(step: int, metrics: Metrics) -> None:
            row = _row(step, metrics, learning_rate=float(learning_rates[step - 1]), seconds=seconds())
            log.write(json.dumps(row) + "\n")
            show(row)

        pending: tuple[int, Metrics] | None = None
        for step, batch in enumerate(batches, start + 1):
            state, metrics = train_step(state, batch)
            if pending is not None:  # one step late, to avoid waiting for the device
                record(*pending)
            pending = step, metrics
            if step % checkpoint_every == 0 or step == steps or stop.signal_number is not None:
                record(*pending)
                pending = None
                log.flush()
                checkpoints.save(step, state.items())
            if stop.signal_number is not None:
                break
        return LoopEnd(state, step, seconds(), stop.signal_number if step < steps else None)


def _row(step: int, metrics: Metrics, *, learning_rate: float, seconds: float) -> Row:
    values = {name: float(value) for name, value in metrics.items()}
    if not all(map(math.isfinite, values.values())):
        raise ValueError(f"training diverged at step {step}: {values}; try a smaller --learning-rate")
    return {"step": step, **values, "learning_rate": learning_rate, "seconds": round(seconds, 3)}


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one acts as usual."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        restore()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
