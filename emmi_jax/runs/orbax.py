"""Additions of ours to checkpoints that orbax writes, and its errors in words."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals

from emmi_jax.files.atomic import JsonDict, UnwritableFileError

RECORD, RECORD_FILE = "record", "metadata"
"""Item of a checkpoint: the checksums of its arrays, and the metrics of its validation."""


class _RecordHandler(ocp.JsonCheckpointHandler):  # type: ignore[misc]
    """Writes the record in the background, where it waits for the checksums while arrays are written."""

    async def async_save(self, directory: Any, item: Any = None, args: Any = None) -> list[Any]:
        async def write() -> None:
            if jax.process_index() == 0:
                (directory / RECORD_FILE).write_text(json.dumps(args.record()))

        return [CommitFutureAwaitingContractedSignals(write(), name=RECORD)]


@ocp.args.register_with_handler(_RecordHandler, for_save=True, for_restore=True)
@dataclass
class SaveRecord(ocp.args.CheckpointArgs):  # type: ignore[misc]
    """Asks orbax to save a record, which is computed when it is written."""

    record: Callable[[], JsonDict]


@contextmanager
def naming_the_folder(directory: Path) -> Iterator[None]:
    """Turns whatever orbax raises when it writes, which may be from its threads, into one line."""
    try:
        yield
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        reason = full if full in str(error) else first_line(error)
        raise UnwritableFileError(f"{directory}: a checkpoint cannot be written: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what orbax logs of failed reads and writes, once per thread: all of it is raised, too."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return not any(name in record.pathname for name in ("orbax", "asyncio"))

    _ignore_late_reads()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(is_of_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_of_others)


def _ignore_late_reads() -> None:
    """Leaves out, from now on, what is printed of reads that end, or are freed, after orbax has given up."""
    report = sys.unraisablehook

    def ignore_late_reads(unraisable: sys.UnraisableHookArgs) -> None:
        source = unraisable.object.cr_code.co_filename if isinstance(unraisable.object, CoroutineType) else ""
        if "orbax" not in source and str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    if getattr(report, "__name__", "") != ignore_late_reads.__name__:
        sys.unraisablehook = ignore_late_reads


def first_line(error: Exception) -> str:
    """Returns the first line of an error's text, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def shapes_of(tree: Any) -> dict[str, list[int]]:
    """Returns the shapes of the arrays of a tree, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): list(array.shape) for path, array in leaves}


def check_shapes(name: str, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of other arrays before orbax does, whose threads print what they miss."""
    for path in sorted({*saved, *asked}):
        if saved.get(path) != asked.get(path):
            raise ValueError(f"{name}{path} is {saved.get(path, 'missing')}, in the model {asked.get(path, 'missing')}")


def with_sharding(array: Any) -> jax.ShapeDtypeStruct:
    """Asks for the array on devices of this machine, whatever kind of device it was saved from."""
    sharding = getattr(array, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
