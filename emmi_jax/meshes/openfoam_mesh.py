"""The mesh of an OpenFOAM case as the solver finds it, and its fields in cells and on patches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.content import compact_polydata
from emmi_jax.meshes.foam_to_vtk import is_time
from emmi_jax.meshes.openfoam_cells import foam_grid
from emmi_jax.meshes.openfoam_entries import FoamDict
from emmi_jax.meshes.openfoam_files import FoamFile

MESH_FILES = ("points", "faces", "owner", "neighbour", "boundary")
_BETWEEN_PROCESSORS = "processor"


class Patch(NamedTuple):
    """A patch: its type, its groups, and which faces it has."""

    kind: str
    groups: tuple[str, ...]
    start: int
    num_faces: int


class PolyMesh(NamedTuple):
    """A mesh: points [V, 3], corners of all faces and where each starts, owner and neighbour cells, patches by name."""

    points: NDArray[np.float64]
    corners: NDArray[np.int64]
    offsets: NDArray[np.int64]
    owner: NDArray[np.int64]
    neighbour: NDArray[np.int64]
    patches: dict[str, Patch]

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return int(max(self.owner.max(initial=-1), self.neighbour.max(initial=-1))) + 1

    def faces_of(self, patch: Patch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns corners and offsets of the faces of a patch."""
        offsets = self.offsets[patch.start : patch.start + patch.num_faces + 1]
        return self.corners[offsets[0] : offsets[-1]], offsets - offsets[0]

    def cells(self) -> Any:
        """Returns the cells as a `pyvista.UnstructuredGrid`, in their order."""
        return foam_grid(self.points, self.corners, self.offsets, self.owner, self.neighbour, self.num_cells)

    def surface(self, patch: Patch) -> Any:
        """Returns the faces of a patch as `pyvista.PolyData`, with the points that they use."""
        return compact_polydata(self.points, *self.faces_of(patch))[0]


def has_mesh(root: Path) -> bool:
    """Returns whether a folder has a mesh, in `constant` or in a time."""
    return any((root / name / "polyMesh").is_dir() for name in instances(root, None))


def instances(root: Path, time: str | None) -> list[str]:
    """Returns the folders where a solver at this time, or at any, looks for files of the mesh, in its order."""
    names = [p.name for p in root.iterdir() if is_time(p.name) and p.is_dir()] if root.is_dir() else []
    until = np.inf if time is None else float(time)
    return [*sorted((name for name in names if float(name) <= until), key=float, reverse=True), "constant"]


def mesh_files(root: Path, time: str | None) -> dict[str, Path]:
    """Finds the files of the mesh at a time as the solver does.

    Faces, owner and neighbour are those of the latest time that has faces and is not after this one; boundary and
    points may be newer.

    Raises:
        ValueError: A file is missing.
    """
    places = instances(root, time) if time is not None else ["constant"]
    with_faces = next((name for name in places if existing(root / name / "polyMesh/faces")), "constant")
    newer = places[: places.index(with_faces) + 1]
    files = {}
    for file in MESH_FILES:
        where = newer if file in ("boundary", "points") else [with_faces]
        paths = (existing(root / name / "polyMesh" / file) for name in where)
        files[file] = next((path for path in paths if path is not None), None)
    if absent := [file for file, path in files.items() if path is None]:
        raise ValueError(f"{root / with_faces / 'polyMesh'}: no file {', '.join(absent)}")
    return {file: path for file, path in files.items() if path is not None}


def read_patches(file: Path) -> dict[str, Patch]:
    """Reads a file `boundary`; patches between processors are left out.

    Raises:
        ValueError: It is damaged.
    """
    patches = {}
    for name, entry in FoamFile(file).patches().items():
        if isinstance(entry, FoamDict) and not (kind := _word(file, name, entry, "type")).startswith(
            _BETWEEN_PROCESSORS
        ):
            groups = tuple(word for word in entry.tokens("inGroups") or () if isinstance(word, str))
            start, number = (int(_word(file, name, entry, key)) for key in ("startFace", "nFaces"))
            patches[name.strip('"')] = Patch(kind, groups, start, number)
    return patches


def read_neighbours(root: Path) -> set[int]:
    """Returns the numbers of the processors that a processor's mesh has patches to."""
    place = next((name for name in instances(root, None) if existing(root / name / "polyMesh/boundary")), None)
    file = None if place is None else existing(root / place / "polyMesh/boundary")
    entries = {} if file is None else FoamFile(file).patches()
    numbers = [entry.tokens("neighbProcNo") for entry in entries.values() if isinstance(entry, FoamDict)]
    return {int(tokens[0]) for tokens in numbers if tokens and str(tokens[0]).isdigit()}


def read_poly_mesh(files: dict[str, Path]) -> PolyMesh:
    """Reads a mesh; points are in double precision.

    Raises:
        ValueError: A file is damaged, or they do not fit one another.
    """
    points = FoamFile(files["points"]).vectors()
    corners, offsets = FoamFile(files["faces"]).faces()
    owner, neighbour = (FoamFile(files[name]).labels() for name in ("owner", "neighbour"))
    patches, num_faces = read_patches(files["boundary"]), len(offsets) - 1
    if len(owner) == num_faces and len(neighbour) == num_faces:  # boundary faces have the neighbour -1
        neighbour = neighbour[neighbour >= 0]
    for name, values, least, end in (
        ("faces", corners, 0, len(points)),
        ("owner", owner, 0, num_faces),
        ("neighbour", neighbour, 0, num_faces),
    ):
        if len(values) and (values.min() < least or values.max() >= end):
            raise ValueError(f"{files[name]}: damaged: a number is outside {least} to {end - 1}")
    if len(owner) != num_faces or len(neighbour) > num_faces:
        raise ValueError(f"{files['owner']}: damaged: {len(owner)} owners of {num_faces} faces")
    for name, patch in patches.items():
        if patch.num_faces and not len(neighbour) <= patch.start <= patch.start + patch.num_faces <= num_faces:
            raise ValueError(f"{files['boundary']}: damaged: the faces of {name!r} are not among the {num_faces}")
    return PolyMesh(points, corners, offsets, owner, neighbour, patches)


def _word(file: Path, name: str, entry: FoamDict, key: str) -> str:
    tokens: Sequence[Any] = entry.tokens(key) or ()
    if len(tokens) != 1 or (key != "type" and not re.fullmatch(r"-?\d+", str(tokens[0]))):
        raise ValueError(f"{file}: damaged: {key} of the patch {name!r} is {' '.join(map(str, tokens)) or 'missing'}")
    return str(tokens[0])


def existing(path: Path) -> Path | None:
    """Returns a file, compressed or not; None if there is neither."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)
