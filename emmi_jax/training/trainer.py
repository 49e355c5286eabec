"""Everything fixed for the length of a run: from settings to states, batches and steps."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import jax
import optax

from emmi_jax.config import AbUptConfig, TrainSettings
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Dataset, Sample
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params, init_params
from emmi_jax.runs.load import stack_members, unstack_members
from emmi_jax.training.batches import DrawBatch, made_ahead
from emmi_jax.training.devices import Devices
from emmi_jax.training.optimizer import make_optimizer
from emmi_jax.training.step import TrainState, TrainStep, init_state, make_train_step


class TrainSetup(NamedTuple):
    """Everything fixed for the length of a run.

    Attributes:
        settings: Settings of the run.
        dataset: The data.
        devices: The devices that share a step.
        model: The model.
        normalizer: Scales of positions and fields; None leaves them as they are.
        optimizer: What moves the parameters.
        train_step: A step of that.
        state: Shapes of the state that a step changes.
        draw: Makes those cases of a step's batch that devices of this process need.
        workers: Processes that draw batches and find the neighbours of supernodes; 0: a thread draws, and the devices
            find them.
    """

    settings: TrainSettings
    dataset: Dataset
    devices: Devices
    model: AnchoredBranchedUPT
    normalizer: Normalizer | None
    optimizer: optax.GradientTransformation
    train_step: TrainStep
    state: TrainState
    draw: DrawBatch
    workers: int = 0

    @classmethod
    def make(
        cls,
        settings: TrainSettings,
        dataset: Dataset,
        devices: Devices,
        config: AbUptConfig,
        normalizer: Normalizer | None = None,
        *,
        workers: int = 0,
    ) -> Self:
        """Makes the trainer of a model."""
        model, optimizer = AnchoredBranchedUPT(config), make_optimizer(settings)
        train_step = make_train_step(model, optimizer, settings, devices)
        like = jax.eval_shape(lambda: init_state(init_params(model), optimizer, settings.optimizer))
        state = jax.eval_shape(lambda one: stack_members([one] * settings.members), like)
        rows = tuple(devices.rows(settings.batch_size))
        draw = DrawBatch(settings, dataset, normalizer, rows, config.supernode_pooling if workers else None)
        return cls(settings, dataset, devices, model, normalizer, optimizer, train_step, state, draw, workers)

    def scaled(self, normalizer: Normalizer) -> Self:
        """Returns a copy whose batches are scaled."""
        return self._replace(normalizer=normalizer, draw=replace(self.draw, normalizer=normalizer))

    def init_state(self, params: Sequence[Params] = ()) -> TrainState:
        """Returns the state before the first step, of random parameters, or given ones for all members or for each."""

        def init() -> TrainState:
            given = params or [init_params(self.model, seed=seed) for seed in self.settings.seeds]
            states = [init_state(of_member, self.optimizer, self.settings.optimizer) for of_member in given]
            state: TrainState = stack_members(states * (self.settings.members // len(given)))
            return state

        state: TrainState = jax.jit(init, out_shardings=self.devices.state_shardings(self.state))()
        return state

    def batches(self, start: int, stop: int) -> Generator[Sample]:
        """Yields the batches of steps on the devices; they are drawn ahead."""
        with contextlib.closing(made_ahead(self.draw, start, stop, workers=self.workers)) as batches:
            for step, batch in enumerate(batches, start):
                on_devices = self.put(batch)
                # cuDNN cannot load a program while anything else happens on the device, so a step that loads one waits
                # for its batch, and no thread copies. Others are queued behind their copies.
                yield jax.block_until_ready(on_devices) if step == start or self._changes_at(step) else on_devices

    def cases(self, step: int) -> list[str]:
        """Returns the names of the cases of a step's batch."""
        seeds, size = self.settings.seeds, self.settings.batch_size
        return [self.dataset.train_case(seed, step * size + row) for seed in seeds for row in range(size)]

    def _changes_at(self, step: int) -> bool:
        return self.settings.sampling_at(step) != self.settings.sampling_at(step - 1)

    def put(self, batch: Sample) -> Sample:
        """Starts to copy a batch to the devices."""
        return self.devices.put(batch, self.settings.batch_size)

    def surrogate(self, state: TrainState) -> Surrogate:
        """Returns what a state has learned, on the first device of this process."""
        if self.normalizer is None:
            raise ValueError("a surrogate needs a normalizer")
        params, *others = unstack_members(self.devices.on_one(state.trained_params), self.settings.members)
        sampling, context = self.settings.sampling, self.dataset.context
        return Surrogate(self.model, params, self.normalizer, sampling, context, others=tuple(others))
