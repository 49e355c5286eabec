"""Checkpoints of a run, written by orbax so that a kill at any moment leaves the last complete one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import jax
import orbax.checkpoint as ocp  # type: ignore[import-untyped]

_KEPT = 2


class Checkpoints:
    """The last two checkpoints in a folder; use it as a context manager.

    Args:
        directory: Folder of the checkpoints; made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the number of steps done in the newest checkpoint, or None."""
        return cast("int | None", self._manager.latest_step())

    def holds(self, name: str) -> bool:
        """Returns whether the newest checkpoint has an item of this name."""
        return (self._directory / str(self.latest_step()) / name).is_dir()

    def save(self, step: int, items: Mapping[str, Any]) -> None:
        """Saves named pytrees after `step` steps, unless that checkpoint exists."""
        if step != self.latest_step():
            saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def restore(self, like: Mapping[str, Any]) -> dict[str, Any]:
        """Restores some of the items of the newest checkpoint.

        Args:
            like: Trees of arrays or shapes, by name.

        Raises:
            ValueError: There is no checkpoint.
        """
        step = self.latest_step()
        if step is None:
            raise ValueError(f"{self._directory}: no checkpoint yet")
        items = {name: ocp.args.StandardRestore(jax.tree.map(_on_first_device, tree)) for name, tree in like.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in like}


def _on_first_device(array: Any) -> jax.ShapeDtypeStruct:
    """Asks for the array on this device, whatever kind of device it was saved from."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
