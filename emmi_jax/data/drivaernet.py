"""Raw cases of DrivAerNet++, which has a folder for each kind of file; a case is named by its design."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from emmi_jax.files.atomic import JsonDict
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.points import PointSet

PRESSURE, SHEAR, VOLUME = "PressureVTK", "WallShearStressVTK_Updated", "CFD"

_SUFFIXES = (".vtk", ".vtp", ".vtu")
_ID_FILES = {"train": "train_design_ids.txt", "validation": "val_design_ids.txt", "test": "test_design_ids.txt"}
_SAME_POINT = 1e-6  # of the length of the car


def is_drivaernet(path: Path) -> bool:
    """Returns whether this is the folder of the whole data set."""
    return (path / PRESSURE).is_dir()


def design_names(path: Path) -> list[str]:
    """Returns the names of all designs with a pressure."""
    return sorted(_files(path, PRESSURE))


def design_files(path: Path, design: str) -> dict[str, Path]:
    """Returns the files of a design by the folder that they come from; parts of that folder are looked through."""
    return {kind: files[design] for kind in (PRESSURE, SHEAR, VOLUME) if design in (files := _files(path, kind))}


def design_branches(path: Path, design: str) -> tuple[str, ...]:
    """Returns the branches of a design."""
    files = design_files(path, design)
    return ("surface",) * (PRESSURE in files) + ("volume",) * (VOLUME in files)


def design_split(path: Path) -> JsonDict | None:
    """Returns the published split, as a split file has it; None if the lists of designs are not there."""
    lists = {part: path / name for part, name in _ID_FILES.items()}
    if not all(file.is_file() for file in lists.values()):
        return None
    return {part: file.read_text().split() for part, file in lists.items()}


def read_design(path: Path, design: str) -> dict[str, PointSet]:
    """Reads a design.

    Args:
        path: The folder of the data set.
        design: The name of the design.

    Returns:
        The branch `surface` with `pressure` and `wallshearstress`; `volume` with `velocity` and `pressure`, if it is
        there.

    Raises:
        FileNotFoundError: A file of the surface is missing.
        ValueError: A file is damaged, or the points of both files of the surface differ.
    """
    files = design_files(path, design)
    for kind in (PRESSURE, SHEAR):
        if kind not in files:
            raise FileNotFoundError(f"{path / kind}: no file of the design {design}")
    pressure = read_mesh(files[PRESSURE]).points({"pressure": FieldSource("p")})
    shear = read_mesh(files[SHEAR]).points({"wallshearstress": FieldSource("wallShearStress")})
    order = _matching_rows(files[SHEAR], shear, pressure)
    surface = PointSet(pressure.position, pressure.fields | {"wallshearstress": shear.fields["wallshearstress"][order]})
    if VOLUME not in files:
        return {"surface": surface}
    sources = {"velocity": FieldSource("U"), "pressure": FieldSource("p")}
    return {"surface": surface, "volume": read_mesh(files[VOLUME], {"U", "p"}).points(sources)}


def _matching_rows(file: Path, points: PointSet, wanted: PointSet) -> np.ndarray:
    """Returns the rows of points that lie where the wanted ones do; the order differs between the files."""
    from scipy.spatial import cKDTree

    distance, rows = cKDTree(points.position).query(wanted.position)
    largest = _SAME_POINT * np.ptp(wanted.position, axis=0).max()
    if len(points.position) != len(wanted.position) or distance.max() > largest:
        raise ValueError(
            f"{file}: {np.count_nonzero(distance > largest)} of {len(wanted.position)} points of the pressure are not "
            f"among its {len(points.position)} points"
        )
    return np.asarray(rows)


@cache
def _files(path: Path, kind: str) -> dict[str, Path]:
    """Returns the files below a folder by design; listed once per process, as there are thousands."""
    return {file.stem: file for file in sorted((path / kind).rglob("*")) if file.suffix in _SUFFIXES}
