"""The optimiser: AdamW, Lion or Muon under warm-up, decay and clipping."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from emmi_jax.config import TrainSettings
from emmi_jax.models.init import Params

_MUON_RMS = 0.2
"""Scale of Muon's updates, with which it takes the learning rate and weight decay of AdamW (arXiv 2502.16982)."""

_NEWTON_SCHULZ = 5 * ((3.4445, -4.7750, 2.0315),)
"""Muon's usual coefficients, given for each iteration: optax then loops over iterations instead of unrolling them."""


def learning_rate_schedule(settings: TrainSettings) -> optax.Schedule:
    """Returns a linear warm-up, whose last step has the peak, then the schedule's way down to the last step."""
    optimizer = settings.optimizer
    peak, final = optimizer.learning_rate, optimizer.learning_rate * optimizer.final_fraction
    num_warmup = max(1, round(optimizer.warmup_fraction * settings.steps))
    num_rise, num_decay = num_warmup - 1, max(settings.steps - num_warmup, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, num_decay, alpha=optimizer.final_fraction),
        "linear": optax.linear_schedule(peak, final, num_decay),
        "constant": optax.constant_schedule(peak),
    }[optimizer.schedule]
    return optax.join_schedules([optax.linear_schedule(peak / num_warmup, peak, max(num_rise, 1)), decay], [num_rise])


def learning_rates(settings: TrainSettings) -> NDArray[np.float32]:
    """Returns the learning rate of every step, [steps]."""
    with jax.numpy_dtype_promotion("standard"):  # optax compares integer steps with floats
        return np.asarray(jax.vmap(learning_rate_schedule(settings))(jnp.arange(settings.steps)))


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """Returns the optimiser with clipping by the global norm; only matrices decay, unless Muon's companion does."""
    optimizer = settings.optimizer
    rate, decay = learning_rate_schedule(settings), optimizer.weight_decay
    if optimizer.name == "muon":
        companion = dataclasses.replace(
            optimizer, learning_rate=optimizer.companion_learning_rate or optimizer.learning_rate
        )
        companion_rate = learning_rate_schedule(dataclasses.replace(settings, optimizer=companion))
        update = optax.contrib.muon(
            rate,
            ns_coeffs=_NEWTON_SCHULZ,
            weight_decay=decay,
            weight_decay_mask=_matrices,
            adam_b1=optimizer.b1,
            adam_b2=optimizer.b2,
            adam_learning_rate=companion_rate,
            adam_weight_decay=optimizer.companion_weight_decay,
            consistent_rms=_MUON_RMS if optimizer.muon_scale == "rms" else None,
        )
        if optimizer.companion == "lion":
            lion = optax.lion(
                companion_rate, b1=optimizer.b1, b2=optimizer.b2, weight_decay=optimizer.companion_weight_decay
            )
            update = optax.partition({True: update, False: lion}, _matrices)
    else:
        make = {"adamw": optax.adamw, "lion": optax.lion}[optimizer.name]
        update = make(rate, b1=optimizer.b1, b2=optimizer.b2, weight_decay=decay, mask=_matrices)
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), update)


def _matrices(params: Params) -> Params:
    return jax.tree.map(lambda p: p.ndim > 1, params)
