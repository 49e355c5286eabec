"""The training loop: batches in, losses, validation and checkpoints out; a signal can stop it at any step."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.samples import Sample
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.trackers import Tracker
from emmi_jax.training.processes import is_main, vote
from emmi_jax.training.step import Metrics, TrainState, TrainStep

Row = dict[str, Any]

_MOST_NAMES = 8


class Stop:
    """The signal that has asked this process to stop, if any."""

    signal_number: int | None = None


class LoopEnd(NamedTuple):
    """End of the loop: the state, the steps done, the seconds of training, and the signal that stopped it early."""

    state: TrainState
    step: int
    seconds: float
    signal_number: int | None


class Schedule(NamedTuple):
    """Steps of the loop: first and last step, and steps between checkpoints and validations, if any."""

    start: int
    steps: int
    checkpoint_every: int
    validate_every: int | None

    def validates(self, step: int) -> bool:
        """Returns whether the state after this step is validated."""
        return self.validate_every is not None and (step % self.validate_every == 0 or step == self.steps)

    def saves(self, step: int) -> bool:
        """Returns whether there is a checkpoint of this step; what was validated may turn out to be the best."""
        return step % self.checkpoint_every == 0 or step == self.steps or self.validates(step)


@dataclass
class _Logs:
    """The logs of a run, and what is shown of them; only the main process writes."""

    run: RunDirectory
    learning_rates: NDArray[np.float32]
    start: int
    show: Callable[[Row], None]
    trackers: Sequence[Tracker]
    origin: Callable[[int], str]

    def __post_init__(self) -> None:
        rows = self.run.truncate_metrics(self.start) if is_main() else []
        self.seconds_before = rows[-1]["seconds"] if rows else 0.0
        self.begin = time.monotonic()

    def seconds(self) -> float:
        """Returns the seconds of training up to now, those before a resumption included."""
        return round(self.seconds_before + time.monotonic() - self.begin, 3)

    def record(self, step: int, metrics: Metrics) -> None:
        """Writes the metrics of a step, and waits for them.

        Raises:
            ValueError: They are not finite.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if not all(map(math.isfinite, values.values())):
            raise ValueError(f"training diverged at step {step}, {self.origin(step)}: {values}")
        row = {"step": step, **values, "learning_rate": float(self.learning_rates[step - 1]), "seconds": self.seconds()}
        if is_main():
            self.run.append(self.run.metrics_log, row)
            self.show(row)
            self._track(step, {name: value for name, value in row.items() if name != "step"}, "train")

    def record_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a validation."""
        if is_main():
            self.run.append(self.run.validation_log, {"step": step, **metrics, "seconds": self.seconds()})
            self._track(step, metrics, "validation")

    def _track(self, step: int, metrics: Mapping[str, float], part: str) -> None:
        for track in self.trackers:
            track(step, {f"{part}/{name}": value for name, value in metrics.items()})


def fit(
    state: TrainState,
    *,
    run: RunDirectory,
    train_step: TrainStep,
    batches: Iterable[Sample],
    learning_rates: NDArray[np.float32],
    schedule: Schedule,
    checkpoints: Checkpoints,
    show: Callable[[Row], None],
    validate: Callable[[TrainState], Mapping[str, float]],
    cases: Callable[[int], Sequence[str]],
    trackers: Sequence[Tracker] = (),
) -> LoopEnd:
    """Trains from one step to another, and saves checkpoints: periodically, at a signal, and at the end.

    A batch depends only on its step, so a loop resumed from a checkpoint gives the same result as an uninterrupted one.

    Args:
        state: The state before the first step.
        run: The folder of the logs.
        train_step: Makes a step.
        batches: The batches of all steps, on the devices.
        learning_rates: The learning rate of each step of the run.
        schedule: When to do what.
        checkpoints: Where checkpoints go.
        show: Called with the metrics of every step.
        validate: Returns the metrics of a state, of which `mean` decides which checkpoint is the best.
        cases: Returns the names of the cases of a batch, by the number of steps before it.
        trackers: Called in the main process with the metrics of every step and of every validation.

    Raises:
        ValueError: The loss or the gradient is not finite; the message has the step, the names of its cases and the
            last checkpoint, which precedes it.
    """
    logs = _Logs(run, learning_rates, schedule.start, show, trackers, partial(_origin, checkpoints, cases))
    step, stopped, ballot = schedule.start, False, vote(False)
    pending: tuple[int, Metrics] | None = None
    with stop_on_signal() as stop:
        for step, batch in enumerate(batches, schedule.start + 1):
            state, metrics = train_step(state, batch)
            if pending is not None:  # one step late, to avoid waiting for the device
                logs.record(*pending)
            pending = step, metrics
            # Also one step late, as all processes stop after the same step.
            stopped, ballot = ballot(), vote(stop.signal_number is not None)
            if schedule.saves(step) or stopped:
                logs.record(*pending)
                pending, scores = None, None
                if schedule.validates(step) and not stopped:
                    scores = validate(state)
                    logs.record_validation(step, scores)
                checkpoints.save(step, state.items(), scores)
            if stopped:
                break
        signal_number = stop.signal_number or signal.SIGTERM
        return LoopEnd(state, step, logs.seconds(), signal_number if stopped and step < schedule.steps else None)


def _origin(checkpoints: Checkpoints, cases: Callable[[int], Sequence[str]], step: int) -> str:
    """Returns the cases of a step and the last checkpoint, in words."""
    names = list(dict.fromkeys(cases(step - 1)))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    last = "none" if checkpoints.step() is None else checkpoints.step()
    return f"cases {', '.join(names[:_MOST_NAMES])}{more}, last checkpoint {last}; try a smaller --learning-rate"


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
