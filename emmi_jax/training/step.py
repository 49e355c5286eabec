"""The loss and one optimiser step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from emmi_jax.config import OptimizerSettings, TrainSettings
from emmi_jax.data.samples import Sample
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params
from emmi_jax.ops.arrays import at_least_float32
from emmi_jax.training.devices import DATA, MEMBER, TOKENS, Devices

Metrics: TypeAlias = dict[str, jax.Array]
TrainStep: TypeAlias = Callable[["TrainState", Sample], tuple["TrainState", Metrics]]

_SMALLEST_ERROR = 1e-8
"""Added under the root, which has no derivative at 0."""


class TrainState(NamedTuple):
    """Everything that a step changes; checkpoints are named by the number of steps done.

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
    """Returns the state before the first step; the average and the optimiser's state are at least float32."""
    average = None if settings.ema_decay is None else jax.tree.map(jnp.copy, _wide(params))  # as a step donates both
    return TrainState(params, optimizer.init(_wide(params)), average)


def field_errors(
    model: AnchoredBranchedUPT,
    params: Params,
    batch: Sample,
    drop_path_key: jax.Array | None = None,
    *,
    mask_nan: bool = False,
) -> Metrics:
    """Returns the mean squared error of every field of every case, over anchors and queries.

    Args:
        model: The model.
        params: Its parameters.
        batch: Batch in model units.
        drop_path_key: Decides which samples skip which residual branches; None for none of them.
        mask_nan: Whether a point with a NaN among the values of a field counts as one without an error.

    Returns:
        Arrays [B] by "branch/field", in squared standard deviations of the field.
    """
    options: dict[str, Any] = {}
    if drop_path_key is not None:
        options = {"deterministic": False, "rngs": {"dropout": drop_path_key}}
    predictions: Metrics = model.apply({"params": params}, **batch.model_inputs(), **options)  # type: ignore[assignment]
    errors, known_values = {}, _known_values(batch) if mask_nan else {}
    for branch, points in batch.anchors.items():
        for name, values in points.fields.items():
            error = predictions[f"{branch}_{name}"].astype(values.dtype) - values
            if branch in batch.queries:
                known = batch.queries[branch].fields[name]
                query_error = predictions[f"query_{branch}_{name}"].astype(known.dtype) - known
                error = jnp.concatenate([error, query_error], axis=1)
            if mask_nan:
                is_nan = jnp.isnan(known_values[f"{branch}/{name}"])
                error = jnp.where(is_nan.any(axis=2, keepdims=True), 0, error)
            errors[f"{branch}/{name}"] = jnp.square(error).mean(axis=(1, 2))
    return errors


def make_train_step(
    model: AnchoredBranchedUPT,
    optimizer: optax.GradientTransformation,
    settings: TrainSettings,
    devices: Devices,
) -> TrainStep:
    """Returns a compiled step; it donates the old state and returns the new one with the losses before the step.

    Drop path depends on the seed, the number of the step, the micro-batch and the place along the axis `data` alone, so
    a resumed run draws what an uninterrupted one does. Devices that share a case skip the same branches. State and
    batch of several members have a leading axis for them; losses are means over the members.

    Args:
        model: The model.
        optimizer: The optimiser.
        settings: The loss, its weights, the average and the accumulation are taken from here.
        devices: The devices that share a step.
    """
    ema_decay, num_micro = settings.optimizer.ema_decay, settings.optimizer.accumulation
    model = AnchoredBranchedUPT(dataclasses.replace(model.config, token_axis=devices.token_axis))

    loss = _make_loss(model, settings, devices)

    def gradient(params: Params, batch: Sample, key: jax.Array) -> tuple[tuple[jax.Array, Metrics], Params]:
        of_batch = jax.value_and_grad(loss, has_aux=True)
        if num_micro == 1:
            return of_batch(params, batch, key)
        # Every device cuts its own cases into micro-batches.
        micro = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, num_micro, *a.shape[1:]), 1, 0), batch)
        keys = jax.random.split(key, num_micro)

        def add(total: object, part: tuple[Sample, jax.Array]) -> tuple[object, None]:
            return jax.tree.map(jnp.add, total, of_batch(params, *part)), None

        shapes = jax.eval_shape(of_batch, params, jax.tree.map(lambda a: a[0], micro), key)
        total, _ = jax.lax.scan(add, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), (micro, keys))
        return jax.tree.map(lambda a: a / num_micro, total)

    def step(state: TrainState, batch: Sample, seed: ArrayLike) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), _num_steps(state.opt_state))
        (total, losses), grads = gradient(state.params, batch, key)
        grads = _wide(grads)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, opt_state = optimizer.update(grads, state.opt_state, _wide(state.params))
        updated, ema = optax.apply_updates(_wide(state.params), updates), state.ema
        params = jax.tree.map(lambda new, old: new.astype(old.dtype), updated, state.params)
        if ema_decay is not None:
            ema = optax.incremental_update(updated, ema, _share_of_newest(ema_decay, opt_state))
        new = TrainState(params, opt_state, ema), {"loss": total, **losses, "gradient_norm": optax.tree.norm(grads)}
        return jax.lax.with_sharding_constraint(new, (devices.member_shardings(new[0]), devices.whole))

    def of_all(state: TrainState, batch: Sample) -> tuple[TrainState, Metrics]:
        if len(settings.seeds) == 1:
            return step(state, batch, settings.seed)
        # On the mesh, the members' axis of every array is that of the devices.
        new, metrics = jax.vmap(step, spmd_axis_name=MEMBER)(state, batch, np.array(settings.seeds))
        means = {name: values.mean() for name, values in metrics.items()}
        return jax.lax.with_sharding_constraint((new, means), (devices.state_shardings(new), devices.whole))

    return jax.jit(of_all, donate_argnums=0)


def _make_loss(
    model: AnchoredBranchedUPT, settings: TrainSettings, devices: Devices
) -> Callable[[Params, Sample, jax.Array], tuple[jax.Array, Metrics]]:
    """Returns the loss of a batch, and that of each field."""

    def errors_by_device(params: Params, batch: Sample, key: jax.Array) -> Metrics:
        own = jax.random.fold_in(key, jax.lax.axis_index(DATA)) if model.config.drop_path_rate else None
        errors = field_errors(model, params, batch, own, mask_nan=settings.mask_nan)
        return {name: errors[:, None] for name, errors in errors.items()}

    def loss(params: Params, batch: Sample, key: jax.Array) -> tuple[jax.Array, Metrics]:
        # Each device computes its share as if it were alone; where parameters enter, gradients are summed. Pallas
        # kernels do not say how their outputs vary over the devices, so that is not checked.
        specs = (P(), devices.batch_specs(batch), P())
        by_device = jax.shard_map(
            errors_by_device, mesh=devices.mesh, in_specs=specs, out_specs=P(DATA, TOKENS), check_vma=False
        )
        by_case = {name: errors.mean(axis=1) for name, errors in by_device(params, batch, key).items()}
        known = _known_shares(batch) if settings.mask_nan else {}
        by_case |= {name: by_case[name] / jnp.where(share > 0, share, 1) for name, share in known.items()}
        if settings.loss == "rmse":
            by_case = {name: jnp.sqrt(errors + _SMALLEST_ERROR) for name, errors in by_case.items()}
        losses = {name: _mean_of_known(errors, known.get(name)) for name, errors in by_case.items()}
        weights = jnp.array([settings.loss_weights.get(name, 1.0) for name in losses], jnp.float32)
        return jnp.average(jnp.stack(list(losses.values())), weights=weights), losses

    return loss


def _known_values(batch: Sample) -> Metrics:
    """Returns the values [B, T, F] of the fields at anchors and queries, by "branch/field"."""
    known = {}
    for branch, points in batch.anchors.items():
        for name, values in points.fields.items():
            queries = [batch.queries[branch].fields[name]] if branch in batch.queries else []
            known[f"{branch}/{name}"] = jnp.concatenate([values, *queries], axis=1)
    return known


def _known_shares(batch: Sample) -> Metrics:
    """Returns the share [B] of the points whose value is known, by "branch/field"."""
    known = {name: ~jnp.isnan(values).any(axis=2) for name, values in _known_values(batch).items()}
    return {name: is_known.mean(axis=1, dtype=jnp.float32) for name, is_known in known.items()}


def _mean_of_known(errors: jax.Array, shares: jax.Array | None) -> jax.Array:
    """Returns the mean over the cases, without those that have no known value; 0 if none has."""
    if shares is None:
        return errors.mean()
    has_known = shares > 0
    return jnp.where(has_known, errors, 0).sum() / jnp.maximum(has_known.sum(dtype=jnp.float32), 1)


def _wide(params: Params) -> Params:
    """Returns parameters in at least float32, in which small steps are not lost."""
    return jax.tree.map(at_least_float32, params)


def _share_of_newest(decay: float, opt_state: optax.OptState) -> jax.Array:
    """Weight of the newest parameters in the average, which holds none of the initial ones."""
    if not decay:
        return jnp.float32(1)
    return (1 - decay) / -jnp.expm1(_num_steps(opt_state).astype(jnp.float32) * math.log(decay))


def _num_steps(opt_state: optax.OptState) -> jax.Array:
    (_, num_steps), *_ = optax.tree.get_all_with_path(opt_state, "count")
    count: jax.Array = num_steps
    return count
