"""Checkpoints of a run, written by orbax so that a kill at any moment leaves the last complete one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint as ocp  # type: ignore[import-untyped]

from emmi_jax.models.init import Params
from emmi_jax.training.step import TrainState

_KEPT = 2


class Checkpoints:
    """The checkpoints in a folder, the last two of them.

    Args:
        directory: Folder of the checkpoints; made if it is missing.
    """

    def __init__(self, directory: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._directory = directory
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def latest_step(self) -> int | None:
        """Returns the number of steps done in the newest checkpoint, or None."""
        return cast("int | None", self._manager.latest_step())

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state after `step` steps, unless that checkpoint exists."""
        if step != self.latest_step():
            items = {name: ocp.args.StandardSave(value) for name, value in state._asdict().items()}
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, like: TrainState) -> TrainState:
        """Restores the newest state; `like` gives tree and shapes."""
        return TrainState(**self._restore(like._asdict()))

    def restore_params(self, like: Params) -> Params:
        """Restores the newest parameters alone; `like` gives tree and shapes."""
        return self._restore({"params": like})["params"]

    def close(self) -> None:
        """Waits for what is under way."""
        self._manager.close()

    def _restore(self, like: dict[str, Any]) -> dict[str, Any]:
        step = self.latest_step()
        if step is None:
            raise ValueError(f"{self._directory}: no checkpoint")
        items = {name: ocp.args.StandardRestore(jax.tree.map(_on_first_device, tree)) for name, tree in like.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in like}


def _on_first_device(array: Any) -> jax.ShapeDtypeStruct:
    """Asks for the array here, whatever kind of device it was saved from."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
