"""The JSON files of a store, and the names of its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emmi_jax.data.cases import BranchShape
from emmi_jax.data.conditions import Conditions, parse_stored_conditions
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.statistics import DataMoments
from emmi_jax.files.atomic import CHECKSUM, JsonDict, unsealed
from emmi_jax.files.zarr import ArrayFolder, Shape
from emmi_jax.meshes.cells import POSITIONS

STORE_FILE, CASE_FILE, SPLIT_FILE = "store.json", "case.json", "split.json"
DTYPES = ("float32", "float16")
GEOMETRY = "geometry"

VERSION = 1


def is_store(location: str) -> bool:
    """Returns whether this is a URL, or a folder with a `store.json`."""
    return "://" in location or Path(location, STORE_FILE).is_file()


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """Description of a case in a store; the content of its `case.json`.

    Args:
        shapes: Points and fields by branch.
        with_cell_sizes: The branches with cell sizes.
        with_area_vectors: The branches with area vectors.
        num_geometry_points: Points of the geometry; 0 for none.
        moments: Statistics of the case, before any rounding.
        source: Fingerprint of the files that it was made of.
        forces: What a solver wrote beside the case.
        side: See `Case`.
        zero_chunks: Which chunks of an array are zeros, by its name: another writer of zarr may leave them out, while
            any other that is missing is lost.
        conditions: The conditions of the case.
    """

    shapes: Mapping[str, BranchShape]
    with_cell_sizes: Sequence[str]
    with_area_vectors: Sequence[str]
    num_geometry_points: int
    moments: DataMoments
    source: str
    forces: KnownForces | None
    side: str = ""
    zero_chunks: Mapping[str, Sequence[int]] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=dict)

    def to_dict(self) -> JsonDict:
        """Returns the values as JSON has them."""
        return {
            "version": VERSION,
            "branches": {
                branch: {"num_points": shape.num_points, "fields": dict(shape.fields)}
                for branch, shape in self.shapes.items()
            },
            "with_cell_sizes": list(self.with_cell_sizes),
            "with_area_vectors": list(self.with_area_vectors),
            "num_geometry_points": self.num_geometry_points,
            "statistics": self.moments.to_dict(),
            "source": self.source,
            "forces": None if self.forces is None else self.forces._asdict(),
            "side": self.side,
            "zero_chunks": {name: list(chunks) for name, chunks in self.zero_chunks.items()},
            "conditions": {name: condition._asdict() for name, condition in self.conditions.items()},
        }

    @classmethod
    def from_dict(cls, values: Any) -> StoredCase:
        """Inverts `to_dict`.

        Raises:
            ValueError: The values are of another form.
        """
        match values:
            case {
                "version": 1,
                "branches": dict(branches),
                "with_cell_sizes": list(with_cell_sizes),
                "with_area_vectors": list(with_area_vectors),
                "num_geometry_points": int(num_geometry_points),
                "statistics": statistics,
                "source": str(source),
                "forces": forces,
                "side": str(side),
                "zero_chunks": dict(zero_chunks),
                **others,
            } if (
                branches
                and all(isinstance(chunks, list) for chunks in zero_chunks.values())
                and num_geometry_points >= 0
                and set(map(str, [*with_cell_sizes, *with_area_vectors])) <= set(branches)
            ):
                return cls(
                    shapes={branch: _branch_shape(shape) for branch, shape in branches.items()},
                    with_cell_sizes=with_cell_sizes,
                    with_area_vectors=with_area_vectors,
                    num_geometry_points=num_geometry_points,
                    moments=DataMoments.from_dict(statistics),
                    source=source,
                    forces=None if forces is None else KnownForces.from_dict(forces),
                    side=side,
                    zero_chunks=zero_chunks,
                    conditions=parse_stored_conditions(others.get("conditions", {})),
                )
        raise ValueError(f"expected branches with their numbers of points, got {values!r:.80}")

    def arrays(self, dtype: str) -> dict[str, tuple[Shape, str]]:
        """Returns shape and type of each array of the case, by its name."""
        layout: dict[str, tuple[Shape, str]] = {}
        for branch, (num_points, fields) in self.shapes.items():
            layout[position_array(branch)] = (num_points, 3), "float32"
            layout |= {field_array(branch, name): ((num_points, channels), dtype) for name, channels in fields.items()}
            if branch in self.with_cell_sizes:
                layout[cell_size_array(branch)] = (num_points,), "float32"
            if branch in self.with_area_vectors:
                layout[area_vector_array(branch)] = (num_points, 3), "float32"
        if self.num_geometry_points:
            layout[GEOMETRY] = (self.num_geometry_points, 3), "float32"
        return layout


def read_store_index(folder: ArrayFolder) -> JsonDict:
    """Reads `store.json`.

    Raises:
        ValueError: There is none, it is of another kind or version, or its positions were computed in another way.
    """
    values = _read(folder, STORE_FILE, "prepare the cases again into another folder")
    match values:
        case None:
            raise ValueError(f"{folder.location}: no store: it has no {STORE_FILE}")
        case {"version": 1, "dtype": str(dtype), "cases": [*names], "sources": dict(), **others} if (
            names and dtype in DTYPES and all(map(_is_name, names)) and len(set(names)) == len(names)
        ):
            if others.get("positions") != POSITIONS:
                raise ValueError(
                    f"{folder.location}: its positions were computed by {others.get('positions', 'VTK')}, now they are "
                    f"by {POSITIONS}: prepare the cases again into another folder"
                )
            return dict(values)
    raise ValueError(f"{folder.location}/{STORE_FILE}: not the list of cases of a store: {values!r:.80}")


def read_case(folder: ArrayFolder, dtype: str, name: str) -> StoredCase | None:
    """Reads the `case.json` of a case and checks the sizes of its files; None if the case is not finished.

    Raises:
        ValueError: It is of another kind, or a file is missing or truncated.
    """
    key = f"{name}/{CASE_FILE}"
    values = _read(folder, key, "prepare the cases again")
    if values is None:
        return None
    try:
        case = StoredCase.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{folder.location}/{key}: not a case of a store: {error}") from None
    for array, (shape, of_array) in case.arrays(dtype).items():
        folder.check_size(f"{name}/{array}", shape, of_array, case.zero_chunks.get(array, ()))
    return case


def _read(folder: ArrayFolder, key: str, advice: str) -> Any:
    """Reads JSON of a store, and compares its checksum; stores from before there were any have none."""
    values = folder.read_json(key)
    try:
        return unsealed(values) if isinstance(values, dict) and CHECKSUM in values else values
    except ValueError as error:
        raise ValueError(f"{folder.location}/{key}: {error}: {advice}") from None


def _branch_shape(values: Any) -> BranchShape:
    match values:
        case {"num_points": int(num_points), "fields": dict(fields)} if num_points > 0 and all(
            type(channels) is int and channels > 0 for channels in fields.values()
        ):
            return BranchShape(num_points, fields)
    raise ValueError(f"expected a number of points and fields, got {values!r:.80}")


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and not {"", ".", ".."} & set(name.split("/"))


def position_array(branch: str) -> str:
    """Returns the name of the positions [N, 3] of a branch."""
    return f"{branch}/position"


def cell_size_array(branch: str) -> str:
    """Returns the name of the cell sizes [N] of a branch."""
    return f"{branch}/cell_size"


def area_vector_array(branch: str) -> str:
    """Returns the name of the area vectors [N, 3] of a branch."""
    return f"{branch}/area_vector"


def field_array(branch: str, name: str) -> str:
    """Returns the name of a field [N, F] of a branch."""
    return f"{branch}/fields/{name}"
