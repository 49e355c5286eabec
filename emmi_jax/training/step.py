"""The loss and one optimiser step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from jax.sharding import PartitionSpec as P

from emmi_jax.data.samples import Sample
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params
from emmi_jax.training.devices import DATA, TOKENS, Devices
from emmi_jax.training.settings import OptimizerSettings, TrainSettings

Metrics: TypeAlias = dict[str, jax.Array]
TrainStep: TypeAlias = Callable[["TrainState", Sample], tuple["TrainState", Metrics]]

_SMALLEST_ERROR = 1e-8
"""Added under the root, which has no derivative at 0."""


class TrainState(NamedTuple):
    """What a step changes; checkpoints are named by the number of steps done.

    Attributes:
        params: Parameters.
        opt_state: State of the optimiser.
        ema: Averaged parameters, if they are asked for.
    """

    params: Params
    opt_state: optax.OptState
    ema: Params | None = None

    @property
    def trained_params(self) -> Params:
        """The parameters to use after training."""
        return self.params if self.ema is None else self.ema

    def items(self) -> dict[str, object]:
        """Returns what a checkpoint holds, by name."""
        return {name: tree for name, tree in self._asdict().items() if tree is not None}


def init_state(params: Params, optimizer: optax.GradientTransformation, settings: OptimizerSettings) -> TrainState:
    """Returns the state before the first step."""
    average = None if settings.ema_decay is None else jax.tree.map(jnp.copy, params)  # as a step donates both
    return TrainState(params, optimizer.init(params), average)


def field_errors(model: AnchoredBranchedUPT, params: Params, batch: Sample) -> Metrics:
    """Returns the mean squared error of every field of every case, over anchors and queries.

    Args:
        model: The model.
        params: Its parameters.
        batch: Batch in model units.

    Returns:
        Arrays [B] by "branch/field", in squared standard deviations of the field.
    """
    predictions: dict[str, jax.Array] = model.apply({"params": params}, **batch.model_inputs())  # type: ignore[assignment]
    errors = {}
    for branch, points in batch.anchors.items():
        for name, values in points.fields.items():
            error = predictions[f"{branch}_{name}"].astype(values.dtype) - values
            if branch in batch.queries:
                known = batch.queries[branch].fields[name]
                query_error = predictions[f"query_{branch}_{name}"].astype(known.dtype) - known
                error = jnp.concatenate([error, query_error], axis=1)
            errors[f"{branch}/{name}"] = jnp.square(error).mean(axis=(1, 2))
    return errors


def make_train_step(
    model: AnchoredBranchedUPT,
    optimizer: optax.GradientTransformation,
    settings: TrainSettings,
    devices: Devices,
) -> TrainStep:
    """Returns a compiled step; it donates the old state and returns the new one with the losses before the step.

    Args:
        model: The model.
        optimizer: The optimiser.
        settings: The loss, its weights, the average and the accumulation are taken from here.
        devices: The devices that share a step.
    """
    ema_decay, num_micro = settings.optimizer.ema_decay, settings.optimizer.accumulation
    model = AnchoredBranchedUPT(dataclasses.replace(model.config, token_axis=devices.token_axis))

    def errors_by_device(params: Params, batch: Sample) -> Metrics:
        return {name: errors[:, None] for name, errors in field_errors(model, params, batch).items()}

    def loss(params: Params, batch: Sample) -> tuple[jax.Array, Metrics]:
        # Each device computes its share as if it were alone; where parameters enter, gradients are summed. Pallas
        # kernels do not say how their outputs vary over the devices, so that is not checked.
        specs = (P(), devices.batch_specs(batch))
        by_device = jax.shard_map(
            errors_by_device, mesh=devices.mesh, in_specs=specs, out_specs=P(DATA, TOKENS), check_vma=False
        )
        by_case = {name: errors.mean(axis=1) for name, errors in by_device(params, batch).items()}
        if settings.loss == "rmse":
            by_case = {name: jnp.sqrt(errors + _SMALLEST_ERROR) for name, errors in by_case.items()}
        losses = {name: errors.mean() for name, errors in by_case.items()}
        weights = jnp.array([settings.loss_weights.get(name, 1.0) for name in losses], jnp.float32)
        return jnp.average(jnp.stack(list(losses.values())), weights=weights), losses

    def gradient(params: Params, batch: Sample) -> tuple[tuple[jax.Array, Metrics], Params]:
        of_batch = jax.value_and_grad(loss, has_aux=True)
        if num_micro == 1:
            return of_batch(params, batch)
        # Every device cuts its own cases into micro-batches.
        micro = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, num_micro, *a.shape[1:]), 1, 0), batch)

        def add(total: object, batch: Sample) -> tuple[object, None]:
            return jax.tree.map(jnp.add, total, of_batch(params, batch)), None

        shapes = jax.eval_shape(of_batch, params, jax.tree.map(lambda a: a[0], micro))
        total, _ = jax.lax.scan(add, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), micro)
        return jax.tree.map(lambda a: a / num_micro, total)

    def step(state: TrainState, batch: Sample) -> tuple[TrainState, Metrics]:
        (total, losses), grads = gradient(state.params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params, ema = optax.apply_updates(state.params, updates), state.ema
        if ema_decay is not None:
            ema = optax.incremental_update(params, ema, _share_of_newest(ema_decay, opt_state))
        metrics = {"loss": total, **losses, "gradient_norm": optax.tree.norm(grads)}
        new = TrainState(params, opt_state, ema)
        return jax.lax.with_sharding_constraint((new, metrics), (devices.state_shardings(new), devices.whole))

    return jax.jit(step, donate_argnums=0)


def _share_of_newest(decay: float, opt_state: optax.OptState) -> jax.Array:
    """Weight of the newest parameters in the average, which holds none of the initial ones."""
    (_, num_steps), *_ = optax.tree.get_all_with_path(opt_state, "count")
    if not decay:
        return jnp.float32(1)
    return (1 - decay) / -jnp.expm1(num_steps.astype(jnp.float32) * math.log(decay))
