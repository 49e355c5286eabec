"""`emmi-jax train`: data, training, metrics on unseen cases, pictures."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from rich.console import Console

from emmi_jax.config import AbUptConfig, TrainSettings
from emmi_jax.data.baselines import baselines
from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Dataset
from emmi_jax.files.atomic import JsonDict, write_json
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.datasets import (
    data_fingerprint,
    describe_sources,
    field_sources,
    load_dataset,
    make_normalizer,
    print_notes,
)
from emmi_jax.jobs.info import param_shapes, summary_table
from emmi_jax.jobs.pictures import draw_pictures
from emmi_jax.jobs.progress import ProgressBar, metrics_table
from emmi_jax.models.init import Params
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunConfig, RunDirectory, check_same_config
from emmi_jax.runs.load import load_run
from emmi_jax.runs.trackers import Tracker, trackers
from emmi_jax.training.devices import Devices, Layout
from emmi_jax.training.evaluation import evaluate, validate
from emmi_jax.training.loop import LoopEnd, Row, Schedule, fit
from emmi_jax.training.optimizer import learning_rates
from emmi_jax.training.plan import model_config
from emmi_jax.training.processes import is_main, wait_for_all
from emmi_jax.training.profile import traced
from emmi_jax.training.step import TrainState
from emmi_jax.training.trainer import Trainer


class Extras(NamedTuple):
    """What a run writes if asked.

    Attributes:
        profile: Whether to write a trace of a few steps into `profile/`.
        wandb_project: Project of Weights & Biases that receives the metrics.
    """

    profile: bool = False
    wandb_project: str | None = None


class Outcome(NamedTuple):
    """How a run ended: its folder, and the signal that stopped it early, or None if it is complete."""

    path: Path
    signal_number: int | None


def train(
    settings: TrainSettings,
    path: Path,
    *,
    resume: bool,
    console: Console,
    init_from: Path | None = None,
    layout: Layout = Layout(),  # noqa: B008
    workers: int = 0,
    extras: Extras = Extras(),  # noqa: B008
) -> Outcome:
    """Trains a model and leaves everything about it in a folder.

    Where several processes share the run, each calls this; the main one writes and prints.

    Args:
        settings: What to train, and on what.
        path: The run's folder; it must not exist, or with `resume` must hold the same configuration.
        resume: Whether to continue from the run's newest checkpoint.
        console: Where progress and the table of metrics are printed.
        init_from: Folder of a run, trained or converted, to start from: its weights, model and normalizer.
        layout: How devices share the work.
        workers: Processes that draw batches and find the neighbours of supernodes; 0: a thread draws, and the devices
            find them. The result is the same.
        extras: What else to write.

    Returns:
        The outcome. A run that was stopped early has a checkpoint of its last step.

    Raises:
        FileNotFoundError: The data file does not exist.
        ValueError: Settings or data are unusable, the run exists (or with `resume` does not), or training diverged.
    """
    dataset = load_dataset(settings)
    print_notes(settings, dataset, console)
    stored = RunDirectory.open(path).read_config() if resume else None
    if stored is not None and stored.settings is None:
        raise ValueError(f"{path} was not trained: --init-from {path} starts a new run from it")
    source = None if init_from is None else RunDirectory.open(init_from).read_config()
    params = None if init_from is None else load_run(init_from).params
    if weights := stored if stored is not None and stored.is_fine_tuned else source:
        settings = settings.updated({"model": _options(settings, weights.model)})
    devices = Devices.make(settings, layout)
    if stored is not None:
        config = _resumed_config(settings, dataset, stored)
    elif source is not None:
        config = _run_config(settings, dataset, source.normalizer, weights=source)
    else:
        config = _run_config(settings, dataset, _measured(settings, dataset, console))
    trainer = Trainer.make(settings, dataset, devices, config.model, config.normalizer, workers=workers)
    # What cannot be trained is refused while there is nothing to clean up.
    for step in (0, settings.steps - 1) if settings.dense_fraction else (0,):
        jax.eval_shape(trainer.train_step, devices.like(trainer.state), trainer.put(trainer.draw(step)))
    if stored is None and is_main():
        _create(path, config, dataset)
    wait_for_all("configuration")
    run = RunDirectory.open(path)
    num_params = sum(math.prod(p.shape) for p in jax.tree.leaves(trainer.state.params))
    console.print(f"{dataset.summary}\n{num_params:,} parameters, {settings.steps} steps, run {path}", highlight=False)
    if jax.device_count() > 1:
        console.print(f"devices: {devices.summary}", highlight=False)
    end = _fit(trainer, run, params, extras, console)
    if end.signal_number is not None:
        console.print(f"stopped after step {end.step}/{settings.steps}; its checkpoint is in {path}", highlight=False)
        return Outcome(path, end.signal_number)
    surrogate = trainer.surrogate(end.state)
    if is_main():
        _report_metrics(dataset, surrogate, end, run, console)
        pictures = ", ".join(picture.name for picture in draw_pictures(dataset, surrogate, run))
        console.print(f"trained in {end.seconds:.0f} s; the run is in {path}", highlight=False, soft_wrap=True)
        console.print(f"pictures: {pictures}", highlight=False)
    wait_for_all("evaluation")
    return Outcome(path, None)


def show_plan(settings: TrainSettings, *, console: Console, layout: Layout) -> None:
    """Prints what a run would do: its settings, data, devices and model, and the cost of a step; writes nothing.

    Raises:
        FileNotFoundError: The data file does not exist.
        ValueError: Settings, data or layout are unusable.
    """
    dataset = load_dataset(settings)
    if settings.statistics is not None:
        make_normalizer(settings, dataset, console=console)
    config, devices = model_config(settings, dataset.fields), Devices.make(settings, layout)
    trainer = Trainer.make(settings, dataset, devices, config, normalizer=None)
    largest = trainer.put(trainer.draw(settings.steps - 1))
    step = jax.jit(trainer.train_step).lower(devices.like(trainer.state), largest).compile()
    console.print_json(data=settings.to_dict())
    console.print(summary_table(param_shapes(trainer.state.params), "Parameters"))
    cost, memory = step.cost_analysis(), step.memory_analysis()
    # XLA counts the body of a loop once.
    flops = "unknown" if cost is None else f"at least {cost['flops'] / 1e9:,.1f} GFLOP"
    size = "unknown" if memory is None else f"{(memory.argument_size_in_bytes + memory.temp_size_in_bytes) >> 20:,} MiB"
    console.print("\n".join([dataset.summary, *describe_sources(settings)]), highlight=False)
    print_notes(settings, dataset, console)
    console.print(f"dtype      {config.dtype}", highlight=False)
    console.print(f"devices    {devices.summary}\nstep       {flops}, {size} per device", highlight=False)


def _create(path: Path, config: RunConfig, dataset: Dataset) -> None:
    """Makes the folder of a new run."""
    run = RunDirectory.create(path, config)
    if dataset.context is not None:
        run.write_context(dataset.context)


def _measured(settings: TrainSettings, dataset: Dataset, console: Console) -> Normalizer:
    """Measures statistics in the main process; the others find them."""
    if not is_main():
        wait_for_all("statistics")
    densest = dataset.resampled(settings.sampling_at(settings.steps - 1))  # as cases are checked for enough points
    normalizer = make_normalizer(settings, densest, console=console)
    if is_main():
        wait_for_all("statistics")
    return normalizer


def _resumed_config(settings: TrainSettings, dataset: Dataset, stored: RunConfig) -> RunConfig:
    """Returns the configuration of a run that was trained before, if nothing has changed."""
    check_same_config(
        {} if stored.settings is None else stored.settings.to_dict(), settings.to_dict(), path="settings."
    )
    config = _run_config(settings, dataset, stored.normalizer, weights=stored if stored.is_fine_tuned else None)
    if settings.model["dtype"] == "auto":  # a run may move to another kind of device
        config = replace(config, model=replace(config.model, dtype=stored.model.dtype))
    check_same_config(stored.to_dict(), config.to_dict())
    return config


def _options(settings: TrainSettings, model: AbUptConfig) -> JsonDict:
    """Returns the model options of the settings as a model has them."""
    return {name: value for name, value in model.to_dict().items() if name in settings.model}


def _run_config(
    settings: TrainSettings, dataset: Dataset, normalizer: Normalizer, weights: RunConfig | None = None
) -> RunConfig:
    """Returns everything that a run depends on; converted weights bring their model."""
    model = model_config(settings, dataset.fields)
    if weights is not None:
        if settings.statistics is not None:
            raise ValueError(f"the run has statistics of its own, got {settings.statistics!r}")
        check_same_config(weights.model.fields, model.fields, path="fields.")
        model = weights.model
    return RunConfig(
        model=model,
        normalizer=normalizer,
        sampling=settings.sampling,
        sources=field_sources(settings) or (weights.sources if weights is not None else {}),
        settings=settings,
        split=dataset.split.split_of if isinstance(dataset, CaseCollection) else None,
        data_fingerprint=data_fingerprint(settings, dataset),
        is_fine_tuned=weights is not None,
    )


def _fit(trainer: Trainer, run: RunDirectory, params: Params | None, extras: Extras, console: Console) -> LoopEnd:
    """Trains from the newest checkpoint, or from given or random parameters."""
    settings, state = trainer.settings, trainer.init_state(params)
    validation_samples = list(trainer.dataset.validation_samples())
    validate_every = settings.validate_every if validation_samples else None

    def show(row: Row) -> None:
        progress.advance(1, f"loss {row['loss']:.4f}  lr {row['learning_rate']:.1e}")

    with Checkpoints(run.checkpoints) as checkpoints:
        start = 0
        if checkpoints.step() is not None:
            start, items = checkpoints.restore(trainer.devices.like(trainer.state.items()))
            state = TrainState(**items)
        elif params is not None:
            checkpoints.save(0, state.items())  # to start from after an early end
        batches = trainer.batches(start, settings.steps)
        if extras.profile and is_main():
            batches = traced(batches, run.path / "profile")
        progress = ProgressBar(console, settings.steps, unit="steps", start=start)
        with contextlib.closing(batches), progress, _trackers(trainer, run, extras) as opened:
            return fit(
                state,
                run=run,
                train_step=trainer.train_step,
                batches=batches,
                learning_rates=learning_rates(settings),
                schedule=Schedule(start, settings.steps, settings.checkpoint_every, validate_every),
                checkpoints=checkpoints,
                show=show,
                validate=lambda state: validate(trainer.surrogate(state), validation_samples),
                cases=trainer.cases,
                trackers=opened,
            )


def _trackers(
    trainer: Trainer, run: RunDirectory, extras: Extras
) -> contextlib.AbstractContextManager[Sequence[Tracker]]:
    if not is_main():
        return contextlib.nullcontext(())
    return trackers(run, trainer.settings.to_dict(), wandb_project=extras.wandb_project)


def _report_metrics(dataset: Dataset, surrogate: Surrogate, end: LoopEnd, run: RunDirectory, console: Console) -> None:
    """Computes the metrics, writes `metrics.json` and prints the table."""
    metrics = evaluate(surrogate, dataset.test_samples(), partial(baselines, dataset, surrogate.normalizer))
    num_params = sum(p.size for p in jax.tree.leaves(surrogate.params))
    write_json(
        run.path / "metrics.json",
        {"test": metrics, "train_seconds": round(end.seconds, 1), "num_params": num_params},
    )
    by_name = {field: {"model": row["relative_l2"], **row} for field, row in metrics.items()}
    for row in by_name.values():
        del row["relative_l2"]
    console.print(metrics_table("Relative L2 error on the test part", by_name))
