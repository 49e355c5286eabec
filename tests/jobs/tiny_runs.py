"""Runs that take a second or two: a small case, a smaller model."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.config import (
    AbUptConfig,
    FrozenMapping,
    OptimizerSettings,
    Sampling,
    SupernodePoolingConfig,
    TrainJob,
    TrainSettings,
)
from emmi_jax.data.load import branches_of
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.open import open_cases
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.train import Outcome, train
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import init_params
from emmi_jax.training.plan import default_settings

TINY: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "dense_fraction": 0.0,
    "num_anchors": 6,
    "num_queries": 4,
    "num_test_anchors": 8,
    "dim": 24,
    "num_heads": 2,
    "mlp_ratio": 1,
    "checkpoint_every": 2,
    "name": "adamw",
}
GEOMETRY: dict[str, Any] = {
    "num_geometry_points": 16,
    "num_supernodes": 4,
    "num_test_supernodes": 8,
    "supernode_pooling": {"radius": None, "k": 4},
    "geometry_depth": 0,
}
NO_GEOMETRY: dict[str, Any] = {
    "physics_blocks": ("cross",),
    "num_geometry_points": 0,
    "num_supernodes": 0,
    "num_test_supernodes": 0,
}
"""For data with a surface and a volume, where a test is not about the geometry branch."""
NONE: Mapping[str, Mapping[str, int]] = FrozenMapping({})
SECTIONS = {
    field.name: f"{section}."
    for section, config in (("sampling", Sampling), ("optimizer", OptimizerSettings), ("model", AbUptConfig))
    for field in dataclasses.fields(config)
}


def write_case(path: Path, num_points: int = 60) -> Path:
    """Writes a case of smooth fields."""
    position = np.random.default_rng(0).uniform(-1, 1, size=(num_points, 3))
    np.savez(path, position=position, pressure=np.sin(position[:, 0]), velocity=np.cos(position))
    return path


def tiny_settings(data: Path | None, **changes: Any) -> TrainSettings:
    """Settings of a run on one case, or on the ellipsoids with the whole model; changes need not name their section."""
    values = TINY | ({"physics_blocks": ("self",)} if data else {"physics_blocks": ("perceiver", "joint"), **GEOMETRY})
    changes = {SECTIONS.get(name, "") + name: value for name, value in (values | changes).items()}
    branches = () if data is None else branches_of(open_cases(str(data)))
    return default_settings(None if data is None else str(data), branches).updated(changes)


def run(settings: TrainSettings, path: Path, *, resume: bool = False, pictures: bool = False) -> tuple[Outcome, str]:
    """Trains, and returns the outcome and what was printed; pictures are a quarter of such a run."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr("emmi_jax.jobs.train.draw_pictures", lambda *args: [])
        outcome = train(settings, path, TrainJob(resume=resume), console=Console(file=printed, width=100))
    return outcome, printed.getvalue()


def untrained_surrogate(
    fields: Mapping[str, Mapping[str, int]], low: float, high: float, features: Mapping[str, Mapping[str, int]] = NONE
) -> Surrogate:
    """A surrogate with random weights, for data in the cube of these corners."""
    of_geometry = sum(features.get("geometry", {}).values()) or None
    config = AbUptConfig(
        dim=24,
        num_heads=2,
        fields=fields,
        physics_blocks=("perceiver", "cross" if len(fields) > 1 else "self"),
        decoder_depths={},
        supernode_pooling=SupernodePoolingConfig(radius=None, k=2, input_features_dim=of_geometry),
        feature_dims={branch: sum(names.values()) for branch, names in features.items() if branch in fields},
        init_weights="torch",
    )
    model = AnchoredBranchedUPT(config)
    scales, scales_of_features = (
        {
            branch: {name: FieldScale(mean=(0.1,) * c, std=(2.0,) * c) for name, c in names.items()}
            for branch, names in channels.items()
        }
        for channels in (fields, features)
    )
    normalizer = Normalizer.from_box([low] * 3, [high] * 3, position_range=100.0, fields=scales)
    normalizer = dataclasses.replace(normalizer, features=scales_of_features)
    sampling = Sampling(
        num_anchors=4,
        num_queries=0,
        num_test_anchors=6,
        num_geometry_points=8,
        num_supernodes=2,
        num_test_supernodes=4,
    )
    return Surrogate(model, init_params(model, seed=0), normalizer, sampling)
