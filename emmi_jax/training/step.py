"""The loss and one optimiser step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

from emmi_jax.data.samples import Sample
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params

Metrics: TypeAlias = dict[str, jax.Array]
TrainStep: TypeAlias = Callable[["TrainState", Sample], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """What a step changes; checkpoints are named by the number of steps done."""

    params: Params
    opt_state: optax.OptState


def field_losses(model: AnchoredBranchedUPT, params: Params, batch: Sample) -> Metrics:
    """Returns the mean squared error of every field, over anchors and queries.

    Args:
        model: The model.
        params: Its parameters.
        batch: Batch in model units.

    Returns:
        Scalars by "branch/field", in squared standard deviations of the field.
    """
    predictions: dict[str, jax.Array] = model.apply({"params": params}, **batch.model_inputs())  # type: ignore[assignment]
    losses = {}
    for branch, points in batch.anchors.items():
        for name, values in points.fields.items():
            error = predictions[f"{branch}_{name}"] - values
            if branch in batch.queries:
                query_error = predictions[f"query_{branch}_{name}"] - batch.queries[branch].fields[name]
                error = jnp.concatenate([error, query_error], axis=1)
            losses[f"{branch}/{name}"] = jnp.square(error).mean()
    return losses


def make_train_step(model: AnchoredBranchedUPT, optimizer: optax.GradientTransformation) -> TrainStep:
    """Returns a compiled step; it donates the old state and returns the new one with the losses before the step."""

    def loss(params: Params, batch: Sample) -> tuple[jax.Array, Metrics]:
        losses = field_losses(model, params, batch)
        return jnp.stack(list(losses.values())).mean(), losses

    def step(state: TrainState, batch: Sample) -> tuple[TrainState, Metrics]:
        (total, losses), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {"loss": total, **losses, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics

    return jax.jit(step, donate_argnums=0)
