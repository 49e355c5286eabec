"""The reader of a layout of case folders."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.case_split import SPLIT_FILE
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.known_forces import KnownForces, read_known_forces
from emmi_jax.data.mesh_dataset import DATASET_FILE, DRIVAERML, FIELDS_FILE, Sources, dataset_file, read_sources
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.files.atomic import read_json
from emmi_jax.meshes.mesh import Location, Mesh, read_mesh
from emmi_jax.meshes.surfaces import surface_triangles
from emmi_jax.points import Array

NUM_GEOMETRY_POINTS = 65_536
"""Points drawn on the triangles of the geometry."""


class Reader(ABC):
    """Reads the case folders of one layout; a path is that of a case, unless it is said to be that of a data set.

    Args:
        selection: The parts and the time to read, where there is a choice.
    """

    location: ClassVar[Location] = "points"
    """Place of the positions of `read_meshes`."""

    def __init__(self, selection: FoamSelection = DEFAULT_SELECTION) -> None:
        self.selection = selection

    @property
    def selected(self) -> str:
        """The part of a case that is read, where it is no default; a part of fingerprints."""
        return repr(self.selection) if self.selection != DEFAULT_SELECTION else ""

    @abstractmethod
    def owns(self, path: Path) -> bool:
        """Returns whether a folder is of this layout, usable or not."""

    @abstractmethod
    def branches(self, path: Path) -> tuple[str, ...]:
        """Returns the branches that a case has positions of."""

    @abstractmethod
    def files(self, path: Path) -> list[Path]:
        """Returns the files that `read` reads, sorted."""

    def input_files(self, path: Path, inputs: Mapping[str, Sequence[str]]) -> list[Path]:
        """Returns the files of further arrays that are not among `files`."""
        return []

    @abstractmethod
    def read(self, path: Path, options: ReadOptions) -> Case:
        """Reads a case; fields are [N, F], float32 or float64 as in the files.

        Raises:
            FileNotFoundError: There is no such folder, or a file of a branch is missing.
            ValueError: The folder holds no case or several, or a file is unusable; or cell sizes are needed but there
                are none.
        """

    def names(self, root: Path) -> list[str]:
        """Returns the names of the cases of a data set that has no folder per case; none of another one."""
        return []

    def sources(self, path: Path, default: Sources | None = None) -> Sources:
        """Returns the arrays that hold the fields of a case: those that a file names, or the default, or known ones."""
        if (file := dataset_file(path)) is not None:
            return read_sources(file)
        return self.known_sources(path) if default is None else default

    def known_sources(self, path: Path) -> Sources:
        """Returns the arrays that hold the fields of a case, by their names."""
        return DRIVAERML

    def conditions(self, path: Path) -> ConditionSource | None:
        """Returns where the published data set of a case has its conditions; None if it is of no such set."""
        return None

    def problem(self, path: Path, sources: Sources | None) -> str | None:
        """Says why a case cannot be read, as far as headers of its files tell; None if nothing is wrong."""
        return None

    def left_out(self, path: Path, sources: Sources, *, with_arrays: bool = True) -> list[str]:
        """Returns what a case has and `read` leaves out, one line each: files, and arrays of meshes."""
        return unread_files(path, self.files(path))

    def read_meshes(self, path: Path) -> dict[str, Mesh]:
        """Reads the meshes of a case with all arrays, by branch; perhaps `geometry` too. None for another layout."""
        return {}

    def has_choice(self, path: Path) -> bool:
        """Returns whether a case has parts or times to choose from."""
        return False

    def describe(self, path: Path) -> list[str]:
        """Says what is read of a case, where there is a choice."""
        return []

    def num_surface_rows(self, path: Path) -> int | None:
        """Returns how many points the geometry of a case has at least, if that is few and a header tells."""
        return None

    def forces(self, path: Path) -> KnownForces | None:
        """Returns the forces that a solver wrote beside a case, if it did."""
        return read_known_forces(path)

    def split(self, root: Path) -> tuple[Any, Path | Mapping[str, Path]] | None:
        """Returns the split beside a data set as a split file has it, and the file, or the one of each part."""
        file = root / SPLIT_FILE
        return (read_json(file), file) if file.is_file() else None


_DATA = re.compile(
    r".*\.(stl|obj|ply|vt[a-z]|vt[a-z]b|pvt[a-z]|pvd|vtkhdf|h5|hdf5?|nc|cgns|msh|case|plt|szplt|dat|pt|npy|npz|part)"
    r"(\.(gz|bz2|xz|zst|zip))?",
    re.IGNORECASE,
)


def is_data_name(name: str) -> bool:
    """Returns whether a file of this name may hold meshes or arrays."""
    return _DATA.fullmatch(name) is not None


def unread_files(path: Path, read: list[Path]) -> list[str]:
    """Returns what a case folder has of meshes or arrays beside the files that are read: files, and folders of them."""
    known = {file.name for file in read}
    entries = sorted(p for p in path.iterdir() if p.name not in known)
    lines = [p.name for p in entries if p.is_file() and is_data_name(p.name)]
    for folder in (p for p in entries if p.is_dir()):
        if number := sum(1 for p in folder.iterdir() if p.is_file() and is_data_name(p.name) and p not in read):
            lines.append(f"{folder.name}/: {number:,} {'file' if number == 1 else 'files'}")
    return lines


def describing_files(path: Path) -> list[Path]:
    """Returns the files that describe a case folder, in it and in the one above."""
    candidates = (folder / name for folder in (path, path.parent) for name in (FIELDS_FILE, DATASET_FILE))
    return [file for file in candidates if file.is_file()]


def read_geometry(file: Path) -> tuple[Array, list[str]]:
    """Returns points on a surface [P, 3], uniform in area, and what was left out of its file."""
    mesh = read_mesh(file, ())
    left_out = [f"{file.name}: {line}" for line in mesh.left_out]
    return sample_triangles(0, surface_triangles(mesh), NUM_GEOMETRY_POINTS), left_out
