"""Published models by name: configuration, normalizer, sampling, and the arrays that hold their fields."""

from __future__ import annotations

from typing import Any, NamedTuple

from emmi_jax.config import AbUptConfig, Sampling, SupernodePoolingConfig
from emmi_jax.data.mesh_dataset import published
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.published import STATISTICS


class Preset(NamedTuple):
    """A published model.

    Args:
        config: Its configuration.
        normalizer: How its inputs and outputs are scaled.
        sampling: How many points of a case it sees.
        sources: The arrays of its data set that hold the fields, by branch and field, as `fields.json` has them.
    """

    config: AbUptConfig
    normalizer: Normalizer
    sampling: Sampling
    sources: dict[str, dict[str, Any]]


# Source: Alkin et al. 2025, "AB-UPT" (arXiv 2502.09692), the DrivAerML model.
PRESETS: dict[str, Preset] = {
    "drivaerml-tutorial": Preset(
        AbUptConfig(
            dim=192,
            num_heads=3,
            fields={
                "surface": {"pressure": 1, "wallshearstress": 3},
                "volume": {"totalpcoeff": 1, "velocity": 3, "vorticity": 3},
            },
            physics_blocks=("perceiver", "self", "cross", "self", "cross", "self"),
            decoder_depths={"surface": 6, "volume": 6},
            geometry_depth=1,
            supernode_pooling=SupernodePoolingConfig(radius=0.25, max_degree=32, mode="relpos"),
        ),
        STATISTICS["drivaerml-tutorial"],
        Sampling(
            num_anchors=16_384,
            num_queries=0,
            num_test_anchors=16_384,
            num_geometry_points=65_536,
            num_supernodes=16_384,
            num_test_supernodes=16_384,
        ),
        {branch: dict(of.fields) for branch, of in published()["drivaerml"].branches.items()},
    ),
}
