"""Checkpoints of a run, written by orbax so that a kill at any moment leaves the last complete one."""

from __future__ import annotations

import gc
import logging
import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from emmi_jax.files.atomic import JsonDict, UnwritableFileError, make_folder, read_json_object, read_sealed, sealed
from emmi_jax.files.checksums import begin_checksums, checksums
from emmi_jax.runs.orbax import (
    RECORD,
    RECORD_FILE,
    SaveRecord,
    check_shapes,
    first_line,
    naming_the_folder,
    quiet,
    shapes_of,
    with_sharding,
)

LATEST, BEST = "latest", "best"
_KEPT = 2
_SCORE = "mean"
_SPECIAL = frozenset("[]*?\\")
"""Characters of folders that orbax takes for a pattern, or TensorStore for a separator: they get a link."""

_log = logging.getLogger(__name__)


class DamagedCheckpointError(ValueError):
    """A checkpoint cannot be read, or its arrays are not those that were saved."""


class _WrongChecksumError(ValueError):
    """An array is not what was saved; all processes find so."""


class Restored(NamedTuple):
    """The items of a checkpoint, by name, and the number of steps before it."""

    step: int
    items: dict[str, Any]


class Checkpoints:
    """The last two checkpoints of a run and the best validated one; use it as a context manager.

    They are written in the background; leaving the context waits for that. Where several processes share a run, all of
    them save and restore together, and the number of devices may change in between.

    Args:
        directory: Folder of the checkpoints; made if it is missing.
        read_only: Whether nothing is written, made or deleted, so that another process may train meanwhile.
    """

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        self._directory = directory
        self._scores: dict[int, float | None] = {}
        self._manager = None
        self._quiet = quiet()
        self._place, self._link = directory.resolve(), None
        if not _SPECIAL.isdisjoint(str(self._place)):
            self._link = tempfile.TemporaryDirectory(prefix="emmi_jax-")
            self._place = Path(self._link.name, directory.name)
            self._place.symlink_to(directory.resolve(), target_is_directory=True)
        if not read_only:
            make_folder(directory)
            options = ocp.CheckpointManagerOptions(preservation_policy=self, create=True, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self._place, options=options)

    def __enter__(self) -> Self:
        self._quiet.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._manager is not None:
                with naming_the_folder(self._directory):
                    self._manager.close()
        except UnwritableFileError:
            if error is None:  # otherwise that says more
                raise
        finally:
            if self._link is not None:
                self._link.cleanup()
            self._quiet.__exit__(None, None, None)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells orbax which checkpoints to keep; one whose score is unknown may be the best."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        scores = {step: self._score(step) for step in steps}
        kept = {*steps[-_KEPT:], _best(scores), *(step for step, score in scores.items() if score is None)}
        return [step in kept for step in steps]

    def step(self, which: str = LATEST) -> int | None:
        """Returns the number of steps done in the newest checkpoint, or in the best one; None if there is none.

        Raises:
            DamagedCheckpointError: A checkpoint does not say its score, so the best one is unknown.
        """
        if which == LATEST:
            return max([*self._steps(), *self._scores], default=None)  # one may be on its way
        scores = {step: self._score(step) for step in self._steps()}
        if unknown := [step for step, score in scores.items() if score is None]:
            raise DamagedCheckpointError(
                f"{self._directory / str(unknown[0])}: damaged, so which checkpoint is the best is unknown: use latest"
            )
        return _best(scores)

    def save(self, step: int, items: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Saves named pytrees after `step` steps, unless that checkpoint exists.

        Args:
            step: Number of steps done.
            items: Trees of arrays by name.
            metrics: Metrics of a validation; the lowest `mean` makes the best checkpoint. One that is not finite counts
                as infinite, and is never the best.
        """
        if self._manager is None or step == self._manager.latest_step():
            return
        finite = {name: value if math.isfinite(value) else None for name, value in (metrics or {}).items()}
        pending = {name: begin_checksums(tree) for name, tree in items.items()}
        shapes = {name: shapes_of(tree) for name, tree in items.items()}

        def record() -> JsonDict:
            sums = {name: wait() for name, wait in pending.items()}
            return sealed({"checksums": sums, "shapes": shapes, "metrics": finite})

        self._scores[step] = _score(finite)
        saved: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        saved[RECORD] = SaveRecord(record)
        with naming_the_folder(self._directory):
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def restore(self, *likes: Mapping[str, Any], which: str = LATEST) -> Restored:
        """Restores some of the items of a checkpoint.

        If the newest is damaged, a run goes on from the one before, and a line is logged. A reader would get other
        numbers, so it gets an error.

        Args:
            likes: Trees of arrays or shapes, by name; where a shape has no sharding, the array comes to one device. Of
                several such mappings, the first whose items the checkpoint has.
            which: ``latest`` or ``best``.

        Raises:
            DamagedCheckpointError: The checkpoint is damaged, and so are those before if it is the newest of a run.
            ValueError: There is no such checkpoint.
        """
        damaged: dict[int, DamagedCheckpointError] = {}
        while (step := self._next(which, damaged)) is not None:
            try:
                restored = Restored(step, self._read(step, likes))
            except DamagedCheckpointError as error:
                if (self._directory / str(step)).is_dir():
                    damaged[step] = error
                # Otherwise the run, which goes on meanwhile, has deleted it and has newer ones.
            else:
                self._give_up(damaged, step)
                return restored
        if not damaged:
            raise ValueError(f"{self._directory}: no {which} checkpoint yet")
        older = max((step for step in self._steps() if step not in damaged), default=None)
        advice = f"; remove that folder to use {self._directory / str(older)}" if older is not None else ""
        raise DamagedCheckpointError(f"{damaged[max(damaged)]}{advice}")

    def _next(self, which: str, damaged: Collection[int]) -> int | None:
        """Returns the step of the checkpoint to try next."""
        if damaged and (self._manager is None or which == BEST):
            return None
        return (
            max((s for s in self._steps() if s not in damaged), default=None) if which == LATEST else self.step(which)
        )

    def _read(self, step: int, likes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Restores items of a checkpoint and compares their checksums.

        Raises:
            DamagedCheckpointError: They cannot be read, or are damaged.
        """
        folder = self._directory / str(step)
        like = next((like for like in likes if all((folder / name).is_dir() for name in like)), likes[-1])
        items = {name: ocp.args.StandardRestore(jax.tree.map(with_sharding, tree)) for name, tree in like.items()}
        try:
            record = self._record(step)
            for name, shapes in (record or {}).get("shapes", {}).items():
                if name in like:
                    check_shapes(name, shapes, shapes_of(like[name]))
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                restored = reader.restore(self._place / str(step), args=ocp.args.Composite(**items))
            if record is not None:
                for name in like:
                    _compare(name, record["checksums"][name], restored[name])
            return {name: restored[name] for name in like}
        except Exception as error:  # whatever damaged bytes make orbax and TensorStore raise
            # Of several processes this may be the only one that has failed: it must not go on with another checkpoint.
            is_agreed = jax.process_count() == 1 or isinstance(error, _WrongChecksumError)
            kind = DamagedCheckpointError if is_agreed else ValueError
            reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        with quiet():  # orbax's unfinished reads raise once more when they are freed
            gc.collect()
        raise kind(f"{folder}: the checkpoint is damaged, or of another model: {reason}")

    def _give_up(self, damaged: Mapping[int, DamagedCheckpointError], used: int) -> None:
        """Says which checkpoints are not used, and makes room for others of these steps."""
        for step, error in damaged.items():
            _log.warning("%s: using that of step %d", error, used)
            self._scores.pop(step, None)
            if jax.process_index() == 0:
                folder = self._directory / str(step)
                folder.rename(
                    folder.with_name(f"{step}.damaged-{len(list(self._directory.glob(f'{step}.damaged-*')))}")
                )
        if damaged and self._manager is not None:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints")
            self._manager.reload()

    def _steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, which are renamed when they are."""
        return [int(path.name) for path in self._directory.iterdir() if path.name.isdecimal()]

    def _record(self, step: int) -> JsonDict | None:
        """Returns the record of a checkpoint; None for one that was made before there were records.

        Raises:
            ValueError: It is damaged.
        """
        folder = self._directory / str(step) / RECORD
        if not folder.is_dir():
            return None
        return read_sealed(folder / RECORD_FILE)

    def _score(self, step: int) -> float | None:
        """Returns the score of a checkpoint; None if it is damaged."""
        if step not in self._scores:
            try:
                record = self._record(step)
                metrics = {} if record is None else record["metrics"]
                if record is None and (file := self._directory / str(step) / "metrics" / "metrics").is_file():
                    metrics = read_json_object(file)
                self._scores[step] = _score(metrics)
            except (ValueError, OSError):
                self._scores[step] = None
        return self._scores[step]


def _compare(name: str, saved: Mapping[str, int], tree: Any) -> None:
    for path, checksum in checksums(tree).items():
        if checksum != saved.get(path):
            raise _WrongChecksumError(f"wrong checksum of {name}{path}")


def _score(metrics: Mapping[str, Any]) -> float:
    score = metrics.get(_SCORE)
    return score if score is not None and math.isfinite(score) else math.inf


def _best(scores: Mapping[int, float | None]) -> int | None:
    finite = {step: score for step, score in scores.items() if score is not None and score < math.inf}
    return min(finite, key=lambda step: (finite[step], -step), default=None)
