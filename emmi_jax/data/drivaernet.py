"""Raw cases of DrivAerNet++, which has a folder for each kind of file; a case is named by its design."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from emmi_jax.files.atomic import JsonDict
from emmi_jax.meshes.legacy import legacy_array_names
from emmi_jax.meshes.mesh import FieldSource, Location, read_mesh
from emmi_jax.meshes.vtk import ArrayNames, array_names
from emmi_jax.points import PointSet

PRESSURE, SHEAR, VOLUME = "PressureVTK", "WallShearStressVTK_Updated", "CFD"

_SUFFIXES = (".vtk", ".vtp", ".vtu")
_ID_FILES = {"train": "train_design_ids.txt", "validation": "val_design_ids.txt", "test": "test_design_ids.txt"}
_PRESSURE, _SHEAR = "p", "wallShearStress"
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


def design_lists(path: Path) -> dict[str, Path]:
    """Returns the lists of designs by part of the split; none if one of them is not there."""
    lists = {part: path / name for part, name in _ID_FILES.items()}
    return lists if all(file.is_file() for file in lists.values()) else {}


def design_split(path: Path) -> JsonDict | None:
    """Returns the published split, as a split file has it; None if the lists of designs are not there."""
    lists = design_lists(path)
    return {part: file.read_text(encoding="utf-8", errors="replace").split() for part, file in lists.items()} or None


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
    location = _common_location(files[SHEAR], array_names_of(files[PRESSURE]), array_names_of(files[SHEAR]))
    pressure = read_mesh(files[PRESSURE]).points({"pressure": FieldSource(_PRESSURE)}, location=location)
    shear = read_mesh(files[SHEAR]).points({"wallshearstress": FieldSource(_SHEAR)}, location=location)
    order = _matching_rows(files[SHEAR], shear, pressure)
    surface = PointSet(pressure.position, pressure.fields | {"wallshearstress": shear.fields["wallshearstress"][order]})
    if VOLUME not in files:
        return {"surface": surface}
    sources = {"velocity": FieldSource("U"), "pressure": FieldSource("p")}
    return {"surface": surface, "volume": read_mesh(files[VOLUME], {"U", "p"}).points(sources)}


def design_problem(path: Path, design: str) -> str | None:
    """Says why a design cannot be read, as far as the headers of its files tell; None if nothing is wrong."""
    files = design_files(path, design)
    if SHEAR not in files:
        return f"no file in {SHEAR}"
    try:
        _common_location(files[SHEAR], array_names_of(files[PRESSURE]), array_names_of(files[SHEAR]))
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _common_location(file: Path, pressure: ArrayNames, shear: ArrayNames) -> Location:
    """Returns where both files of a surface have their array; points come first, as in most designs.

    Raises:
        ValueError: There is no such place.
    """
    places: dict[Location, tuple[set[str], set[str]]] = {
        "points": (pressure.points, shear.points),
        "cells": (pressure.cells, shear.cells),
    }
    for location, (first, second) in places.items():
        if _PRESSURE in first and _SHEAR in second:
            return location
    for array, index in ((_PRESSURE, 0), (_SHEAR, 1)):
        if not any(array in names[index] for names in places.values()):
            raise ValueError(f"{file}: no array {array!r} in the files of its design")
    where = "points" if _SHEAR in shear.points else "cells"
    other = "cells" if where == "points" else "points"
    raise ValueError(
        f"{file}: {_SHEAR!r} is in {where}, the pressure of the design on {other}".replace(
            "is in points", "is on points"
        ).replace("on cells", "in cells")
    )


def array_names_of(file: Path) -> ArrayNames:
    """Returns the names of the arrays of a mesh file in cells and on points."""
    return legacy_array_names(file) if file.suffix.lower() == ".vtk" else array_names(file)


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
