"""The mesh of one branch of a case: where its queries are, and what to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.deploy.draws import GEOMETRY_BRANCH
from emmi_jax.meshes.components import found_arrays
from emmi_jax.meshes.content import field_names
from emmi_jax.meshes.mesh import FieldSource, Location, Mesh
from emmi_jax.meshes.openfoam import foam_arrays, read_branch
from emmi_jax.meshes.parts import parts_suffix
from emmi_jax.meshes.parts_writing import WRITABLE_PARTS
from emmi_jax.points import Array, PointSet

_WRITABLE = (".vtp", ".vtu", ".vtk")


class BranchMesh(NamedTuple):
    """A mesh to predict on: the positions of its queries [N, 3], and the values to compare with, [N, F] by field.

    Features [N, C] are what the model takes beside the positions; see `with_features`.
    """

    mesh: Mesh
    location: Location
    position: Array
    reference: dict[str, Array]
    features: Array | None = None

    def points(self, *, with_cell_sizes: bool) -> PointSet:
        """Returns the points to draw anchors from, with features, and the cell sizes that weight the draw."""
        sizes = self.mesh.cell_sizes(self.location) if with_cell_sizes else None
        return PointSet(self.position, {}, sizes, features=self.features)


def query_mesh(
    path: Path,
    branch: str = GEOMETRY_BRANCH,
    foam: FoamSelection = DEFAULT_SELECTION,
    *,
    in_cells: bool = False,
    inputs: Mapping[str, FieldSource] = MappingProxyType({}),
) -> BranchMesh:
    """Reads a mesh to predict on: in its cells, unless it has none or only its points carry fields.

    Args:
        path: A mesh file, or the folder of an OpenFOAM case, of which no other array than the inputs is read.
        branch: The branch of the case.
        foam: The patches and the time of the case.
        in_cells: Whether to predict in the cells wherever the fields are, as forces need it.
        inputs: The arrays that hold features, where the mesh has them; they say where to predict.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is unusable.
    """
    mesh = read_branch(path, branch, foam, _foam_arrays(path, branch, foam, inputs))
    only_on_points = field_names(mesh.dataset, "points") and not field_names(mesh.dataset, "cells")
    location: Location = "points" if (only_on_points and not in_cells) or not mesh.dataset.n_cells else "cells"
    present = {*mesh.dataset.cell_data.keys(), *mesh.dataset.point_data.keys()}
    if given := [source.array for source in inputs.values() if found_arrays(source.array, present)]:
        location = mesh.location_of(given)
    return BranchMesh(mesh, location, mesh.position(location), {})


def reference_mesh(
    path: Path,
    fields: Mapping[str, int],
    sources: Mapping[str, FieldSource],
    branch: str = GEOMETRY_BRANCH,
    foam: FoamSelection = DEFAULT_SELECTION,
    *,
    inputs: Mapping[str, FieldSource] = MappingProxyType({}),
    mask_nan: bool = False,
) -> BranchMesh:
    """Reads a mesh to predict on where its reference arrays are, to compare with them.

    Args:
        path: A mesh file, or the folder of an OpenFOAM case.
        fields: Number of channels by field of the branch.
        sources: The arrays that hold the fields; a field without one is sought under its own name.
        branch: The branch of the case.
        foam: The patches and the time of the case.
        inputs: The arrays that hold features, where the mesh has them.
        mask_nan: Whether a reference array may have NaN at some points.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is unusable, or has nothing to compare with.
    """
    sought = {name: sources.get(name, FieldSource(name)) for name in fields}
    mesh = read_branch(path, branch, foam, _foam_arrays(path, branch, foam, {**inputs, **sought}))
    present = {*mesh.dataset.cell_data.keys(), *mesh.dataset.point_data.keys()}
    present_fields = {name: source for name, source in sought.items() if found_arrays(source.array, present)}
    if not present_fields:
        expected = {name: source.array for name, source in sought.items()}
        raise ValueError(
            f"{path}: nothing to compare with: expected the arrays {expected}; the mesh has {sorted(present)}"
        )
    points = mesh.points(present_fields, mask_nan=mask_nan)
    for name, values in points.fields.items():
        if values.shape[1] != fields[name]:
            raise ValueError(f"{path}: array of {name!r} has {values.shape[1]} channels, the model {fields[name]}")
    return BranchMesh(mesh, mesh.location_of(s.array for s in present_fields.values()), points.position, points.fields)


def _foam_arrays(path: Path, branch: str, foam: FoamSelection, sources: Mapping[str, FieldSource]) -> set[str] | None:
    """Returns which of these arrays an OpenFOAM case has; None for files, of which all arrays are read."""
    if not path.is_dir():
        return None
    there = foam_arrays(path, foam).get(branch, set()) if sources else set()
    return {name for source in sources.values() for name in found_arrays(source.array, there) or ()}


def geometry_mesh(path: Path, foam: FoamSelection = DEFAULT_SELECTION) -> Mesh:
    """Reads a surface, or the patches of a case, without arrays."""
    return read_branch(path, GEOMETRY_BRANCH, foam, ())


def output_name(path: Path, branch: str = GEOMETRY_BRANCH) -> str:
    """Returns the name of the file that a mesh with fields is written to; a folder is an OpenFOAM case.

    A file of several meshes may be read for both branches, and becomes one of each; of types that cannot be written,
    `.vtm` is the nearest.
    """
    if (parts := parts_suffix(path)) is not None:
        return f"{path.name[: -len(parts)]}_{branch}{parts if parts in WRITABLE_PARTS else '.vtm'}"
    if path.is_dir():
        return f"{path.resolve().name}_{branch}.{'vtp' if branch == GEOMETRY_BRANCH else 'vtu'}"
    return path.name if path.suffix.lower() in _WRITABLE else f"{path.stem}.vtp"
