"""Data sets of meshes as TOML files: which files and arrays hold which fields, and what lies beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emmi_jax.config.base import Config, as_mapping
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.config.setting import setting

GEOMETRY_FILES = ("*.stl", "*.obj", "*.ply")


@dataclass(frozen=True, kw_only=True)
class MeshBranch(Config):
    """A branch of a data set of meshes."""

    files: str = setting(dataclasses.MISSING, "Pattern of the name of its mesh in the folder of a case.")
    fields: Mapping[str, Any] = setting(
        dataclasses.MISSING,
        "The array of each field: a name, a list of those of the components, or a table of `array`, `scale` (a factor) "
        "and `unit` (that of the field).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(fields=as_mapping("fields", self.fields))


@dataclass(frozen=True, kw_only=True)
class ForceTable(Config):
    """A table, in the folder of each case, of the force coefficients that a solver wrote."""

    file: str = setting(dataclasses.MISSING, "Pattern of its name.")
    drag: str = setting("Cd", "Column of the drag coefficient.")
    lift: str = setting("Cl", "Column of the lift coefficient.")
    area_file: str | None = setting(None, "Pattern of the name of a table with the reference area in m2.")
    area: str = setting("aRef", "Column of the reference area there.")


@dataclass(frozen=True, kw_only=True)
class DatasetCard(Config):
    """Facts about a published data set, for its users.

    Raises:
        ValueError: A description of a file is no text.
    """

    title: str = setting(dataclasses.MISSING, "What it is, in a line.")
    source: str = setting(dataclasses.MISSING, "Where it is published.")
    license: str = setting(dataclasses.MISSING, "Its licence.")
    size: str = setting(dataclasses.MISSING, "Numbers of cases and bytes.")
    split: str = setting(dataclasses.MISSING, "The parts to train and test on.")
    files: Mapping[str, str] = setting(dataclasses.MISSING, "What is in which file, N being the number of a case.")
    layout: tuple[str, ...] = setting(dataclasses.MISSING, "Where the layout is documented, each with the date.")
    unchecked: str = setting(dataclasses.MISSING, "What was not compared with real files.")
    notes: tuple[str, ...] = setting((), "What its users should know.")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = as_mapping("files", self.files)
        if wrong := [name for name, text in given.items() if not isinstance(text, str)]:
            raise ValueError(f"files must be texts by file name, got {given[wrong[0]]!r} for {wrong[0]!r}")
        self._set(files=given)


@dataclass(frozen=True, kw_only=True)
class MeshDataset(Config):
    """A data set of meshes: a folder of cases, each a folder of files.

    Raises:
        ValueError: A key is unknown or missing, or a value is of another type.
    """

    branches: Mapping[str, MeshBranch] = setting(dataclasses.MISSING, "Files and fields by branch.")
    geometry: tuple[str, ...] = setting(
        GEOMETRY_FILES, "Patterns of the name of the geometry's surface; the first that a file of a case has."
    )
    split: str | None = setting(
        None, "A published split, or a file beside this one; by default split.json.", noun="a name"
    )
    statistics: str | None = setting(
        None, "Published statistics, or a file beside this one; by default they are measured.", noun="a name"
    )
    forces: ForceTable | None = None
    conditions: ConditionSource = setting(ConditionSource, "Where the conditions of its cases are.")
    about: DatasetCard | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (given := as_mapping("branches", self.branches)):
            raise ValueError("branches is empty, expected files and fields by branch")
        self._set(branches={branch: MeshBranch.from_dict(as_mapping(branch, value)) for branch, value in given.items()})

    @property
    def is_of_tensors(self) -> bool:
        """Whether positions and arrays are files with PyTorch tensors, not meshes."""
        return all(branch.files.endswith(".pt") for branch in self.branches.values())
