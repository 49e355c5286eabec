"""The mesh files of a case folder: which of them are read, and which are left out."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from emmi_jax.files.atomic import check_space
from emmi_jax.meshes.legacy import legacy_array_names
from emmi_jax.meshes.vtk import array_names

SUFFIXES = (".vtp", ".vtu", ".vtk")
MESHES = {"surface": "boundary", "volume": "volume"}
"""How the names of the meshes begin."""

_GEOMETRY = (".stl", ".obj", ".ply")
_PART = re.compile(r"(.*)\.(\d+|\w+)\.part", re.IGNORECASE)
_PIECE, _COUNT = re.compile(rb"<Piece [^>]*>"), re.compile(rb'NumberOf(\w+)="(\d+)"')
_HEAD_BYTES = 1 << 14
_DATA = re.compile(
    r".*\.(stl|obj|ply|vt[a-z]|vt[a-z]b|pvt[a-z]|pvd|vtkhdf|h5|hdf5?|nc|cgns|msh|case|plt|szplt|dat|pt|npy|npz|part)",
    re.IGNORECASE,
)


def mesh_files(path: Path, branch: str) -> list[Path]:
    """Returns the mesh of a branch, or its parts in their order: `volume_1.vtu.00.part`, `volume_1.vtu.01.part`.

    The name begins with `boundary` or `volume`; the case of its letters does not matter.
    """
    if not path.is_dir() or any(path.glob("internal.vt[uk]")):  # output of foamToVTK
        return []
    named = sorted(p for p in path.iterdir() if p.name.lower().startswith(MESHES[branch]) and p.is_file())
    whole = [p for p in named if p.suffix.lower() in SUFFIXES]
    return whole or [p for p in named if (part := _PART.fullmatch(p.name)) and part[1].lower().endswith(SUFFIXES)]


def geometry_mesh_file(path: Path) -> Path | None:
    """Returns the surface of the geometry: the `.stl` file, or else the `.obj` or the `.ply` file.

    Raises:
        ValueError: There are several of the same kind.
    """
    for suffix in _GEOMETRY:
        found = (p for p in path.iterdir() if p.suffix.lower() == suffix and p.is_file())
        if file := only_file(path, found):
            return file
    return None


def num_surface_rows(path: Path) -> int | None:
    """Returns how many points or cells the surface of a case has at least, by the header of its file.

    None if a file of the geometry has points enough, or the header does not tell.
    """
    if not (files := mesh_files(path, "surface")) or geometry_mesh_file(path) is not None:
        return None
    with files[0].open("rb") as file:
        piece = _PIECE.search(file.read(_HEAD_BYTES))
    counts = {} if piece is None else {name: int(number) for name, number in _COUNT.findall(piece[0])}
    num_points, num_cells = counts.pop(b"Points", 0), sum(counts.values())
    return min(num_points, num_cells or num_points) or None


def unread_files(path: Path, read: Collection[Path]) -> list[str]:
    """Returns the names of the files with meshes or arrays in a case folder that are not among those that are read."""
    known = {file.name for file in read}
    return sorted(p.name for p in path.iterdir() if p.name not in known and _DATA.fullmatch(p.name) and p.is_file())


def other_kinds(path: Path) -> list[str]:
    """Returns the names of meshes that would be those of a branch if their kind were read, here or a folder deeper."""
    found = (p for pattern in ("*", "*/*") for p in path.glob(pattern) if p.is_file())
    stems = tuple(MESHES.values())
    return sorted(
        p.relative_to(path).as_posix()
        for p in found
        if p.name.lower().startswith(stems) and p.suffix.lower() not in SUFFIXES and _DATA.fullmatch(p.name)
    )


def all_arrays(file: Path) -> set[str]:
    """Returns the names of the arrays of a mesh file."""
    names = legacy_array_names(file) if file.suffix.lower() == ".vtk" else array_names(file)
    return names.cells | names.points


def check_parts(path: Path, files: list[Path]) -> None:
    """Refuses parts that are not numbered from 00 on without a gap."""
    numbers = [int(number) if (number := file.name.split(".")[-2]).isdigit() else -1 for file in files]
    if numbers != list(range(len(files))):
        raise ValueError(f"{path}: expected parts from 00 on without a gap, found {', '.join(f.name for f in files)}")


@contextmanager
def joined(path: Path, files: list[Path]) -> Iterator[Path]:
    """Yields the file of a mesh; parts are joined in a temporary one, and messages name the first of them."""
    if files[0].suffix.lower() != ".part":
        if (file := only_file(path, files)) is not None:
            yield file
        return
    check_parts(path, files)
    with tempfile.TemporaryDirectory() as folder:
        check_space(Path(folder), sum(file.stat().st_size for file in files))
        whole = Path(folder, files[0].name.rsplit(".", 2)[0])
        with whole.open("wb") as target:
            for file in files:
                with file.open("rb") as source:
                    shutil.copyfileobj(source, target)
        try:
            yield whole
        except ValueError as error:
            raise ValueError(str(error).replace(str(whole), str(path / whole.name))) from None


def only_file(path: Path, files: Collection[Path] | Iterator[Path]) -> Path | None:
    """Returns the only file, if there is one.

    Raises:
        ValueError: There are several.
    """
    found = sorted(files)
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path}: a case has one such file, found {names}: join them to one, or move the others away")
    return found[0] if found else None
