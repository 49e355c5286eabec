"""Published statistics of public data sets.

Positions in metres, velocity in m/s, vorticity in 1/s; pressure and wall shear stress for a density of 1.
"""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path

from emmi_jax.data.normalization import Normalizer
from emmi_jax.files.atomic import read_json_object

_FOLDER = files("emmi_jax.data") / "published_statistics"


def _published(name: str) -> Normalizer:
    return Normalizer.from_dict(json.loads((_FOLDER / f"{name}.json").read_text()))


STATISTICS = {name: _published(name) for name in ("drivaerml-tutorial", "ahmedml", "shapenet-car", "drivaernet")}
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
