"""The batches of a run: each a function of its step alone, drawn ahead by Grain in a thread or in processes."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from emmi_jax.config import SupernodePoolingConfig, TrainSettings
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Dataset, Sample, normalize_condition, normalize_sample, stack_samples
from emmi_jax.layers.supernode_pooling import search_neighbors

_T = TypeVar("_T")

_AHEAD = 2
_FREED_BY_TRACKER = "ignore:resource_tracker"
"""Items that are ready when workers are closed are freed by a process of multiprocessing, which would warn of each."""


@dataclass(frozen=True)
class DrawBatch:
    """Draws the cases of a step; it can be pickled, and touches no device.

    Args:
        settings: Settings of the run.
        dataset: The data.
        normalizer: Scales of positions, fields and conditions; None leaves positions and fields as they are.
        rows: The rows of the batch to draw.
        pooling: How to find the neighbours of supernodes; None leaves that to the devices.
    """

    settings: TrainSettings
    dataset: Dataset
    normalizer: Normalizer | None
    rows: tuple[int, ...]
    pooling: SupernodePoolingConfig | None = None

    def __call__(self, step: int) -> Sample:
        """Returns the rows of a step's batch; of several members, with a leading axis for them."""
        seeds = self.settings.seeds
        if len(seeds) == 1:
            return self._draw(step, seeds[0])
        batch: Sample = jax.tree.map(lambda *leaves: np.stack(leaves), *(self._draw(step, seed) for seed in seeds))
        return batch

    def _draw(self, step: int, seed: int) -> Sample:
        size = self.settings.batch_size
        sampling = self.settings.sampling_at(step)
        dataset = self.dataset if sampling == self.settings.sampling else self.dataset.resampled(sampling)
        drawn = [dataset.train_sample(seed, step * size + row) for row in self.rows]
        if self.normalizer is None:
            drawn = [normalize_condition(self.dataset.conditions, sample) for sample in drawn]
        else:
            drawn = [normalize_sample(self.normalizer, sample) for sample in drawn]
        batch = stack_samples(drawn)
        if (shown := batch.geometry) is None or self.pooling is None:
            return batch
        neighbors = search_neighbors(shown.position, shown.supernode_idx, self.pooling, on_host=True)
        return batch._replace(geometry=shown._replace(neighbors=neighbors))


def made_ahead(make: Callable[[int], _T], start: int, stop: int, *, workers: int = 0) -> Generator[_T]:
    """Yields `make(start) … make(stop - 1)`, made ahead; an error is raised in place of its item.

    The thread or the processes end with the iterator, even if that is closed early, and with this process.

    Args:
        make: Makes the item of a number, a pytree of arrays; with workers it must be picklable.
        start: First number.
        stop: One past the last number.
        workers: Processes that make every `workers`-th item each; 0: a thread makes them all.

    Raises:
        ValueError: A worker was killed, shared memory is full, or an error of `make` could not come back from a worker
            as it was.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain has flags of its own, and reads them
        flags.FLAGS.mark_as_parsed()
    items = grain.MapDataset.range(start, stop).map(_Portable(make))
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    dataset = items.to_iter_dataset(read).mp_prefetch(options, worker_init_fn=_serve)
    sys.warnoptions.append(_FREED_BY_TRACKER)
    try:
        with _advice(), contextlib.closing(iter(dataset)) as iterator:
            yield from iterator
    finally:
        sys.warnoptions.remove(_FREED_BY_TRACKER)


@dataclass(frozen=True)
class _Portable:
    """A function whose errors can be pickled, and end no iteration: Grain would wait for others, or skip an item."""

    function: Callable[[int], Any]

    def __call__(self, number: int) -> Any:
        try:
            return self.function(number)
        except Exception as error:
            try:
                is_portable = type(pickle.loads(pickle.dumps(error))) is type(error)
            except Exception:  # whatever an error's own class does
                is_portable = False
            if is_portable and not isinstance(error, StopIteration):
                raise
            raise ValueError(f"{type(error).__name__}: {error}") from None


@contextlib.contextmanager
def _advice() -> Iterator[None]:
    """Says what to do where workers end or cannot begin."""
    try:
        yield
    except RuntimeError as error:
        if not (ended := str(error).partition(" was terminated unexpectedly")[2]):
            raise
        raise ValueError(f"a worker ended{ended.partition('.')[0]}; if memory is short, take fewer workers") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError("shared memory (/dev/shm) is full: take fewer workers, or enlarge it") from error


def _serve(index: int, count: int) -> None:
    """Prepares a worker: it uses no accelerator, and ends when its parent says so or is no more, not at a signal."""
    jax.config.update("jax_platforms", "cpu")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
