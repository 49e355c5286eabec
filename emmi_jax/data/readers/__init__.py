"""One file per layout of case folders; `readers` lists them, and a new layout is one file and one line there."""

from __future__ import annotations

import re
from pathlib import Path

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.readers.drivaernet import DrivAerNetReader
from emmi_jax.data.readers.meshes import MeshReader
from emmi_jax.data.readers.openfoam import OpenFoamReader
from emmi_jax.data.readers.reader import Reader
from emmi_jax.data.readers.shapenet_car import ShapeNetCarReader
from emmi_jax.data.readers.tensors import TensorReader


def readers(foam: FoamSelection = DEFAULT_SELECTION) -> tuple[Reader, ...]:
    """Returns a reader per layout; the first that a folder is of reads it."""
    return DrivAerNetReader(), TensorReader(), ShapeNetCarReader(), MeshReader(foam), OpenFoamReader(foam)


def reader_of(path: Path, foam: FoamSelection = DEFAULT_SELECTION) -> Reader:
    """Returns the reader of a case folder; that of meshes says what is wrong with a folder of no layout."""
    return next((reader for reader in readers(foam) if reader.owns(path)), MeshReader())


def case_names(root: Path, foam: FoamSelection = DEFAULT_SELECTION) -> list[str]:
    """Returns the names of the cases in a folder, in the order of their numbers.

    Where its folders are no cases, the folders in those are looked at: `param1/1dc58be2`.
    """
    if not root.is_dir():
        return []
    layouts = readers(foam)
    if listed := next(filter(None, (layout.names(root) for layout in layouts)), None):
        return listed
    for pattern in ("*/", "*/*/"):
        folders = (path for path in root.glob(pattern) if any(layout.owns(path) for layout in layouts))
        if names := [path.relative_to(root).as_posix() for path in folders]:
            return sorted(names, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])
    return []
