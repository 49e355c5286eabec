"""Published models by name: configuration, normalizer, sampling, and the arrays that hold their fields."""

from __future__ import annotations

from typing import Any, NamedTuple

from emmi_jax.config import AbUptConfig, SupernodePoolingConfig
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.data.sampling import Sampling


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


# Positions in metres, velocity in m/s, vorticity in 1/s; pressure and wall shear stress for a density of 1.
_DRIVAERML = Normalizer(
    position_low=(-40.0,) * 3,
    position_high=(80.0,) * 3,
    position_scale=1000 / 120,
    fields={
        "surface": {
            "pressure": FieldScale(mean=(-229.772,), std=(269.345,)),
            "wallshearstress": FieldScale(mean=(-1.20054, 1.49358e-3, -7.20107e-2), std=(2.07670, 1.35628, 1.11426)),
        },
        "volume": {
            "totalpcoeff": FieldScale(mean=(0.171387,), std=(0.500826,)),
            "velocity": FieldScale(mean=(16.7909, -3.82238e-2, 0.407968), std=(16.4115, 8.63614, 6.64996)),
            "vorticity": FieldScale(
                mean=(-1.47814e-2, 0.787642, 2.81023e-3), std=(5.45681, 5.77081, 5.46175), log_scale=True
            ),
        },
    },
)

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
        _DRIVAERML,
        Sampling(
            num_anchors=16_384,
            num_queries=0,
            num_test_anchors=16_384,
            num_geometry_points=65_536,
            num_supernodes=16_384,
            num_test_supernodes=16_384,
        ),
        {
            "surface": {"pressure": "pMeanTrim", "wallshearstress": "wallShearStressMeanTrim"},
            "volume": {"totalpcoeff": "CptMeanTrim", "velocity": "UMeanTrim"},
        },
    ),
}
