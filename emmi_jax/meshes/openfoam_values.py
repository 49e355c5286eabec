"""Values of OpenFOAM's fields in cells and on patches, as the solver has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.openfoam_entries import FoamDict, Tokens, numbers
from emmi_jax.meshes.openfoam_files import CHANNELS, FoamFile
from emmi_jax.meshes.openfoam_mesh import Patch, PolyMesh
from emmi_jax.meshes.polyhedra import face_geometry, poly_geometry

Values = NDArray[np.floating[Any]]

_CLASS = re.compile(r"vol(Scalar|Vector|SymmTensor|Tensor|SphericalTensor)Field")
_MIRRORS = ("slip", "symmetry", "symmetryPlane", "basicSymmetry")


class FoamField:
    """A field of cells and patches.

    Args:
        file: The file.
        mesh: The mesh that it belongs to.

    Raises:
        ValueError: The file is damaged, or of another kind.
    """

    def __init__(self, file: Path, mesh: PolyMesh) -> None:
        content = FoamFile(file)
        kind = _CLASS.fullmatch(str((content.header.tokens("class") or [""])[0]))
        if kind is None:
            raise ValueError(f"{file}: expected a field of cells")
        name = kind[1][0].lower() + kind[1][1:]
        self._file, self._mesh, self._num_channels = file, mesh, CHANNELS[name]
        self._entries = content.dictionary()

    def cells(self) -> Values:
        """Returns the values in the cells, [N] or [N, F]."""
        try:
            rows = self._rows(self._entries, "internalField", self._mesh.num_cells)
        except ValueError as error:
            raise ValueError(f"{self._file}: {error}") from None
        if rows is None:
            raise ValueError(f"{self._file}: has no internalField")
        return rows[:, 0] if self._num_channels == 1 else rows

    def faces(self, name: str) -> Values:
        """Returns the values on the faces of a patch, [N] or [N, F].

        `zeroGradient`, `fixedGradient`, `noSlip`, `slip` and `symmetry` are evaluated as the solver does it; other
        conditions must have a `value`.

        Raises:
            ValueError: They are not in the file, and do not follow from the cells; the message names the patch.
        """
        patch = self._mesh.patches[name]
        entry = self._entry(name, patch)
        try:
            rows = self._evaluated(patch, entry)
        except ValueError as error:
            raise ValueError(f"{self._file}: patch {name!r}: {error}") from None
        return rows[:, 0] if self._num_channels == 1 else rows

    def _entry(self, name: str, patch: Patch) -> FoamDict:
        """Returns the condition of a patch, as the solver finds it: by name, by group, by pattern, by its type."""
        patches = self._entries.get("boundaryField")
        entries = patches if isinstance(patches, FoamDict) else FoamDict()
        exact = [entries.get(key) for key in (name, *reversed(patch.groups))]
        patterns = [value for key, value in entries.items() if key[:1] == '"' and _matches(key[1:-1], name)]
        for entry in (*exact, *reversed(patterns)):
            if isinstance(entry, FoamDict):
                return entry
        entry = FoamDict()
        entry["type"] = [patch.kind]
        return entry

    def _evaluated(self, patch: Patch, entry: FoamDict) -> Values:
        kind = str((entry.tokens("type") or [""])[0])
        inside = self._mesh.owner[patch.start : patch.start + patch.num_faces]
        if kind == "noSlip":
            return np.zeros((patch.num_faces, self._num_channels))
        if kind == "zeroGradient" or (kind in _MIRRORS and self._num_channels == 1):
            return self._inside(inside)
        if kind in _MIRRORS and self._num_channels == 3:
            normal = self._normals(patch)[1]
            values = self._inside(inside)
            return values - (values * normal).sum(axis=1, keepdims=True) * normal
        if kind == "fixedGradient":
            gradient = self._rows(entry, "gradient", patch.num_faces)
            if gradient is not None:
                return self._inside(inside) + gradient * self._distance(patch)[:, None]
        rows = self._rows(entry, "value", patch.num_faces) if kind != "empty" else None
        rows = self._rows(entry, "uniformValue", patch.num_faces) if rows is None and kind[:7] == "uniform" else rows
        if rows is None:
            raise ValueError(f"its condition {kind or 'none'!r} has no value in the file")
        return rows

    def _inside(self, cells: NDArray[np.int64]) -> Values:
        return self.cells().reshape(-1, self._num_channels)[cells]

    def _normals(self, patch: Patch) -> tuple[Values, Values]:
        """Returns centres and unit normals of the faces of a patch."""
        centre, vector = face_geometry(self._mesh.points, *self._mesh.faces_of(patch))
        return centre, vector / np.maximum(np.linalg.norm(vector, axis=1), 1e-300)[:, None]

    def _distance(self, patch: Patch) -> Values:
        """Returns the distances of the faces from the centres of their cells along the normals."""
        mesh, (centre, normal) = self._mesh, self._normals(patch)
        cells, _ = poly_geometry(mesh.points, mesh.corners, mesh.offsets, mesh.owner, mesh.neighbour, mesh.num_cells)
        inside = cells[mesh.owner[patch.start : patch.start + patch.num_faces]]
        return np.asarray(((centre - inside) * normal).sum(axis=1))

    def _rows(self, entries: FoamDict, key: str, num_rows: int) -> Values | None:
        """Returns an entry as [N, F]; None if there is none."""
        tokens: Tokens | None = entries.tokens(key)
        if tokens is None:
            return None
        if tokens[-1:] and isinstance(tokens[-1], np.ndarray):
            if tokens[-1].shape != (num_rows, self._num_channels):
                raise ValueError(f"{key} has {len(tokens[-1])} rows, expected {num_rows}")
            return tokens[-1]
        try:
            row = list(numbers(tokens[1:]))
        except ValueError:
            raise ValueError(f"{key} is {' '.join(map(str, tokens))[:40]}, expected numbers") from None
        if tokens[0] == "nonuniform" and not num_rows:
            return np.zeros((0, self._num_channels))
        if tokens[0] not in ("uniform", "constant") or len(row) != self._num_channels:
            raise ValueError(f"{key} is {' '.join(map(str, tokens))[:40]}, expected {self._num_channels} numbers")
        return np.tile(np.array(row), (num_rows, 1))


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False
