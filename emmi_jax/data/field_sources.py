"""Which arrays of mesh files hold the fields: those of a `fields.json`, or the names of a published data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from emmi_jax.files.atomic import JsonDict, read_json
from emmi_jax.meshes.components import ArrayName, all_found
from emmi_jax.meshes.mesh import FieldSource

Sources: TypeAlias = dict[str, dict[str, FieldSource]]

FIELDS_FILE = "fields.json"

DRIVAERML: Sources = {
    "surface": {"pressure": FieldSource("pMeanTrim"), "wallshearstress": FieldSource("wallShearStressMeanTrim")},
    "volume": {"totalpcoeff": FieldSource("CptMeanTrim"), "velocity": FieldSource("UMeanTrim")},
}
AHMEDML: Sources = {
    "surface": {"pressure": FieldSource("pMean"), "wallshearstress": FieldSource("wallShearStressMean")},
    "volume": {
        "totalpcoeff": FieldSource("total(p)_coeffMean"),
        "velocity": FieldSource("UMean"),
        "vorticity": FieldSource("vorticityMean"),
    },
}


def published_sources(branch: str, arrays: Collection[str]) -> Sources:
    """Returns the sources of the published data set whose arrays a mesh of a branch has; else those of DrivAerML."""
    for sources in (DRIVAERML, AHMEDML):
        if all_found((source.array for source in sources[branch].values()), arrays) is not None:
            return sources
    return DRIVAERML


def read_sources(path: Path) -> Sources:
    """Reads a `fields.json`.

    Args:
        path: JSON such as `{"surface": {"pressure": "p", "shear": {"array": "tau", "scale": -1.0}}}`; a vector in
            components is a list of their arrays.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON of this form.
    """
    return parse_sources(read_json(path), path)


def parse_sources(branches: Any, path: Path | str) -> Sources:
    """Returns the arrays by branch and field that the content of a `fields.json` names; see `read_sources`."""
    if not isinstance(branches, Mapping) or not all(isinstance(fields, Mapping) for fields in branches.values()):
        raise ValueError(
            f"{path}: expected fields by branch, as {{'surface': {{'pressure': 'p'}}}}, got {branches!r:.80}"
        )
    return {
        branch: {name: _source(path, name, value) for name, value in fields.items()}
        for branch, fields in branches.items()
    }


def sources_to_json(sources: Sources) -> JsonDict:
    """Inverts `parse_sources`."""
    return {
        branch: {name: {"array": _as_json(source.array), "scale": source.scale} for name, source in fields.items()}
        for branch, fields in sources.items()
    }


def _source(path: Path | str, name: str, value: Any) -> FieldSource:
    given = value if isinstance(value, Mapping) else {"array": value}
    array, scale = given.get("array"), given.get("scale", 1.0)
    names = (array,) if isinstance(array, str) else tuple(array) if isinstance(array, list) else ()
    is_named = bool(names) and all(isinstance(x, str) for x in names) and len(set(names)) == len(names)
    is_scale = isinstance(scale, int | float) and bool(np.isfinite(scale)) and scale != 0
    if not is_named or not is_scale or not set(given) <= {"array", "scale"}:
        raise ValueError(
            f"{path}: field {name!r} must be an array's name, a list of those of its components, or its 'array' and "
            f"'scale', got {value!r}"
        )
    return FieldSource(array if isinstance(array, str) else names, float(scale))


def _as_json(array: ArrayName) -> Any:
    return array if isinstance(array, str) else list(array)
