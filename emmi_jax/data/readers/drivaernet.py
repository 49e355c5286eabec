"""Raw cases of DrivAerNet++, which has a folder for each kind of file; a case is named by its design."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.data.readers.reader import Reader
from emmi_jax.meshes.legacy import file_arrays
from emmi_jax.meshes.mesh import FieldSource, Location, read_mesh
from emmi_jax.meshes.vtk import ArrayNames
from emmi_jax.points import PointSet

PRESSURE, SHEAR, VOLUME = "PressureVTK", "WallShearStressVTK_Updated", "CFD"

_SUFFIXES = (".vtk", ".vtp", ".vtu")
_ID_FILES = {"train": "train_design_ids.txt", "validation": "val_design_ids.txt", "test": "test_design_ids.txt"}
_PRESSURE, _SHEAR = "p", "wallShearStress"
_SAME_POINT = 1e-6  # of the length of the car


class DrivAerNetReader(Reader):
    """Reads designs; the path of one is its name in the folder of the data set, which need not exist."""

    def owns(self, path: Path) -> bool:
        """Returns whether a path lies in the folder of the data set."""
        return (path.parent / PRESSURE).is_dir()

    def names(self, root: Path) -> list[str]:
        """Returns the names of all designs with a pressure."""
        return sorted(_files(root, PRESSURE)) if (root / PRESSURE).is_dir() else []

    def branches(self, path: Path) -> tuple[str, ...]:
        """Returns the branches of a design."""
        files = _files_of(path)
        return ("surface",) * (PRESSURE in files) + ("volume",) * (VOLUME in files)

    def files(self, path: Path) -> list[Path]:
        """Returns the files of a design."""
        return sorted(_files_of(path).values())

    def problem(self, path: Path, sources: Sources | None) -> str | None:
        """Says whether the shear is missing, or not where the pressure is."""
        files = _files_of(path)
        if SHEAR not in files:
            return f"no file in {SHEAR}"
        _common_location(files[SHEAR], file_arrays(files[PRESSURE]), file_arrays(files[SHEAR]))
        return None

    def left_out(self, path: Path, sources: Sources, *, with_arrays: bool = True) -> list[str]:
        """Returns nothing."""
        return []

    def read(self, path: Path, options: ReadOptions) -> Case:
        """Reads a design."""
        if options.with_cell_sizes:
            raise ValueError(f"{path}: points have no cell sizes to weight them")
        return Case(read_design(path.parent, path.name, mask_nan=options.mask_nan), None)

    def split(self, root: Path) -> tuple[Any, Path | Mapping[str, Path]] | None:
        """Returns the split file, or else the published split, if all its lists of designs are there."""
        lists = {part: root / name for part, name in _ID_FILES.items()}
        if (given := super().split(root)) is not None or not all(file.is_file() for file in lists.values()):
            return given
        texts = {part: file.read_text(encoding="utf-8", errors="replace") for part, file in lists.items()}
        return {part: text.split() for part, text in texts.items()}, lists


def _files_of(path: Path) -> dict[str, Path]:
    """Returns the files of a design by the folder that they come from; parts of that folder are looked through."""
    files = {kind: _files(path.parent, kind).get(path.name) for kind in (PRESSURE, SHEAR, VOLUME)}
    return {kind: file for kind, file in files.items() if file is not None}


def read_design(path: Path, design: str, *, mask_nan: bool = False) -> dict[str, PointSet]:
    """Reads a design.

    Args:
        path: The folder of the data set.
        design: The name of the design.
        mask_nan: Whether a field may have NaN at some points.

    Returns:
        The branch `surface` with `pressure` and `wallshearstress`; `volume` with `velocity` and `pressure`, if it is
        there.

    Raises:
        FileNotFoundError: A file of the surface is missing.
        ValueError: A file is damaged, or the points of both files of the surface differ.
    """
    files = _files_of(path / design)
    for kind in (PRESSURE, SHEAR):
        if kind not in files:
            raise FileNotFoundError(f"{path / kind}: no file of the design {design}")
    location = _common_location(files[SHEAR], file_arrays(files[PRESSURE]), file_arrays(files[SHEAR]))
    options: Any = {"location": location, "mask_nan": mask_nan}
    pressure = read_mesh(files[PRESSURE]).points({"pressure": FieldSource(_PRESSURE)}, **options)
    shear = read_mesh(files[SHEAR]).points({"wallshearstress": FieldSource(_SHEAR)}, **options)
    order = _matching_rows(files[SHEAR], shear, pressure)
    surface = PointSet(pressure.position, pressure.fields | {"wallshearstress": shear.fields["wallshearstress"][order]})
    if VOLUME not in files:
        return {"surface": surface}
    sources = {"velocity": FieldSource("U"), "pressure": FieldSource("p")}
    return {"surface": surface, "volume": read_mesh(files[VOLUME], {"U", "p"}).points(sources, mask_nan=mask_nan)}


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
