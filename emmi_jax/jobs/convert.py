"""A run directory around weights that were trained in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emmi_jax.config import AbUptConfig
from emmi_jax.convert import PRESETS, ab_upt_from_torch, load_torch_file
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.jobs.datasets import default_settings
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.training.optimizer import make_optimizer
from emmi_jax.training.step import TrainState


class Architecture(NamedTuple):
    """What a checkpoint does not say: the model's configuration and the scales of positions and fields."""

    config: AbUptConfig
    normalizer: Normalizer


def preset_architecture(name: str) -> Architecture:
    """Returns a published architecture.

    Raises:
        ValueError: There is no preset of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return Architecture(PRESETS[name].config, Normalizer.from_dict(PRESETS[name].statistics))


def read_architecture(path: Path) -> Architecture:
    """Reads an architecture from JSON.

    Args:
        path: A run's `config.json`, or the values of an `AbUptConfig` alone; then nothing is scaled.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or does not hold a configuration.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(values).__name__}")
    try:
        config = AbUptConfig.from_dict(values.get("model", values))
        if "normalizer" in values:
            return Architecture(config, Normalizer.from_dict(values["normalizer"]))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None
    identity = {
        branch: {name: FieldScale(mean=(0.0,) * channels, std=(1.0,) * channels) for name, channels in fields.items()}
        for branch, fields in config.fields.items()
    }
    low = (0.0,) * config.num_position_axes
    return Architecture(config, Normalizer(position_low=low, position_scale=1.0, fields=identity))


def convert_checkpoint(file: Path, path: Path, architecture: Architecture, *, layout: str | None) -> int:
    """Makes a run directory of a file of PyTorch weights; its checkpoint has done no step.

    Args:
        file: The weights, as `load_torch_file` reads them.
        path: The run's folder; it must not exist.
        architecture: What the weights belong to.
        layout: Layout of their names, or None to recognise it.

    Returns:
        The number of parameters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, its weights do not fit, or the run exists.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    config = architecture.config
    arrays = ab_upt_from_torch(load_torch_file(file).state_dict, config, layout=layout)
    params = jax.tree.map(lambda a: jnp.asarray(a, config.param_dtype), arrays)
    content = {"settings": None, "model": config.to_dict(), "normalizer": architecture.normalizer.to_dict()}
    run = RunDirectory.create(path, content)
    checkpoints = Checkpoints(run.checkpoints)
    try:
        checkpoints.save(0, TrainState(params, make_optimizer(default_settings(None)).init(params)))
    finally:
        checkpoints.close()
    return sum(a.size for a in jax.tree.leaves(params))
