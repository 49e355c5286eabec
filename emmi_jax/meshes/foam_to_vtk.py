"""The output of foamToVTK as it lies on disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_INTERNAL = ("internal.vtu", "internal.vtk")
_NUMBER = re.compile(r"\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
_PATCHES = (".vtp", ".vtk")


def is_time(name: str) -> bool:
    """Returns whether a folder of this name is a time."""
    return _NUMBER.fullmatch(name) is not None


def is_foam_patch(path: Path) -> bool:
    """Returns whether foamToVTK wrote a file as a patch: `boundary/body.vtp` of a time, or `VTK/body/body_7.vtk`."""
    if path.suffix not in _PATCHES:
        return False
    folder = path.absolute().parent
    if path.stem == "boundary" and _vtk_folder(folder) is not None:
        return True
    if folder.name == "boundary":
        return _vtk_folder(folder.parent) is not None or folder.parent.parent.name == "VTK"
    return (
        folder.parent.name == "VTK" and path.stem.rpartition("_")[0] == folder.name and _time_of(path.stem) is not None
    )


class VtkFiles(NamedTuple):
    """Files of one time: the internal mesh, and the patches by name."""

    internal: Path
    patches: dict[str, Path]


def vtk_times(path: Path) -> dict[str, VtkFiles]:
    """Returns the files of foamToVTK by time: `VTK/case_350/internal.vtu` or `VTK/case_350.vtk`."""
    if files := _vtk_folder(path):
        return {_time_of(path.name) or "0": files}
    folder = path / "VTK" if (path / "VTK").is_dir() else path
    if folder.name != "VTK":
        return {}
    times = {}
    for place in sorted(folder.iterdir()):
        time = _time_of(place.stem if place.suffix == ".vtk" else place.name)
        if time is not None and place.suffix == ".vtk":
            patches = {p.name: p / f"{p.name}_{time}.vtk" for p in sorted(folder.iterdir()) if p.is_dir()}
            times[time] = VtkFiles(place, {name: file for name, file in patches.items() if file.is_file()})
        elif time is not None and (files := _vtk_folder(place)):
            times[time] = files
    return times


def _vtk_folder(path: Path) -> VtkFiles | None:
    internal = next((path / name for name in _INTERNAL if (path / name).is_file()), None)
    if internal is None:
        return None
    boundary = path / "boundary"
    places = boundary.iterdir() if boundary.is_dir() else path.glob("boundary.vt[pk]")  # of `-one-boundary`
    patches = sorted(p for p in places if p.suffix in _PATCHES)
    return VtkFiles(internal, {file.stem: file for file in patches})


def _time_of(name: str) -> str | None:
    time = name.rpartition("_")[2]
    return time if is_time(time) else None
