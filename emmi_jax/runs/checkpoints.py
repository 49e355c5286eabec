"""Checkpoints of a run, written by orbax so that a kill at any moment leaves the last complete one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

LATEST, BEST = "latest", "best"
_KEPT = 2
_SCORE = "mean"


class Checkpoints:
    """The last two checkpoints of a run and the best validated one; use it as a context manager.

    They are written in the background; leaving the context waits for that. Where several processes share a run, all of
    them save and restore together, and the number of devices may change in between.

    Args:
        directory: Folder of the checkpoints; made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        best = policies.BestN(n=1, get_metric_fn=_score, reverse=True, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(_KEPT), best]),
            best_fn=_score,
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._manager.close()

    def step(self, which: str = LATEST) -> int | None:
        """Returns the number of steps done in the newest checkpoint, or in the best one; None if there is none."""
        if which == LATEST:
            return cast("int | None", self._manager.latest_step())
        best = cast("int | None", self._manager.best_step())
        return None if best is None or _score(self._manager.metrics(best) or {}) == math.inf else best

    def holds(self, name: str, which: str = LATEST) -> bool:
        """Returns whether a checkpoint has an item of this name."""
        return (self._directory / str(self.step(which)) / name).is_dir()

    def save(self, step: int, items: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Saves named pytrees after `step` steps, unless that checkpoint exists.

        Args:
            step: Number of steps done.
            items: Trees of arrays by name.
            metrics: Metrics of a validation; the lowest `mean` makes the best checkpoint.
        """
        if step != self.step():
            saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**saved), metrics=dict(metrics or {}))

    def restore(self, like: Mapping[str, Any], which: str = LATEST) -> dict[str, Any]:
        """Restores some of the items of a checkpoint.

        Args:
            like: Trees of arrays or shapes, by name; where a shape has no sharding, the array comes to one device.
            which: ``latest`` or ``best``.

        Raises:
            ValueError: There is no such checkpoint.
        """
        step = self.step(which)
        if step is None:
            raise ValueError(f"{self._directory}: no {which} checkpoint yet")
        items = {name: ocp.args.StandardRestore(jax.tree.map(_with_sharding, tree)) for name, tree in like.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in like}


def _score(metrics: Mapping[str, float]) -> float:
    return metrics.get(_SCORE, math.inf)


def _with_sharding(array: Any) -> jax.ShapeDtypeStruct:
    """Asks for the array on devices of this machine, whatever kind of device it was saved from."""
    sharding = getattr(array, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
