"""Published statistics of public data sets.

Positions in metres, velocity in m/s, vorticity in 1/s; pressure and wall shear stress for a density of 1.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.files.atomic import read_json_object

_MODEL_UNITS = 1000.0


def _box(low: float, high: float, fields: dict[str, dict[str, FieldScale]]) -> Normalizer:
    """Maps the same box on every axis to 0 … 1000."""
    return Normalizer(
        position_low=(low,) * 3,
        position_high=(high,) * 3,
        position_scale=_MODEL_UNITS / (high - low),
        fields=fields,
    )


STATISTICS: dict[str, Normalizer] = {
    "drivaerml-tutorial": _box(
        -40,
        80,
        {
            "surface": {
                "pressure": FieldScale(mean=(-229.772,), std=(269.345,)),
                "wallshearstress": FieldScale(
                    mean=(-1.20054, 1.49358e-3, -7.20107e-2), std=(2.07670, 1.35628, 1.11426)
                ),
            },
            "volume": {
                "totalpcoeff": FieldScale(mean=(0.171387,), std=(0.500826,)),
                "velocity": FieldScale(mean=(16.7909, -3.82238e-2, 0.407968), std=(16.4115, 8.63614, 6.64996)),
                "vorticity": FieldScale(
                    mean=(-1.47814e-2, 0.787642, 2.81023e-3), std=(5.45681, 5.77081, 5.46175), log_scale=True
                ),
            },
        },
    ),
    "ahmedml": _box(
        -4,
        6,
        {
            "surface": {
                "pressure": FieldScale(mean=(-0.100952,), std=(0.188242,)),
                "wallshearstress": FieldScale(
                    mean=(-1.529e-3, 7.83792e-9, -5.82453e-5), std=(1.17512e-3, 6.52266e-4, 7.13125e-4)
                ),
            },
            "volume": {
                "totalpcoeff": FieldScale(mean=(0.812013,), std=(0.367992,)),
                "velocity": FieldScale(mean=(0.874600, 1.42877e-5, 7.76145e-3), std=(0.300305, 0.114927, 0.124698)),
                "vorticity": FieldScale(
                    mean=(-1.45271e-4, 0.129314, 1.29501e-5), std=(1.11017, 1.96530, 1.77495), log_scale=True
                ),
            },
        },
    ),
    "shapenet-car": _box(
        -4.5,
        6,
        {
            "surface": {"pressure": FieldScale(mean=(-36.4098,), std=(48.6757,))},
            "volume": {
                "velocity": FieldScale(mean=(2.93915e-3, -2.30546e-2, 17.546032), std=(1.361689, 1.267649, 5.850353))
            },
        },
    ),
    "drivaernet": _box(
        -12.01,
        6.41,
        {
            "surface": {
                "pressure": FieldScale(mean=(-93.4098,), std=(120.787,)),
                "wallshearstress": FieldScale(
                    mean=(-0.671649, 3.63487e-2, -8.46379e-2), std=(0.819941, 0.451045, 0.781055)
                ),
            },
            "volume": {
                "pressure": FieldScale(mean=(-62.4053,), std=(94.2394,)),
                "velocity": FieldScale(mean=(21.8719, -0.237778, 0.673902), std=(12.1079, 3.97768, 3.90113)),
                "vorticity": FieldScale(
                    mean=(2.57623e-2, 0.258335, 0.429835), std=(3.00179, 3.65020, 3.33356), log_scale=True
                ),
            },
        },
    ),
}
STATISTICS["drivaerml-2026-04"] = dataclasses.replace(
    STATISTICS["drivaerml-tutorial"], position_scale=100 * STATISTICS["drivaerml-tutorial"].position_scale
)
"""By name, as `--statistics` takes it; the last with positions 0 … 100 000."""


def read_statistics(source: str) -> Normalizer:
    """Returns published statistics, or the normalizer of a run.

    Args:
        source: Name of published statistics, such as `drivaerml-tutorial`; or path of a run's `config.json`, or of JSON
            with the values of a `Normalizer` alone, as under `normalizer` there.

    Raises:
        FileNotFoundError: It is neither a name nor a file.
        ValueError: The file does not hold statistics.
    """
    if source in STATISTICS:
        return STATISTICS[source]
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; published statistics are {', '.join(STATISTICS)}")
    try:
        values = read_json_object(path)
        return Normalizer.from_dict(values.get("normalizer", values))
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not the statistics of a run: {error}") from None
