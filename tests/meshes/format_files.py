"""One case in many file types: a body in a channel of 256 cells, 56 of them polyhedra, two times.

`formats.tar.xz` was written by Debian's OpenFOAM 1912: `openfoam` by blockMesh, snappyHexMesh and simpleFoam, `ensight`
and `ensight_ascii` by foamToEnsight, `foam_to_vtk` by foamToVTK. h5py wrote the `.vtkhdf` and `.cgns` files by the
documents of the formats, with the script `write_hdf.py` beside them, from what `dump.py` there keeps of the case;
`write_linked.py` wrote those whose values lie in other files.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.openfoam import read_branch

BODY = FoamSelection(("body",))
FILES = {"EnSight": "ensight/case.case", "ASCII EnSight": "ensight_ascii/case.case", "vtm": "foam_to_vtk/case_10.vtm"}
FORMS = [*FILES]


def unpack(folder: Path) -> Path:
    with tarfile.open(Path(__file__).with_name("formats.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def read(file: Path, branch: str, selection: FoamSelection = BODY) -> Mesh:
    return read_branch(file, branch, selection)


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all files, which a test does not change."""
    return unpack(tmp_path_factory.mktemp("formats"))
