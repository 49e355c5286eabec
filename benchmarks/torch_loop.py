"""A training loop in PyTorch beside ours: the same model, batches, schedule and AdamW, in turns, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import measure, torch_model
from emmi_jax.config import TrainSettings
from emmi_jax.convert import ab_upt_from_torch
from emmi_jax.data.samples import Sample
from emmi_jax.training.batches import made_ahead
from emmi_jax.training.optimizer import learning_rates
from emmi_jax.training.trainer import TrainSetup

SETTINGS: dict[str, Any] = {
    "optimizer": {"name": "adamw", "ema_decay": None},
    "model.dtype": "float32",
}
"""What both can do: the oracle has neither Lion nor averaged weights, and its own search sorts all distances."""
_TOLERANCE = 1e-4
_WARM_UP = 2


class _Loop:
    """Steps of one framework, with the seconds that each took, and waited for its batch."""

    def __init__(self, batches: Iterator[Any], step: Callable[[Any], float]) -> None:
        self._batches, self._step = batches, step
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.waits: list[float] = []

    def run(self, *, is_timed: bool) -> None:
        start = time.perf_counter()
        batch = next(self._batches)
        waited = time.perf_counter() - start
        self.losses.append(self._step(batch))
        if is_timed:
            self.seconds.append(time.perf_counter() - start)
            self.waits.append(waited)

    def row(self, name: str) -> dict[str, float]:
        return {
            f"{name}_s": statistics.median(self.seconds),
            f"{name}_waiting_for_data_%": 100 * sum(self.waits) / sum(self.seconds),
        }


def compare(trainer: TrainSetup, num_turns: int) -> dict[str, Any]:
    """Times both loops.

    Args:
        trainer: What is trained, with `SETTINGS`, a worker and no normalizer.
        num_turns: Timed steps of each. As many more are not timed: in the first of a turn, the threads of the other
            framework still spin.
    """
    measure.use_all_threads()
    torch.manual_seed(0)
    reference = torch_model.AbUpt.from_config(trainer.model.config).to(measure.TORCH_DEVICE)
    params = jax.tree.map(jnp.array, ab_upt_from_torch(reference.state_dict(), trainer.model.config))
    num_steps = 2 * num_turns + _WARM_UP
    ours, host = trainer.batches(0, num_steps), made_ahead(trainer.draw, 0, num_steps, workers=trainer.workers)
    loops = {
        "jax": _Loop(ours, _jax_step(trainer, params)),
        "torch": _Loop(host, _torch_step(reference, trainer.settings)),
    }
    for loop in loops.values():
        for _ in range(_WARM_UP):
            loop.run(is_timed=False)
    first, other = (loop.losses[0] for loop in loops.values())
    if not abs(first - other) <= _TOLERANCE * abs(first):
        raise ValueError(f"the first losses differ: {first} and {other}")
    for _ in range(num_turns):
        for loop in loops.values():
            loop.run(is_timed=False)
            loop.run(is_timed=True)
    row: dict[str, Any] = {"cases": trainer.settings.batch_size, "anchors": trainer.settings.sampling.num_anchors}
    for name, loop in loops.items():
        row |= loop.row(name)
    return row | {
        "ratio": row["torch_s"] / row["jax_s"],
        "jax_last_loss": loops["jax"].losses[-1],
        "torch_last_loss": loops["torch"].losses[-1],
    }


def _jax_step(trainer: TrainSetup, params: Any) -> Callable[[Sample], float]:
    state = [trainer.init_state([params])]

    def step(batch: Sample) -> float:
        state[0], metrics = trainer.train_step(state[0], batch)
        return float(metrics["loss"])

    return step


def _torch_step(reference: torch.nn.Module, settings: TrainSettings) -> Callable[[Sample], float]:
    own, rates = settings.optimizer, learning_rates(settings)
    params = list(reference.parameters())
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": own.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(own.b1, own.b2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(rates[step]))

    def step(batch: Sample) -> float:
        predicted = reference(**_inputs(batch))
        losses = [
            (predicted[f"{branch}_{name}"] - _tensor(values)).square().mean()
            for branch, points in batch.anchors.items()
            for name, values in points.fields.items()
        ]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, own.clip_norm)
        optimizer.step()
        schedule.step()
        return loss.item()

    return step


def _inputs(batch: Sample) -> dict[str, Any]:
    geometry = batch.geometry
    if batch.queries or geometry is None or geometry.neighbors is None:
        raise ValueError("the loop in PyTorch trains on anchors alone, with a geometry and its neighbours")
    return {
        "anchors": {branch: _tensor(points.position) for branch, points in batch.anchors.items()},
        "geometry_position": _tensor(geometry.position),
        "geometry_supernode_idx": _tensor(geometry.supernode_idx).long(),
        "geometry_neighbors": (_tensor(geometry.neighbors.idx).long(), _tensor(geometry.neighbors.mask)),
    }


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array)).to(measure.TORCH_DEVICE)
