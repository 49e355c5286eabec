"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from emmi_jax.config.base import Config, as_mapping
from emmi_jax.config.conditions import ConditionSource, ScalingLaw
from emmi_jax.config.data import DataSettings, FieldSettings, FoamOptions, Sampling
from emmi_jax.config.model import ModelOptions
from emmi_jax.config.setting import setting

OPTIMIZERS = ("adamw", "lion", "muon")
SCHEDULES = ("cosine", "linear", "constant")
COMPANIONS = ("adamw", "lion")
MUON_SCALES = ("rms", "shape")

_MODEL_KEYS = [field.name for field in dataclasses.fields(ModelOptions) if field.name != "token_axis"]
_MOST = 100_000_000
_BELOW_ONE = 0.999999
_DENSITY = 2
_MODEL: dict[str, Any] = {
    "dim": 96,
    "num_heads": 3,
    "physics_blocks": ("joint",) * 4,
    "decoder_depths": {},
    "supernode_pooling": {"radius": None, "k": 16},
    "mlp_ratio": 2,
    "max_wavelength": 100.0,
    "init_weights": "torch",
    "option_scope": "all",
    "dtype": "auto",
}


@dataclass(frozen=True, kw_only=True)
class RuleSettings(Config):
    """From gradients to updates."""

    name: str = setting(
        "adamw",
        "adamw, lion or muon (Muon for matrices, its companion for the rest).",
        choices=OPTIMIZERS,
        label="name of the optimizer",
    )
    weight_decay: float = setting(0.01, "Decoupled weight decay of the matrices.", low=0)
    b1: float = setting(
        0.9, "Decay of the first moment; Muon has it for all but the matrices, which have 0.95.", low=0, high=_BELOW_ONE
    )
    b2: float = setting(0.99, "Decay of the second moment, or Lion's of its only one.", low=0, high=_BELOW_ONE)


@dataclass(frozen=True, kw_only=True)
class RateSettings(Config):
    """The learning rate of each step."""

    learning_rate: float = setting(4e-3, "Peak learning rate.", positive=True, option="--learning-rate")
    schedule: str = setting(
        "cosine",
        "How it falls after the warm-up: cosine (half a wave), linear, or constant (not at all).",
        choices=SCHEDULES,
    )
    warmup_fraction: float = setting(0.05, "Fraction of the steps in which it rises.", low=0, high=1)
    final_fraction: float = setting(1e-3, "Fraction of the peak that is left at the last step.", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class MuonSettings(Config):
    """Muon for matrices, and a companion for the rest."""

    companion: str = setting(
        "adamw", "Muon's optimiser of biases and other parameters of one axis: adamw or lion.", choices=COMPANIONS
    )
    companion_learning_rate: float | None = setting(
        None, "Peak learning rate of the companion; none for that of the matrices.", positive=True
    )
    companion_weight_decay: float = setting(0.0, "Decoupled weight decay of the companion's parameters.", low=0)
    muon_scale: str = setting(
        "rms",
        "Size of Muon's updates: rms for entries of root mean square 0.2, so that it takes the learning rates of AdamW "
        "(arXiv 2502.16982), or shape for singular values of sqrt(max(1, outputs / inputs)).",
        choices=MUON_SCALES,
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings(MuonSettings, RateSettings, RuleSettings):
    """Updates of the parameters.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    clip_norm: float = setting(1.0, "Largest global norm of a gradient.", positive=True)
    ema_decay: float | None = setting(
        None,
        "Decay per step of the averaged parameters, which are used after training: the exponentially weighted mean of "
        "all parameters since the first step; none for no average.",
        low=0,
        high=_BELOW_ONE,
    )
    accumulation: int = setting(1, "Micro-batches per step, to save memory; their gradients are averaged.", low=1)


@dataclass(frozen=True, kw_only=True)
class StepSettings(Config):
    """Number and size of steps, and work between them."""

    seed: int = setting(0, "Seed of weights and batches.", low=0, high=_MOST, option="--seed")
    steps: int = setting(4500, "Optimiser steps.", low=1, high=_MOST, option="--steps")
    batch_size: int = setting(2, "Cases per step.", low=1, high=_MOST, option="--batch-size")
    members: int = setting(
        1,
        "Models to train together, whose mean is the prediction; each is what the seed, seed + 1, … gives.",
        low=1,
        high=1_000,
        option="--members",
    )
    dense_fraction: float = setting(
        0.0, "Fraction of the steps, the last ones, that draw twice as many anchors and queries.", low=0, high=1
    )
    checkpoint_every: int = setting(200, "Steps between checkpoints.", low=1, high=_MOST, option="--checkpoint-every")
    validate_every: int = setting(
        500, "Steps between validations, for data with a validation split; each saves a checkpoint.", low=1, high=_MOST
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings(StepSettings, FieldSettings, FoamOptions, DataSettings):
    """Settings of a run; equal settings on the same machine give equal runs.

    Raises:
        ValueError: A value is out of range, or a key is unknown; the message quotes it.
    """

    conditions: ConditionSource = setting(ConditionSource, "Conditions of the cases that the model depends on.")
    nondimensionalize: ScalingLaw | None = setting(
        None, "Conditions that fields are divided by powers of, so that data of different speeds mix."
    )
    sampling: Sampling = setting(
        lambda: Sampling(num_anchors=96, num_queries=32, num_test_anchors=512),
        "How many points of a case the model sees, and how they are drawn.",
    )
    model: Mapping[str, Any] = setting(
        dict,
        "Options of AbUptConfig that differ from the defaults of training: all but those that follow from the data. "
        "What is pooled is embedded with the model's max_wavelength, unless supernode_pooling has its own. "
        "The dtype may be auto: bfloat16 on GPU and TPU, float32 on CPU; float16 is refused.",
        of=ModelOptions,
    )
    optimizer: OptimizerSettings = setting(OptimizerSettings, "How the parameters move.")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = as_mapping("model", self.model)
        for key in given:
            if key not in _MODEL_KEYS:
                nearest = difflib.get_close_matches(key, _MODEL_KEYS, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown key {key!r} for model; did you mean {nearest!r}?")
        self._set(model=as_mapping("model", {key: _hashable(value) for key, value in {**_MODEL, **given}.items()}))
        if self.model["dtype"] == "float16":
            raise ValueError("gradients underflow in float16: expected dtype auto, bfloat16 or float32, got 'float16'")
        if not self.model["physics_blocks"]:
            raise ValueError(f"physics_blocks must name at least one block, got {self.model['physics_blocks']!r}")
        num_micro = self.optimizer.accumulation
        if self.batch_size % num_micro:
            raise ValueError(f"batch_size must be a multiple of accumulation, got {self.batch_size} and {num_micro}")

    @property
    def seeds(self) -> range:
        """The seeds of the members."""
        return range(self.seed, self.seed + self.members)

    def sampling_at(self, step: int) -> Sampling:
        """Returns how a step draws points; the first step is 0."""
        if step < self.steps - round(self.dense_fraction * self.steps):
            return self.sampling
        num_anchors, num_queries = _DENSITY * self.sampling.num_anchors, _DENSITY * self.sampling.num_queries
        return dataclasses.replace(self.sampling, num_anchors=num_anchors, num_queries=num_queries)

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
            is_section = not parents and key in ("conditions", "sampling", "model", "optimizer")
            place[key] = {**place[key], **as_mapping(key, value)} if is_section else value
        return self.from_dict(values)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
