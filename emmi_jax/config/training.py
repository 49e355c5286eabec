"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from emmi_jax.config.base import Config, as_mapping
from emmi_jax.config.checks import as_names, check_choice, check_count
from emmi_jax.config.data import FoamSelection, Sampling
from emmi_jax.config.model import AbUptConfig

OPTIMIZERS = ("adamw", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant")
COMPANIONS = ("adamw", "lion")
MUON_SCALES = ("rms", "shape")
LOSSES = ("mse", "rmse")

_OF_THE_DATA = ("fields", "condition_dim", "vector_potentials", "num_position_axes", "token_axis")
_MODEL_KEYS = [field.name for field in dataclasses.fields(AbUptConfig) if field.name not in _OF_THE_DATA]
_MOST = 100_000_000
_DENSITY = 2
_LARGEST, _BELOW_ONE = 1e38, 0.999999
_SAMPLING: dict[str, Any] = {"num_anchors": 96, "num_queries": 32, "num_test_anchors": 512}
_MODEL: dict[str, Any] = {
    "dim": 96,
    "num_heads": 3,
    "physics_blocks": ("joint",) * 4,
    "decoder_depths": {},
    "supernode_pooling": {"radius": None, "k": 16},
    "mlp_ratio": 2,
    "max_wavelength": 100.0,
    "init_weights": "torch",
    "dtype": "auto",
}


def _check_between(name: str, value: Any, low: float, high: float, *, exclusive: bool = False) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # As float32, which neither overflows nor rounds to an end.
    value32 = float(np.float32(value)) if is_number and abs(value) < _LARGEST else math.nan
    if not (low < value32 < high if exclusive else low <= value32 <= high):
        expected = "positive" if exclusive else f"a number from {low} to {high}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Config):
    """How the parameters move.

    Args:
        name: ``adamw``, ``lion`` or ``muon`` (Muon for matrices, its companion for the rest).
        learning_rate: Peak learning rate.
        schedule: How it falls after the warm-up: ``cosine`` (half a wave), ``linear``, or ``constant`` (not at all).
        warmup_fraction: Fraction of the steps in which it rises.
        final_fraction: Fraction of the peak that is left at the last step.
        weight_decay: Decoupled weight decay of the matrices.
        b1: Decay of the first moment; Muon has it for all but the matrices, which have 0.95.
        b2: Decay of the second moment, or Lion's of its only one.
        clip_norm: Largest global norm of a gradient.
        ema_decay: Decay per step of the averaged parameters, which are used after training; None for no average. It is
            the exponentially weighted mean of all parameters since the first step.
        accumulation: Micro-batches per step, to save memory; their gradients are averaged.
        companion: Muon's optimiser of biases and other parameters of one axis: ``adamw`` or ``lion``.
        companion_learning_rate: Peak learning rate of the companion; None for that of the matrices.
        companion_weight_decay: Decoupled weight decay of the companion's parameters.
        muon_scale: Size of Muon's updates: ``rms`` for entries of root mean square 0.2, so that it takes the learning
            rates of AdamW (arXiv 2502.16982), or ``shape`` for singular values of sqrt(max(1, outputs / inputs)).

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    name: str = "adamw"
    learning_rate: float = 4e-3
    schedule: str = "cosine"
    warmup_fraction: float = 0.05
    final_fraction: float = 1e-3
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    clip_norm: float = 1.0
    ema_decay: float | None = None
    accumulation: int = 1
    companion: str = "adamw"
    companion_learning_rate: float | None = None
    companion_weight_decay: float = 0.0
    muon_scale: str = "rms"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("name of the optimizer", self.name, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("companion", self.companion, COMPANIONS)
        check_choice("muon_scale", self.muon_scale, MUON_SCALES)
        check_count("accumulation", self.accumulation)
        rates = ["learning_rate", "clip_norm"]
        rates += ["companion_learning_rate"] if self.companion_learning_rate is not None else []
        for name in rates:
            _check_between(name, getattr(self, name), 0, math.inf, exclusive=True)
        for name in ("weight_decay", "companion_weight_decay"):
            _check_between(name, getattr(self, name), 0, math.inf)
        for name in ("warmup_fraction", "final_fraction"):
            _check_between(name, getattr(self, name), 0, 1)
        for name in ("b1", "b2", *(["ema_decay"] if self.ema_decay is not None else [])):
            _check_between(name, getattr(self, name), 0, _BELOW_ONE)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Config):
    """Settings of a run; equal settings on the same machine give equal runs.

    Args:
        data: Path of an `.npz` case, of a folder with a case, or of a folder with several such folders; None for the
            built-in ellipsoids.
        split: Path of a file that assigns cases to splits; None for `split.json` beside the cases, or else for a random
            fifth to test on.
        statistics: Statistics to use instead of measured ones; see `read_statistics`.
        skip_unusable: Whether cases that are absent or cannot be read are left out; each is read once before training.
        surface_patches: Regular expressions for the patches of OpenFOAM cases that are the surface; none for the walls.
        time: Time of OpenFOAM cases; None for the latest.
        position_range: Longest side of the data's box in model units, unless `statistics` are given.
        divergence_free: Fields of three channels that are the curl of what the network predicts.
        seed: Seed of parameters and batches.
        steps: Optimiser steps.
        batch_size: Cases per step.
        dense_fraction: Fraction of the steps, the last ones, that draw twice as many anchors and queries.
        checkpoint_every: Steps between checkpoints.
        validate_every: Steps between validations, for data with a validation split; each saves a checkpoint.
        loss: Error of a normalized field of a case, averaged over the cases: the mean square (``mse``) or its root
            (``rmse``).
        loss_weights: Weights of the fields in the loss, by "branch/field"; those left out have 1.
        sampling: How many points of a case the model sees, and how they are drawn.
        model: Options of `AbUptConfig` that differ from the defaults of training: all but those that follow from the
            data. The dtype may be ``auto``: bfloat16 on GPU and TPU, float32 on CPU; float16 is refused.
        optimizer: How the parameters move.

    Raises:
        ValueError: A value is out of range, or a key is unknown; the message quotes it.
    """

    data: str | None = None
    split: str | None = None
    statistics: str | None = None
    skip_unusable: bool = False
    surface_patches: tuple[str, ...] = ()
    time: str | None = None
    position_range: float = 100.0
    divergence_free: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 4500
    batch_size: int = 2
    dense_fraction: float = 0.0
    checkpoint_every: int = 200
    validate_every: int = 500
    loss: str = "mse"
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sampling: Sampling = dataclasses.field(default_factory=lambda: Sampling(**_SAMPLING))
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("sampling", Sampling), ("optimizer", OptimizerSettings)):
            if not isinstance(value := getattr(self, name), kind):
                raise ValueError(f"{name} must be a mapping, got {value!r}")
        given = as_mapping("model", self.model)
        for key in given:
            if key not in _MODEL_KEYS:
                nearest = difflib.get_close_matches(key, _MODEL_KEYS, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown key {key!r} for model; did you mean {nearest!r}?")
        self._set(
            divergence_free=as_names("divergence_free", self.divergence_free),
            surface_patches=as_names("surface_patches", self.surface_patches),
            time=None if self.time is None else str(self.time),
            loss_weights=as_mapping("loss_weights", self.loss_weights),
            model=as_mapping("model", {key: _hashable(value) for key, value in {**_MODEL, **given}.items()}),
        )
        for name in ("seed", "steps", "batch_size", "checkpoint_every", "validate_every"):
            check_count(name, getattr(self, name), 0 if name == "seed" else 1)
            if getattr(self, name) > _MOST:
                raise ValueError(f"{name} must be at most {_MOST}, got {getattr(self, name)!r}")
        for name in ("data", "split", "statistics"):
            if not isinstance(value := getattr(self, name), str | None) or value == "":
                raise ValueError(f"{name} must be a path or none, got {value!r}")
        if self.model["dtype"] == "float16":
            raise ValueError("gradients underflow in float16: expected dtype auto, bfloat16 or float32, got 'float16'")
        if not self.model["physics_blocks"]:
            raise ValueError(f"physics_blocks must name at least one block, got {self.model['physics_blocks']!r}")
        check_choice("loss", self.loss, LOSSES)
        _check_between("position_range", self.position_range, 0, math.inf, exclusive=True)
        _check_between("dense_fraction", self.dense_fraction, 0, 1)
        for name, weight in self.loss_weights.items():
            _check_between(f"the loss weight of {name!r}", weight, 0, math.inf)
        num_micro = self.optimizer.accumulation
        if self.batch_size % num_micro:
            raise ValueError(f"batch_size must be a multiple of accumulation, got {self.batch_size} and {num_micro}")
        for name in ("split", "statistics"):
            if self.data is None and getattr(self, name) is not None:
                raise ValueError(f"{name} needs data of your own, got {getattr(self, name)!r} without --data")

    def sampling_at(self, step: int) -> Sampling:
        """Returns how a step draws points; the first step is 0."""
        if step < self.steps - round(self.dense_fraction * self.steps):
            return self.sampling
        num_anchors, num_queries = _DENSITY * self.sampling.num_anchors, _DENSITY * self.sampling.num_queries
        return dataclasses.replace(self.sampling, num_anchors=num_anchors, num_queries=num_queries)

    @property
    def foam(self) -> FoamSelection:
        """The part of OpenFOAM cases that is read."""
        return FoamSelection(self.surface_patches, self.time)

    def updated(self, *changes: Mapping[str, Any]) -> Self:
        """Returns a copy with other values.

        Args:
            changes: Values by name, later ones over earlier ones. A mapping changes what it names and keeps the rest,
                except below `model`, where it replaces the option. A name with dots, such as
                "model.supernode_pooling.k", goes deeper.

        Raises:
            ValueError: A key is unknown, or a value out of range.
        """
        values = self.to_dict()
        for path, value in (item for change in changes for item in change.items()):
            *parents, key = path.split(".")
            place = values
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise ValueError(f"{path!r}: {parent!r} has no keys")
            is_section = not parents and key in ("sampling", "model", "optimizer")
            place[key] = {**place[key], **as_mapping(key, value)} if is_section else value
        return self.from_dict(values)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
