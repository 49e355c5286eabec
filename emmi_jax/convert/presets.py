"""Published models by name: their configurations and the statistics that their fields are normalised with."""

from __future__ import annotations

from typing import Any, NamedTuple

from emmi_jax.config import AbUptConfig, SupernodePoolingConfig


class Preset(NamedTuple):
    """A published model.

    Args:
        config: Its configuration.
        statistics: How its inputs and outputs are normalised, as the JSON values of a `Normalizer`.
    """

    config: AbUptConfig
    statistics: dict[str, Any]


# Positions in metres, velocity in m/s, vorticity in 1/s; pressure and wall shear stress for a density of 1.
_DRIVAERML_STATISTICS: dict[str, Any] = {
    "position_low": [-40.0, -40.0, -40.0],
    "position_high": [80.0, 80.0, 80.0],
    "position_scale": 1000 / 120,
    "fields": {
        "surface": {
            "pressure": {"mean": [-229.772], "std": [269.345], "log_scale": False},
            "wallshearstress": {
                "mean": [-1.20054, 1.49358e-3, -7.20107e-2],
                "std": [2.07670, 1.35628, 1.11426],
                "log_scale": False,
            },
        },
        "volume": {
            "totalpcoeff": {"mean": [0.171387], "std": [0.500826], "log_scale": False},
            "velocity": {
                "mean": [16.7909, -3.82238e-2, 0.407968],
                "std": [16.4115, 8.63614, 6.64996],
                "log_scale": False,
            },
            "vorticity": {
                "mean": [-1.47814e-2, 0.787642, 2.81023e-3],
                "std": [5.45681, 5.77081, 5.46175],
                "log_scale": True,
            },
        },
    },
}

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
        _DRIVAERML_STATISTICS,
    ),
}
