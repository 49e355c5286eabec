"""From a run's folder to the surrogate that it trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import init_params
from emmi_jax.runs.checkpoints import BEST, LATEST, Checkpoints
from emmi_jax.runs.directory import RunDirectory


def load_run(path: str | Path, checkpoint: str = LATEST) -> Surrogate:
    """Loads a checkpoint of a run, trained or converted; averaged parameters where the run has them.

    Args:
        path: The run's folder.
        checkpoint: ``latest``, or ``best``: that with the lowest mean error on the validation cases.

    Returns:
        The surrogate: model, parameters, normalizer, sampling, and for a run on a single case its context.

    Raises:
        ValueError: The folder is not a run, or has no such checkpoint.

    Example:
        >>> surrogate = emmi_jax.load_run("runs/car")  # doctest: +SKIP
    """
    if checkpoint not in (LATEST, BEST):
        raise ValueError(f"checkpoint must be {LATEST!r} or {BEST!r}, got {checkpoint!r}")
    run = RunDirectory.open(Path(path))
    config = run.read_config()
    model = AnchoredBranchedUPT(config.model)
    if not run.checkpoints.is_dir():
        raise ValueError(f"{path}: no checkpoint yet")
    like = jax.eval_shape(lambda: init_params(model, seed=0))
    if config.num_members > 1:
        like = jax.eval_shape(lambda single: stack_members([single] * config.num_members), like)
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        (params,) = checkpoints.restore({"ema": like}, {"params": like}, which=checkpoint).items.values()
    first, *others = unstack_members(params, config.num_members)
    return Surrogate(model, first, config.normalizer, config.sampling, run.read_context(config), others=tuple(others))


def unstack_members(tree: Any, num_members: int) -> list[Any]:
    """Returns the arrays of each member; those of a single one have no axis of members."""
    if num_members == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, number=number: leaf[number], tree) for number in range(num_members)]


def stack_members(members: Sequence[Any]) -> Any:
    """Returns the arrays of several members with a leading axis for them; a single one gets none."""
    if len(members) == 1:
        return members[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
