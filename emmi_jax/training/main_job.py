"""The whole of `emmi-jax train`: data, training, errors on unseen cases, pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import jax
import optax  # type: ignore[import-untyped]
from rich.console import Console

from emmi_jax.cfd.cases import Dataset, Predict, Sample, normalize_sample
from emmi_jax.cfd.json_files import JsonDict, write_json
from emmi_jax.cfd.loss_plot import draw_loss
from emmi_jax.cfd.normalization import Normalizer
from emmi_jax.cfd.npz import write_arrays
from emmi_jax.config import AbUptConfig
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params, init_params
from emmi_jax.training.checkpoints import Checkpoints
from emmi_jax.training.evaluation import evaluate, make_predict
from emmi_jax.training.loop import LoopEnd, fit
from emmi_jax.training.optimizer import learning_rates, make_optimizer
from emmi_jax.training.progress import TrainingProgress, error_table
from emmi_jax.training.run_directory import RunDirectory, check_same_config, is_converted
from emmi_jax.training.settings import TrainSettings
from emmi_jax.training.step import TrainState, make_train_step
from emmi_jax.training.trained_run import fixed_points, load_dataset, run_config


class Outcome(NamedTuple):
    """How a run ended: the signal that stopped it early, or None and it is complete."""

    path: Path
    signal_number: int | None


def train(settings: TrainSettings, path: Path, *, resume: bool, console: Console) -> Outcome:
    """Trains a model and leaves everything about it in a folder.

    Args:
        settings: What to train, on what.
        path: The run's folder; it must not exist, or with `resume` must hold the same configuration.
        resume: Whether to go on from the run's newest checkpoint.
        console: Where progress and the table of errors go.

    Returns:
        The outcome. Stopped early, the run has a checkpoint of its last step.

    Raises:
        FileNotFoundError: The data file does not exist.
        ValueError: Settings or data are unusable, the run exists (or with `resume` does not), or training diverged.
    """
    dataset = load_dataset(settings, _statistics_of(path) if resume else None)
    run, config = _open_run(settings, dataset, path, resume=resume)
    model = AnchoredBranchedUPT(AbUptConfig.from_dict(config["model"]))
    normalizer = Normalizer.from_dict(config["normalizer"])
    num_params = _num_params(model)
    console.print(f"{dataset.summary}\n{num_params:,} parameters, {settings.steps} steps, run {path}", highlight=False)
    end = _fit(settings, dataset, model, normalizer, run, console)
    if end.signal_number is not None:
        console.print(f"stopped after step {end.step}/{settings.steps}; its checkpoint is in {path}", highlight=False)
        return Outcome(path, end.signal_number)
    predict = make_predict(model, end.state.params, normalizer)
    _report(dataset, predict, end, num_params, run, console)
    return Outcome(path, None)


def _statistics_of(path: Path) -> Normalizer | None:
    """The scales that weights from elsewhere brought; those of a run that was trained here are measured again."""
    config = RunDirectory.open(path).read_config()
    return Normalizer.from_dict(config["normalizer"]) if is_converted(config) else None


def _open_run(settings: TrainSettings, dataset: Dataset, path: Path, *, resume: bool) -> tuple[RunDirectory, JsonDict]:
    """Returns the run and its configuration, new or stored."""
    config = run_config(settings, dataset)
    if not resume:
        # An impossible model is refused while there is nothing to clean up.
        _num_params(AnchoredBranchedUPT(AbUptConfig.from_dict(config["model"])))
        run = RunDirectory.create(path, config)
    else:
        run = RunDirectory.open(path)
        stored = run.read_config()
        if is_converted(stored):
            # Weights from elsewhere bring their model and scales; only the settings of the training are new.
            check_same_config(stored["model"]["fields"], config["model"]["fields"], path="fields.")
            config |= {"model": stored["model"], "normalizer": stored["normalizer"], "converted": True}
        if stored["settings"] is not None:
            check_same_config(stored, config)
            return run, stored
        write_json(run.path / "config.json", config)
    points = fixed_points(dataset.fixed_case)
    if points:
        write_arrays(run.fixed_points, points)
    return run, config


def _num_params(model: AnchoredBranchedUPT) -> int:
    shapes = jax.eval_shape(lambda: init_params(model, seed=0))
    return sum(math.prod(p.shape) for p in jax.tree.leaves(shapes))


def _fit(
    settings: TrainSettings,
    dataset: Dataset,
    model: AnchoredBranchedUPT,
    normalizer: Normalizer,
    run: RunDirectory,
    console: Console,
) -> LoopEnd:
    optimizer = make_optimizer(settings)
    state = _initial_state(model, optimizer, seed=settings.seed)
    checkpoints = Checkpoints(run.checkpoints)
    start = checkpoints.latest_step()
    if start is not None:
        state = checkpoints.restore(state)
    start = start or 0

    def make_batch(step: int) -> Sample:
        return normalize_sample(normalizer, dataset.train_batch(settings.seed, step))

    try:
        with TrainingProgress(console, steps=settings.steps, start=start) as progress:
            return fit(
                state,
                run=run,
                train_step=make_train_step(model, optimizer),
                make_batch=make_batch,
                learning_rates=learning_rates(settings),
                start=start,
                steps=settings.steps,
                checkpoint_every=settings.checkpoint_every,
                checkpoints=checkpoints,
                show=progress.update,
            )
    finally:
        checkpoints.close()


def _initial_state(model: AnchoredBranchedUPT, optimizer: optax.GradientTransformation, *, seed: int) -> TrainState:
    params: Params = init_params(model, seed=seed)
    return TrainState(params, optimizer.init(params))


def _report(
    dataset: Dataset, predict: Predict, end: LoopEnd, num_params: int, run: RunDirectory, console: Console
) -> None:
    """Measures the errors, writes `metrics.json`, draws the pictures and prints the table."""
    errors = evaluate(dataset, predict)
    metrics = {"test": errors, "train_seconds": round(end.seconds, 1), "num_params": num_params}
    write_json(run.path / "metrics.json", metrics)
    console.print(error_table(errors))
    pictures = [draw_loss(run.read_metrics(), run.path), *dataset.draw(predict, run.path)]
    console.print(
        f"trained in {end.seconds:.0f} s; the run is in {run.path}\npictures: {', '.join(p.name for p in pictures)}",
        highlight=False,
        soft_wrap=True,
    )
