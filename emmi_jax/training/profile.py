"""A trace of a few steps, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TypeVar

import jax

FIRST_STEP, END_STEP = 10, 15

_T = TypeVar("_T")


def traced(batches: Iterable[_T], folder: Path) -> Generator[_T]:
    """Yields batches, and writes a trace of the tenth to the fourteenth step after the first into a folder."""
    running = False
    try:
        for number, batch in enumerate(batches):
            if number == FIRST_STEP:
                jax.profiler.start_trace(folder)
                running = True
            elif number == END_STEP:
                jax.profiler.stop_trace()
                running = False
            yield batch
    finally:
        if running:
            jax.profiler.stop_trace()
