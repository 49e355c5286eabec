"""Trackers of metrics beside a run's own logs: TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TypeAlias

from emmi_jax.files.atomic import JsonDict, naming_the_file
from emmi_jax.runs.directory import RunDirectory

Tracker: TypeAlias = Callable[[int, Mapping[str, float]], None]
"""Receives the metrics of a step by name."""


@contextlib.contextmanager
def trackers(run: RunDirectory, settings: JsonDict, *, wandb_project: str | None = None) -> Iterator[Sequence[Tracker]]:
    """Opens the trackers of a run and closes them.

    Args:
        run: The run; its folder receives `tensorboard/`, if tensorboardX is installed.
        settings: Settings of the run, for Weights & Biases.
        wandb_project: Project of Weights & Biases; None for none.
    """
    with contextlib.ExitStack() as stack:
        opened = []
        if find_spec("tensorboardX") is not None:
            from tensorboardX import SummaryWriter

            stack.enter_context(_quiet_thread())
            with naming_the_file(run.path / "tensorboard"):
                writer = SummaryWriter(str(run.path / "tensorboard"))
            thread = writer.file_writer.event_writer._worker  # which a failed close leaves running

            @stack.callback
            def close() -> None:
                with naming_the_file(run.path / "tensorboard"):
                    try:
                        writer.close()
                    finally:
                        if thread.is_alive():
                            thread.stop()

            def to_tensorboard(step: int, metrics: Mapping[str, float]) -> None:
                with naming_the_file(run.path / "tensorboard"):
                    for name, value in metrics.items():
                        writer.add_scalar(name, value, step)

            opened.append(to_tensorboard)
        if wandb_project is not None:
            import wandb  # type: ignore[import-not-found]

            # The name of the run is that of its folder, so that a resumed run goes on there.
            session = wandb.init(project=wandb_project, id=run.path.name, resume="allow", config=dict(settings))
            stack.callback(session.finish)
            opened.append(lambda step, metrics: session.log(dict(metrics), step=step))
        yield opened


@contextlib.contextmanager
def _quiet_thread() -> Iterator[None]:
    """Leaves out what the thread of tensorboardX prints when it cannot write: closing the writer raises it too."""

    def report_others(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboardX"):
            report(arguments)

    report, threading.excepthook = threading.excepthook, report_others
    try:
        yield
    finally:
        threading.excepthook = report
