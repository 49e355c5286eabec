"""The fields of mesh files: those that a `dataset.toml` or a `fields.json` names, or those of a published data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from emmi_jax.config.mesh_dataset import GEOMETRY_FILES, ForceTable, MeshDataset
from emmi_jax.files.atomic import JsonDict, parse_toml, read_json, read_toml
from emmi_jax.meshes.components import all_found
from emmi_jax.meshes.mesh import FieldSource

Sources: TypeAlias = dict[str, dict[str, FieldSource]]

DATASET_FILE, FIELDS_FILE = "dataset.toml", "fields.json"

_FOLDER = files("emmi_jax.data") / "mesh_datasets"


@cache
def published() -> Mapping[str, MeshDataset]:
    """Returns the data sets of `mesh_datasets/` by name; first DrivAerML, whose names are proposed for other data."""
    paths = {file.name.removesuffix(".toml"): file for file in _FOLDER.iterdir() if file.name.endswith(".toml")}
    names = sorted(paths, key=lambda name: (name != "drivaerml", name))
    return {name: MeshDataset.from_dict(parse_toml(paths[name].read_bytes())) for name in names}


@cache
def published_patterns() -> tuple[Mapping[str, str], ...]:
    """Returns the patterns of the meshes of published data sets, by branch; each once."""
    meshes = (dataset for dataset in published().values() if not dataset.is_of_tensors)
    patterns = (((branch, of.files) for branch, of in dataset.branches.items()) for dataset in meshes)
    return tuple(map(dict, dict.fromkeys(map(tuple, patterns))))


@cache
def published_geometry() -> tuple[str, ...]:
    """Returns the patterns of files of the geometry: those of published data sets first, then those of any."""
    known = (pattern for dataset in published().values() for pattern in dataset.geometry)
    return tuple(dict.fromkeys((*(p for p in known if p not in GEOMETRY_FILES), *GEOMETRY_FILES)))


@cache
def published_tables() -> tuple[ForceTable, ...]:
    """Returns the tables of forces of published data sets; each once."""
    return tuple(dict.fromkeys(dataset.forces for dataset in published().values() if dataset.forces is not None))


def dataset_file(path: Path) -> Path | None:
    """Returns the file that describes a case folder, in it or in the one above: `dataset.toml`, else `fields.json`."""
    candidates = (folder / name for folder in (path, path.parent) for name in (DATASET_FILE, FIELDS_FILE))
    return next((file for file in candidates if file.is_file()), None)


def read_dataset(path: Path) -> MeshDataset | None:
    """Returns the description in the `dataset.toml` of a case folder or of the one above; None if there is none.

    Raises:
        ValueError: It is not TOML of this form.
    """
    file = dataset_file(path)
    if file is None or file.name != DATASET_FILE:
        return None
    values = read_toml(file)
    try:
        return MeshDataset.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def published_name(branch: str, arrays: Collection[str]) -> str | None:
    """Returns the name of the published data set whose arrays a mesh of a branch has, if there is one."""
    for name in published():
        sources = published_sources(name)
        if branch in sources and all_found((s.array for s in sources[branch].values()), arrays) is not None:
            return name
    return None


@cache
def published_sources(name: str) -> Sources:
    """Returns the arrays by branch and field of a published data set."""
    return dataset_sources(published()[name], f"{name}.toml")


def read_sources(path: Path) -> Sources:
    """Reads the fields of a `fields.json` or a `dataset.toml`.

    Args:
        path: JSON such as `{"surface": {"pressure": "p", "shear": {"array": "tau", "scale": -1.0}}}`; a vector in
            components is a list of their arrays. Or TOML, see `MeshDataset`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON or TOML of this form.
    """
    if path.name == DATASET_FILE and (dataset := read_dataset(path.parent)) is not None:
        return dataset_sources(dataset, path)
    return parse_sources(read_json(path), path)


def dataset_sources(dataset: MeshDataset, path: Path | str) -> Sources:
    """Returns the arrays by branch and field that a data set names in the file `path`."""
    return parse_sources({branch: dict(of_branch.fields) for branch, of_branch in dataset.branches.items()}, path)


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
    return {branch: {name: _as_json(source) for name, source in fields.items()} for branch, fields in sources.items()}


def _source(path: Path | str, name: str, value: Any) -> FieldSource:
    given = value if isinstance(value, Mapping) else {"array": value}
    array, scale, unit = given.get("array"), given.get("scale", 1.0), given.get("unit")
    names = (array,) if isinstance(array, str) else tuple(array) if isinstance(array, list) else ()
    is_named = bool(names) and all(isinstance(x, str) for x in names) and len(set(names)) == len(names)
    is_scale = isinstance(scale, int | float) and bool(np.isfinite(scale)) and scale != 0
    if not is_named or not is_scale or not isinstance(unit, str | None) or not set(given) <= {"array", "scale", "unit"}:
        raise ValueError(
            f"{path}: field {name!r} must be an array's name, a list of those of its components, or its 'array' and "
            f"'scale', got {value!r}"
        )
    return FieldSource(array if isinstance(array, str) else names, float(scale), unit)


def _as_json(source: FieldSource) -> JsonDict:
    array = source.array if isinstance(source.array, str) else list(source.array)
    return {"array": array, "scale": source.scale} | ({} if source.unit is None else {"unit": source.unit})


DRIVAERML = published_sources("drivaerml")
