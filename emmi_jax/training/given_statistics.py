"""Scales of positions and fields that are not measured: published ones by name, or those of another run."""

from __future__ import annotations

import json
from pathlib import Path

from emmi_jax.cfd.normalization import Normalizer
from emmi_jax.convert import PRESETS


def read_statistics(source: str) -> Normalizer:
    """Returns scales.

    Args:
        source: Name of a published model, such as `drivaerml-tutorial`; or path of a run's `config.json`, or of the
            JSON values of a `Normalizer` alone, which are those under `normalizer` there.

    Raises:
        FileNotFoundError: It is neither a name nor a file.
        ValueError: The file does not hold scales.
    """
    if source in PRESETS:
        return Normalizer.from_dict(PRESETS[source].statistics)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; published statistics are {', '.join(PRESETS)}")
    try:
        values = json.loads(path.read_text())
        return Normalizer.from_dict(values.get("normalizer", values))
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not the statistics of a run: {error}") from None
