"""The settings of a training run, and the model that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from emmi_jax.config import AbUptConfig, Config, SupernodePoolingConfig, check_count
from emmi_jax.data.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Config):
    """Settings of a run; equal settings on the same machine give equal runs.

    Args:
        data: Path of an `.npz` case, of a folder with a case, or of a folder with several such folders; None for the
            built-in ellipsoids.
        split: Path of a file that assigns cases to splits; None for `split.json` beside the cases, or else for a random
            fifth to test on.
        statistics: Statistics to use instead of measured ones; see `read_statistics`.
        seed: Seed of parameters and batches.
        steps: Optimiser steps.
        batch_size: Cases per step.
        num_anchors: Anchors per branch in training.
        num_queries: Queries per branch in training.
        num_test_anchors: Anchors per branch after training; more of them show the model more of the case.
        num_geometry_points: Points of the geometry branch; 0 for a model without one.
        num_supernodes: Supernodes among them in training.
        num_test_supernodes: Supernodes among them after training.
        supernode_degree: Neighbours per supernode.
        sampling: How anchors and queries are drawn: `uniform`, or `weighted` by cell size.
        supernode_sampling: How supernodes are drawn: `uniform` or `farthest`.
        dim: Channels of the model.
        num_heads: Attention heads.
        physics_blocks: Kinds of the physics blocks.
        decoder_depth: Decoder blocks per branch.
        mlp_ratio: Hidden channels of an MLP over `dim`.
        divergence_free: Fields of three channels that are the curl of what the network predicts.
        position_range: Longest side of the data's box in model units, unless `statistics` are given.
        max_wavelength: Largest wavelength over 2 pi of the position embeddings, in model units.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay of the matrices.
        adam_b2: Decay of AdamW's second moment.
        warmup_fraction: Fraction of the steps in which the learning rate rises.
        clip_norm: Largest global norm of a gradient.
        checkpoint_every: Steps between checkpoints.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    data: str | None = None
    split: str | None = None
    statistics: str | None = None
    seed: int = 0
    steps: int = 4500
    batch_size: int = 2
    num_anchors: int = 96
    num_queries: int = 32
    num_test_anchors: int = 512
    num_geometry_points: int = 0
    num_supernodes: int = 0
    num_test_supernodes: int = 0
    supernode_degree: int = 16
    sampling: Literal["uniform", "weighted"] = "uniform"
    supernode_sampling: Literal["uniform", "farthest"] = "uniform"
    dim: int = 96
    num_heads: int = 3
    physics_blocks: tuple[str, ...] = ("joint",) * 4
    decoder_depth: int = 0
    mlp_ratio: int = 2
    divergence_free: tuple[str, ...] = ()
    position_range: float = 100.0
    max_wavelength: float = 100.0
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    adam_b2: float = 0.99
    warmup_fraction: float = 0.05
    clip_norm: float = 1.0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(physics_blocks=tuple(self.physics_blocks), divergence_free=tuple(self.divergence_free))
        for name, minimum in _MINIMA.items():
            check_count(name, getattr(self, name), minimum)
        for name in ("position_range", "max_wavelength", "learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name, known in (("sampling", ("uniform", "weighted")), ("supernode_sampling", ("uniform", "farthest"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("split", "statistics"):
            if self.data is None and getattr(self, name) is not None:
                raise ValueError(f"{name} needs data of your own, got {getattr(self, name)!r} without --data")
        _ = self.sampling_config  # checks its values

    @property
    def sampling_config(self) -> Sampling:
        """How many points of a case the model sees, and how they are drawn."""
        return Sampling(
            num_anchors=self.num_anchors,
            num_queries=self.num_queries,
            num_test_anchors=self.num_test_anchors,
            num_geometry_points=self.num_geometry_points,
            num_supernodes=self.num_supernodes,
            num_test_supernodes=self.num_test_supernodes,
            method=self.sampling,
            supernode_method=self.supernode_sampling,
        )


_MINIMA = {
    "seed": 0,
    "steps": 1,
    "batch_size": 1,
    "supernode_degree": 1,
    "dim": 1,
    "num_heads": 1,
    "decoder_depth": 0,
    "mlp_ratio": 1,
    "checkpoint_every": 1,
}


def model_config(settings: TrainSettings, fields: Mapping[str, Mapping[str, int]]) -> AbUptConfig:
    """Returns the configuration of the model to train on these fields.

    Raises:
        ValueError: A divergence-free field does not exist, or does not have three channels.
    """
    free = settings.divergence_free
    if unknown := sorted(set(free) - {name for names in fields.values() for name in names}):
        known = {branch: list(names) for branch, names in fields.items()}
        raise ValueError(f"divergence_free names the unknown fields {unknown!r}; the fields are {known!r}")
    return AbUptConfig(
        dim=settings.dim,
        num_heads=settings.num_heads,
        fields=fields,
        physics_blocks=settings.physics_blocks,
        decoder_depths=dict.fromkeys(fields, settings.decoder_depth),
        supernode_pooling=SupernodePoolingConfig(radius=None, k=settings.supernode_degree),
        mlp_ratio=settings.mlp_ratio,
        max_wavelength=settings.max_wavelength,
        init_weights="torch",
        vector_potentials={branch: tuple(name for name in names if name in free) for branch, names in fields.items()},
    )
