"""The optimiser: AdamW under warm-up, cosine decay and clipping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from numpy.typing import NDArray

from emmi_jax.training.settings import TrainSettings


def learning_rate_schedule(settings: TrainSettings) -> optax.Schedule:
    """Returns a linear warm-up to the peak, then half a cosine down to almost zero at the last step."""
    num_warmup = max(1, round(settings.warmup_fraction * settings.steps))
    return optax.warmup_cosine_decay_schedule(
        init_value=settings.learning_rate / num_warmup,
        peak_value=settings.learning_rate,
        warmup_steps=num_warmup,
        decay_steps=max(settings.steps, num_warmup + 1),
        end_value=settings.learning_rate * 1e-3,
    )


def learning_rates(settings: TrainSettings) -> NDArray[np.float32]:
    """Returns the learning rate of every step, [steps]."""
    with jax.numpy_dtype_promotion("standard"):  # optax compares integer steps with floats
        return np.asarray(jax.vmap(learning_rate_schedule(settings))(jnp.arange(settings.steps)))


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """Returns AdamW with clipping by the global norm; only matrices decay."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            learning_rate_schedule(settings),
            b1=0.9,
            b2=settings.adam_b2,
            weight_decay=settings.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
