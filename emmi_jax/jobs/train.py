"""`emmi-jax train`: data, training, metrics on unseen cases, pictures."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from emmi_jax.config import AbUptConfig, LoggingOptions, TrainJob, TrainSettings
from emmi_jax.data.baselines import baselines
from emmi_jax.data.load import branches_of, load_dataset, make_normalizer
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.open import open_cases
from emmi_jax.data.open_cases import OpenCases
from emmi_jax.data.samples import Dataset
from emmi_jax.deploy.conditions import condition_dim
from emmi_jax.files.atomic import JsonDict, write_json
from emmi_jax.files.locks import locked
from emmi_jax.files.outputs import check_output
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.info import describe_features, param_shapes, summary_table
from emmi_jax.jobs.notes import ConsoleReport, describe_sources, print_notes
from emmi_jax.jobs.pictures import draw_pictures
from emmi_jax.jobs.progress import ProgressBar, metrics_table, say
from emmi_jax.meshes.cells import POSITIONS
from emmi_jax.models.init import Params
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.runs.directory import RunConfig, RunDirectory, aside, check_new, check_same_config
from emmi_jax.runs.load import load_run
from emmi_jax.runs.trackers import Tracker, trackers
from emmi_jax.training.devices import Devices, Layout
from emmi_jax.training.evaluation import evaluate, validate
from emmi_jax.training.loop import LoopEnd, Row, Schedule, fit
from emmi_jax.training.optimizer import learning_rates
from emmi_jax.training.plan import check_step, resolve
from emmi_jax.training.processes import connected, is_main, wait_for_all
from emmi_jax.training.profile import traced
from emmi_jax.training.settings import model_config
from emmi_jax.training.step import TrainState
from emmi_jax.training.trainer import TrainSetup


class Outcome(NamedTuple):
    """End of a run: its folder, and the signal that stopped it early, or None if it is complete."""

    path: Path
    signal_number: int | None


def run_job(job: TrainJob) -> int:
    """Runs `emmi-jax train`.

    Returns:
        0, or 128 + the signal that stopped training.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Options, settings or data are unusable, or training diverged; the message quotes the value.
    """
    opened = functools.cache(lambda data, foam: open_cases(data, foam=foam))  # once, for the plan and the training
    settings, path = resolve(job, lambda data, foam: branches_of(opened(data, foam)))
    devices = job.devices
    with connected(devices.coordinator, devices.num_processes, devices.process_id):
        console = Console(soft_wrap=False, quiet=not is_main())
        if job.name is None and jax.process_count() > 1:
            raise ValueError("several processes need the --name of the run")
        cases = None if settings.data is None else opened(settings.data, settings.foam)
        if job.dry_run:
            show_plan(settings, job, cases, console=console)
            return 0
        outcome = train(settings, path, job, cases, console=console)
        if outcome.signal_number is None:
            return 0
        if is_main():
            say(console, f"continue with: emmi-jax train --out {path.parent} --name {path.name} --resume")
        return 128 + outcome.signal_number


def train(
    settings: TrainSettings, path: Path, job: TrainJob, opened: OpenCases | None = None, *, console: Console
) -> Outcome:
    """Trains a model and leaves everything about it in a folder.

    Where several processes share the run, each calls this; the main one writes and prints.

    Args:
        settings: What to train, and on what.
        path: The run's folder; it must not exist, or to resume must hold the same configuration.
        job: Whether to resume, what to start from, how devices share the work, and what else to write.
        opened: The cases of the data, if they have been opened.
        console: Where progress and the table of metrics are printed.

    Returns:
        The outcome. A run that was stopped early has a checkpoint of its last step.

    Raises:
        FileNotFoundError: The data file does not exist.
        ValueError: Settings or data are unusable, the run exists (or does not, to resume it), or training diverged.
    """
    if not job.resume:
        check_new(path)
        check_output(path, [settings.data, settings.split, settings.statistics, job.init_from])
    start = _start(settings, path, job, opened, console)
    if not job.resume:
        _create(path, start)
    run = RunDirectory.open(path)
    with locked(path) if is_main() else contextlib.nullcontext():
        if is_main() and job.resume:
            _complete(run, start.config, start.trainer.dataset)
        wait_for_all("configuration")
        return _train(start.trainer, run, job.logging, console)


def _train(trainer: TrainSetup, run: RunDirectory, logging: LoggingOptions, console: Console) -> Outcome:
    settings, dataset, path = trainer.settings, trainer.dataset, run.path
    num_params = sum(math.prod(p.shape) for p in jax.tree.leaves(trainer.state.params))
    say(console, f"{dataset.summary}\n{num_params:,} parameters, {settings.steps} steps, run {path}")
    if jax.device_count() > 1:
        say(console, f"devices: {trainer.devices.summary}")
    end = _fit(trainer, run, logging, console)
    if end.signal_number is not None:
        say(console, f"stopped after step {end.step}/{settings.steps}; its checkpoint is in {path}")
        return Outcome(path, end.signal_number)
    surrogate = trainer.surrogate(end.state)
    if is_main():
        _report_metrics(dataset, surrogate, end, run, console)
        pictures = ", ".join(picture.name for picture in draw_pictures(dataset, surrogate, run))
        say(console, f"trained in {end.seconds:.0f} s; the run is in {path}")
        say(console, f"pictures: {pictures}")
    wait_for_all("evaluation")
    return Outcome(path, None)


class _Start(NamedTuple):
    """Start of a run; `params` are those of the run that it starts from."""

    trainer: TrainSetup
    config: RunConfig
    params: Sequence[Params]


def _start(settings: TrainSettings, path: Path, job: TrainJob, opened: OpenCases | None, console: Console) -> _Start:
    """Opens data and earlier runs, and measures statistics once it is known that the model can be trained."""
    devices = _devices(settings, job)
    stored = RunDirectory.open(path).read_config() if job.resume else None
    if stored is not None and stored.settings is None:
        raise ValueError(f"{path} was not trained: --init-from {path} starts a new run from it")
    dataset = _load_dataset(settings, opened, resume=job.resume)
    print_notes(dataset, console)
    source = None if job.init_from is None else RunDirectory.open(job.init_from).read_config()
    params: list[Params] = []
    if job.init_from is not None:
        params = [member.params for member in load_run(job.init_from).members]
        if len(params) not in (1, settings.members):
            raise ValueError(
                f"--init-from {job.init_from} has {len(params)} members: expected --members {len(params)}, got "
                f"{settings.members}"
            )
    weights = stored if stored is not None and stored.is_fine_tuned else source
    if weights is not None:
        settings = settings.updated({"model": _options(settings, weights.model)})
    model = _model(settings, dataset, weights)
    if stored is not None:
        config = _resumed_config(settings, dataset, model, stored)
        model = config.model
    trainer = TrainSetup.make(settings, dataset, devices, model, workers=job.devices.workers)
    check_step(trainer)
    with _main_first("statistics"):
        densest = dataset.resampled(settings.sampling_at(settings.steps - 1))  # as cases are checked for enough points
        if stored is None:
            normalizer = (
                make_normalizer(settings, densest, ConsoleReport(console)) if source is None else source.normalizer
            )
            config = _run_config(settings, dataset, model, normalizer, weights=source)
        is_measured = stored is None and source is None and (settings.statistics or dataset.statistics) is None
        if is_main() and not is_measured:
            densest.check_cases(ConsoleReport(console))
    return _Start(trainer.scaled(config.normalizer), config, params)


def show_plan(settings: TrainSettings, job: TrainJob, opened: OpenCases | None = None, *, console: Console) -> None:
    """Prints what a run would do: its settings, data, devices and model, and the cost of a step; writes nothing.

    Raises:
        FileNotFoundError: The data file does not exist.
        ValueError: Settings, data or layout are unusable.
    """
    devices, dataset = _devices(settings, job), load_dataset(settings, opened)
    if settings.statistics is not None:
        make_normalizer(settings, dataset)
    config = model_config(settings, dataset.fields, condition_dim(dataset.conditions), dataset.features)
    trainer = TrainSetup.make(settings, dataset, devices, config)
    largest = trainer.put(trainer.draw(settings.steps - 1))
    step = jax.jit(trainer.train_step).lower(devices.abstract_state(trainer.state), largest).compile()
    console.print_json(data=settings.to_dict())
    console.print(summary_table(param_shapes(trainer.state.params), "Parameters"))
    cost, memory = step.cost_analysis(), step.memory_analysis()
    # XLA counts the body of a loop once.
    flops = "unknown" if cost is None else f"at least {cost['flops'] / 1e9:,.1f} GFLOP"
    size = "unknown" if memory is None else f"{(memory.argument_size_in_bytes + memory.temp_size_in_bytes) >> 20:,} MiB"
    say(console, "\n".join([dataset.summary, *describe_sources(dataset), *describe_features(dataset.features)]))
    print_notes(dataset, console)
    say(console, f"dtype      {config.dtype}")
    say(console, f"devices    {devices.summary}\nstep       {flops}, {size} per device")


def _devices(settings: TrainSettings, job: TrainJob) -> Devices:
    return Devices.make(settings, Layout.parse(job.devices.mesh, fsdp=job.devices.fsdp))


def _load_dataset(settings: TrainSettings, opened: OpenCases | None, *, resume: bool) -> Dataset:
    data = settings.data
    if resume and data is not None and "://" not in data and not Path(data).exists():
        raise FileNotFoundError(f"{data}: no such file or folder: --data says where the data of the run are now")
    return load_dataset(settings, opened)


def _create(path: Path, start: _Start) -> None:
    """Makes the folder of a new run; a kill at any moment leaves the whole of it or none."""
    trainer, config, params = start
    making = RunDirectory.making(path, config, trainer.dataset.context)
    with making if is_main() else contextlib.nullcontext():
        wait_for_all("new run")
        if params:
            with Checkpoints(RunDirectory(aside(path)).checkpoints) as checkpoints:
                checkpoints.save(0, trainer.init_state(params).items())
        wait_for_all("start")
    wait_for_all("run")


def _complete(run: RunDirectory, config: RunConfig, dataset: Dataset) -> None:
    """Makes what a run lacks or has in damaged form, and notes where its data are now."""
    if run.read_config() != config:
        run.write_config(config)
    if dataset.context is None:
        return
    with contextlib.suppress(ValueError):
        if jax.tree.all(jax.tree.map(np.array_equal, run.read_context(config), dataset.context)):
            return
    run.write_context(dataset.context)


@contextlib.contextmanager
def _main_first(what: str) -> Iterator[None]:
    """Lets the other processes wait until the main one has done something; they find what it measured."""
    if not is_main():
        wait_for_all(what)
    yield
    if is_main():
        wait_for_all(what)


def _resumed_config(settings: TrainSettings, dataset: Dataset, model: AbUptConfig, stored: RunConfig) -> RunConfig:
    """Returns the configuration of a run that was trained before, if nothing has changed."""
    before = stored.settings
    if before is not None and None not in (before.data, settings.data):  # what is there is compared, not where
        if settings.statistics != before.statistics and not _gives(settings, dataset, stored.normalizer):
            check_same_config({"statistics": before.statistics}, {"statistics": settings.statistics}, path="settings.")
        before = replace(before, data=settings.data, split=settings.split, statistics=settings.statistics)
        stored = replace(stored, settings=before)
    if before is not None:
        check_same_config(before.to_dict(), settings.to_dict(), path="settings.")
    if settings.model["dtype"] == "auto":  # a run may move to another kind of device
        model = replace(model, dtype=stored.model.dtype)
    config = _run_config(settings, dataset, model, stored.normalizer, weights=stored if stored.is_fine_tuned else None)
    if stored.positions != config.positions:
        raise ValueError(
            f"the positions of the run's cells were computed by {stored.positions or 'VTK'}, now they are by "
            f"{config.positions}: start a new run, perhaps with --init-from this one"
        )
    check_same_config(replace(stored, data_fingerprint=config.data_fingerprint).to_dict(), config.to_dict())
    if stored.data_fingerprint != config.data_fingerprint:
        raise ValueError(f"{settings.data}: not the data that the run was started with, or they have changed since")
    return config


def _gives(settings: TrainSettings, dataset: Dataset, normalizer: Normalizer) -> bool:
    """Returns whether given statistics are those of a normalizer."""
    if settings.statistics is None:
        return False
    try:
        return make_normalizer(settings, dataset) == normalizer
    except ValueError:  # those of other fields
        return False


def _options(settings: TrainSettings, model: AbUptConfig) -> JsonDict:
    """Returns the model options of the settings as a model has them."""
    return {name: value for name, value in model.to_dict().items() if name in settings.model}


def _model(settings: TrainSettings, dataset: Dataset, weights: RunConfig | None) -> AbUptConfig:
    """Returns the model to train; converted weights bring theirs, and their scales."""
    model = model_config(settings, dataset.fields, condition_dim(dataset.conditions), dataset.features)
    if weights is None:
        return model
    if settings.statistics is not None:
        raise ValueError(f"the run has statistics of its own, got {settings.statistics!r}")
    if (known := sorted(weights.normalizer.conditions)) != (measured := sorted(dataset.conditions)):
        raise ValueError(f"the run takes the conditions {known}, the data have {measured}")
    for name, scale in weights.normalizer.conditions.items():
        units = scale.unit, dataset.conditions[name].unit
        if None not in units and units[0] != units[1]:
            raise ValueError(f"the run takes the condition {name!r} in {units[0]}, the data have it in {units[1]}")
    check_same_config(weights.model.fields, model.fields, path="fields.")
    # Weights know features by their places.
    taken, given = (
        {part: list(names.items()) for part, names in features.items()}
        for features in (weights.normalizer.feature_channels, dataset.features)
    )
    check_same_config(taken, given, path="features.")
    return weights.model


def _run_config(
    settings: TrainSettings,
    dataset: Dataset,
    model: AbUptConfig,
    normalizer: Normalizer,
    weights: RunConfig | None = None,
) -> RunConfig:
    """Returns everything that a run depends on."""
    sources = {} if dataset.opened is None else dataset.opened.sources_json
    return RunConfig(
        model=model,
        normalizer=normalizer,
        sampling=settings.sampling,
        sources=sources or (weights.sources if weights is not None else {}),
        settings=settings,
        split=dataset.split_of,
        data_fingerprint=dataset.fingerprint,
        is_fine_tuned=weights is not None,
        positions=POSITIONS if sources else None,
        num_members=settings.members,
    )


def _fit(trainer: TrainSetup, run: RunDirectory, logging: LoggingOptions, console: Console) -> LoopEnd:
    """Trains from the newest checkpoint, or from random parameters."""
    settings, state = trainer.settings, trainer.init_state()
    validation_samples = list(trainer.dataset.validation_samples())
    validate_every = settings.validate_every if validation_samples else None

    def show(row: Row) -> None:
        progress.advance(1, f"loss {row['loss']:.4f}  lr {row['learning_rate']:.1e}")

    with Checkpoints(run.checkpoints) as checkpoints:
        start = 0
        if checkpoints.step() is not None:
            start, items = checkpoints.restore(trainer.devices.abstract_state(trainer.state.items()))
            state = TrainState(**items)
        elif run.read_config().is_fine_tuned:
            raise ValueError(f"{run.path}: no checkpoint to start from: --init-from starts a new run")
        batches = trainer.batches(start, settings.steps)
        if logging.profile and is_main():
            batches = traced(batches, run.path / "profile")
        progress = ProgressBar(console, settings.steps, unit="steps", start=start)
        with contextlib.closing(batches), progress, _trackers(trainer, run, logging) as opened:
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
    trainer: TrainSetup, run: RunDirectory, logging: LoggingOptions
) -> contextlib.AbstractContextManager[Sequence[Tracker]]:
    if not is_main():
        return contextlib.nullcontext(())
    return trackers(run, trainer.settings.to_dict(), wandb_project=logging.wandb)


def _report_metrics(dataset: Dataset, surrogate: Surrogate, end: LoopEnd, run: RunDirectory, console: Console) -> None:
    """Computes the metrics, writes `metrics.json` and prints the table."""
    metrics = evaluate(surrogate, dataset.test_samples(), functools.partial(baselines, dataset, surrogate.normalizer))
    num_params = sum(p.size for p in jax.tree.leaves(surrogate.params))
    write_json(
        run.path / "metrics.json", {"test": metrics, "train_seconds": round(end.seconds, 1), "num_params": num_params}
    )
    by_name = {field: {"model": row["relative_l2"], **row} for field, row in metrics.items()}
    for row in by_name.values():
        del row["relative_l2"]
    console.print(metrics_table("Relative L2 error on the test part", by_name))
