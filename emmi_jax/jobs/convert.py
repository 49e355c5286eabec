"""`emmi-jax convert`: a run made of weights that were trained in PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from emmi_jax.config import AbUptConfig
from emmi_jax.config.checks import check_name
from emmi_jax.config.jobs import ConvertJob
from emmi_jax.convert import PRESETS, ab_upt_from_torch, load_torch_file
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.files.atomic import read_json_object
from emmi_jax.jobs.progress import say
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunConfig, RunDirectory, check_new


def run_job(job: ConvertJob) -> None:
    """Runs `emmi-jax convert`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, its weights do not fit, or the run exists.
    """
    if (job.preset is None) == (job.config is None):
        raise ValueError("expected exactly one of --preset and --config")
    config = preset_config(job.preset) if job.preset is not None else read_config(job.config or Path())
    if job.conditions is not None:
        config = _with_conditions(config, tuple(name.strip() for name in job.conditions.split(",")))
    num_params = convert(job.file, job.out, config, layout=job.layout)
    say(Console(), f"{job.out}: {num_params:,} parameters")


def _with_conditions(config: RunConfig, names: tuple[str, ...]) -> RunConfig:
    """Returns a configuration whose condition consists of numbers with these names, which the model takes as they are.

    Raises:
        ValueError: The model takes as many numbers of other names, or other numbers, or a name comes twice.
    """
    model = config.model
    if model.conditioning_dims is not None:
        raise ValueError(f"the model has the named conditions {sorted(model.named_conditions)}: leave out --conditions")
    if len(names) != (model.condition_dim or 0) or len(set(names)) < len(names):
        raise ValueError(f"--conditions must name {model.condition_dim or 0} different numbers, got {', '.join(names)}")
    for name in names:
        check_name("a condition's name", name, "/,=")
    scales = {name: ConditionScale() for name in names}
    return replace(config, normalizer=replace(config.normalizer, conditions=scales))


def preset_config(name: str) -> RunConfig:
    """Returns the configuration of a published model.

    Raises:
        ValueError: There is no preset of this name.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    return RunConfig(
        model=preset.config, normalizer=preset.normalizer, sampling=preset.sampling, sources=preset.sources
    )


def read_config(path: Path) -> RunConfig:
    """Reads what a checkpoint does not say about its model from JSON.

    Args:
        path: A run's `config.json`; or the values of an `AbUptConfig` alone: then nothing is scaled, features are one
            array called `features`, and cases are sampled as the published model samples them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or holds no configuration.
    """
    values = read_json_object(path)
    try:
        if "model" in values:
            return RunConfig.from_dict(values)
        model = AbUptConfig.from_dict(values)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    identity = {
        branch: {name: FieldScale(mean=(0.0,) * channels, std=(1.0,) * channels) for name, channels in fields.items()}
        for branch, fields in model.fields.items()
    }
    features = {
        part: {"features": FieldScale(mean=(0.0,) * channels, std=(1.0,) * channels)}
        for part, channels in model.input_features.items()
    }
    low = (0.0,) * model.num_position_axes
    normalizer = Normalizer(position_low=low, position_scale=1.0, fields=identity, features=features)
    return RunConfig(model=model, normalizer=normalizer, sampling=PRESETS["drivaerml-tutorial"].sampling, sources={})


def convert(file: Path, path: Path, config: RunConfig, *, layout: str | None) -> int:
    """Makes a run of a file of PyTorch weights; its checkpoint is that of step 0.

    Args:
        file: The weights, as `load_torch_file` reads them.
        path: The run's folder; it must not exist.
        config: What the weights belong to.
        layout: Layout of their names; None recognises it.

    Returns:
        The number of parameters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is refused, its weights do not fit, or the run exists.
    """
    check_new(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    arrays = ab_upt_from_torch(load_torch_file(file).state_dict, config.model, layout=layout)
    params = jax.tree.map(lambda array: jnp.asarray(array, config.model.param_dtype), arrays)
    untrained = RunConfig(
        model=config.model,
        normalizer=config.normalizer,
        sampling=config.sampling,
        sources=config.sources,
    )
    with RunDirectory.making(path, untrained) as run, Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(0, {"params": params})
    return sum(array.size for array in jax.tree.leaves(params))
