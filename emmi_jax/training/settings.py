"""The settings of a run turned into its model: with the fields, conditions and features of its data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax

from emmi_jax.config import AbUptConfig, TrainSettings
from emmi_jax.config.base import as_mapping
from emmi_jax.deploy.features import GEOMETRY


def model_config(
    settings: TrainSettings,
    fields: Mapping[str, Mapping[str, int]],
    condition_dim: int | None = None,
    features: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
) -> AbUptConfig:
    """Returns the configuration of the model to train on these fields, conditions and features, on the devices at hand.

    Raises:
        ValueError: A divergence-free or weighted field does not exist, or the model is impossible.
    """
    names = {branch: list(of_branch) for branch, of_branch in fields.items()}
    for what, asked, known in (
        ("divergence_free", settings.divergence_free, {name for of_branch in names.values() for name in of_branch}),
        (
            "loss_weights",
            settings.loss_weights,
            {f"{b}/{name}" for b, of_branch in names.items() for name in of_branch},
        ),
    ):
        if unknown := sorted(set(asked) - known):
            raise ValueError(f"{what} names the unknown fields {unknown!r}; the fields are {names!r}")
    options = dict(settings.model)
    pooling = as_mapping("supernode_pooling", options["supernode_pooling"])
    inputs = {part: sum(names.values()) for part, names in features.items()}
    of_geometry = {"input_features_dim": inputs.pop(GEOMETRY)} if GEOMETRY in inputs else {}
    options["supernode_pooling"] = {"max_wavelength": options["max_wavelength"], **pooling, **of_geometry}
    if options["dtype"] == "auto":
        options["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    free = settings.divergence_free
    potentials = {branch: tuple(name for name in of_branch if name in free) for branch, of_branch in names.items()}
    follows = {"fields": fields, "vector_potentials": potentials, "condition_dim": condition_dim}
    config = AbUptConfig.from_dict({**options, **follows, "feature_dims": inputs})
    if of_geometry and not config.has_geometry:
        raise ValueError(f"features name {GEOMETRY!r}, but the model has no geometry branch")
    if config.has_geometry != bool(settings.sampling.num_geometry_points):
        raise ValueError(
            f"perceiver blocks read the geometry points: got physics_blocks {list(config.physics_blocks)} "
            f"and num_geometry_points {settings.sampling.num_geometry_points}"
        )
    if settings.loss_weights and not any(
        settings.loss_weights.get(f"{branch}/{name}", 1.0) for branch, of_branch in names.items() for name in of_branch
    ):
        raise ValueError(f"loss_weights are zero for all fields, got {dict(settings.loss_weights)!r}")
    return config
