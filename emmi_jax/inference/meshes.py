"""From meshes to the same meshes with predicted fields, their metrics, and the forces on the surface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.metrics import Metrics, field_metrics
from emmi_jax.data.readers.reader import NUM_GEOMETRY_POINTS
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.files.atomic import make_folder
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.encoded_set import EncodedSet, Watch, field_columns, watch_nothing
from emmi_jax.inference.intervals import SINGLE, Certainty
from emmi_jax.inference.spread import Spread
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.meshes.components import found_arrays
from emmi_jax.meshes.content import field_names
from emmi_jax.meshes.forces import (
    DRAG_DIRECTION,
    LIFT_DIRECTION,
    force_coefficients,
    integrate_forces,
    pressure_notes,
)
from emmi_jax.meshes.mesh import FieldSource, Location, Mesh, write_mesh
from emmi_jax.meshes.openfoam import foam_arrays, read_branch
from emmi_jax.meshes.surfaces import check_surface, surface_elements, surface_triangles
from emmi_jax.points import Array, PointSet

FieldArrays: TypeAlias = dict[str, NDArray[np.float32]]

PRESSURES = ("pressure", "pressure_coefficient")
SHEAR_SIGNS = {"wallshearstress": -1.0, "wall_shear_stress": 1.0}
"""Factor from the field to the traction on the body; the first is DrivAerML's, which has OpenFOAM's sign."""

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


@dataclass(frozen=True, kw_only=True)
class ForceReference:
    """Divisors of forces: reference area in m², speed in m/s and density in kg/m³ of the stream."""

    area: float
    speed: float
    density: float = 1.0

    def __post_init__(self) -> None:
        for name in ("area", "speed", "density"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def dynamic_pressure(self) -> float:
        """Density · speed² / 2, in Pa."""
        return self.density * self.speed**2 / 2


class Forces(NamedTuple):
    """Force coefficients of the `predicted` and, where known, the `reference` fields.

    Attributes:
        side: How the outward side of the surface was found, in words.
        spreads: The predicted ones of all draws.
        has_shear: Whether friction is part of them.
        notes: Along which directions pressure gives no force, a line each.
    """

    coefficients: dict[str, dict[str, float]]
    side: str
    spreads: dict[str, Spread]
    has_shear: bool
    notes: Sequence[str]


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
) -> BranchMesh:
    """Reads a mesh to predict on where its reference arrays are, to compare with them.

    Args:
        path: A mesh file, or the folder of an OpenFOAM case.
        fields: Number of channels by field of the branch.
        sources: The arrays that hold the fields; a field without one is sought under its own name.
        branch: The branch of the case.
        foam: The patches and the time of the case.
        inputs: The arrays that hold features, where the mesh has them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is unusable, or has nothing to compare with.
    """
    sought = {name: sources.get(name, FieldSource(name)) for name in fields}
    mesh = read_branch(path, branch, foam, _foam_arrays(path, branch, foam, {**inputs, **sought}))
    present = {*mesh.dataset.cell_data.keys(), *mesh.dataset.point_data.keys()}
    found = {name: source for name, source in sought.items() if found_arrays(source.array, present)}
    if not found:
        expected = {name: source.array for name, source in sought.items()}
        raise ValueError(
            f"{path}: nothing to compare with: expected the arrays {expected}; the mesh has {sorted(present)}"
        )
    points = mesh.points(found)
    for name, values in points.fields.items():
        if values.shape[1] != fields[name]:
            raise ValueError(f"{path}: array of {name!r} has {values.shape[1]} channels, the model {fields[name]}")
    return BranchMesh(mesh, mesh.location_of(s.array for s in found.values()), points.position, points.fields)


def _foam_arrays(path: Path, branch: str, foam: FoamSelection, sources: Mapping[str, FieldSource]) -> set[str] | None:
    """Returns which of these arrays an OpenFOAM case has; None for files, of which all arrays are read."""
    if not path.is_dir():
        return None
    there = foam_arrays(path, foam).get(branch, set()) if sources else set()
    return {name for source in sources.values() for name in found_arrays(source.array, there) or ()}


def geometry_mesh(path: Path, foam: FoamSelection = DEFAULT_SELECTION) -> Mesh:
    """Reads a surface, or the patches of a case, without arrays."""
    return read_branch(path, GEOMETRY_BRANCH, foam, ())


def geometry_points(mesh: Mesh) -> Array:
    """Draws points on the triangles of a surface, uniform in area, [P, 3]."""
    return sample_triangles(0, surface_triangles(mesh), NUM_GEOMETRY_POINTS)


def predict_on_meshes(
    surrogate: Surrogate,
    meshes: Mapping[str, BranchMesh],
    *,
    only: Collection[str] | None = None,
    geometry: PointSet | Array | None = None,
    certainty: Certainty = SINGLE,
    watch: Watch = watch_nothing,
    on_encoded: Callable[[EncodedSet], object] = lambda encoded: None,
    chunk_size: ChunkSize = "auto",
    advance: Callable[[int], object] = lambda num_points: None,
) -> dict[str, FieldArrays]:
    """Predicts every field of the branches that have a mesh.

    Args:
        surrogate: The surrogate; anchors that its context lacks are drawn from the meshes.
        meshes: Meshes by branch.
        only: Branches to predict; by default all that have a mesh.
        geometry: Points [P, 3] of the geometry; by default those of the context, or of the surface mesh.
        certainty: Draws to average over, and intervals.
        watch: Called with the fields of each draw, chunk by chunk.
        on_encoded: Called with the case before it is predicted.
        chunk_size: Queries per call of the model.
        advance: Called with the number of points of each chunk that is done.

    Returns:
        Arrays [N, F] float32 in physical units by branch and field; with several draws also their deviations, and with
        intervals ``<field>_low`` and ``<field>_high``.
    """
    is_weighted = surrogate.sampling.method == "weighted"
    points = {
        branch: PointSet(
            mesh.position,
            {},
            mesh.mesh.cell_sizes(mesh.location) if is_weighted else None,
            features=mesh.features,
        )
        for branch, mesh in meshes.items()
    }
    features = {branch: mesh.features for branch, mesh in meshes.items() if mesh.features is not None}
    encoded = surrogate.encode_draws(certainty.repeats, intervals=certainty.intervals, points=points, geometry=geometry)
    on_encoded(encoded)
    queries = {branch: mesh.position for branch, mesh in meshes.items() if only is None or branch in only}
    features = {branch: features[branch] for branch in queries if branch in features}
    fields = encoded.predict(queries, query_features=features, chunk_size=chunk_size, advance=advance, watch=watch)
    return {branch: {name: fields[f"{branch}_{name}"] for name in encoded.fields[branch]} for branch in queries}


def mesh_metrics(predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh]) -> dict[str, Metrics]:
    """Compares predictions with the arrays of the meshes; returns the metrics by "branch/field"."""
    return {
        f"{branch}/{name}": field_metrics(predicted[branch][name], reference)
        for branch, mesh in meshes.items()
        for name, reference in mesh.reference.items()
    }


def write_predictions(
    folder: Path, predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh]
) -> list[Path]:
    """Writes each mesh again, with `predicted_<field>`, and `error_<field>` where there is a reference.

    Deviations and bounds keep their names, such as `<field>_low`.

    Args:
        folder: The folder, made if it is missing. Files keep the name of their mesh; if its extension cannot hold
            fields, it becomes `.vtp`.
        predicted: Fields by branch.
        meshes: Meshes by branch.

    Returns:
        The paths of the files.
    """
    make_folder(folder)
    paths = []
    for branch, mesh in meshes.items():
        own = field_columns(predicted[branch])
        arrays = {f"predicted_{name}" if name in own else name: values for name, values in predicted[branch].items()}
        for name, reference in mesh.reference.items():
            arrays[f"error_{name}"] = (predicted[branch][name] - reference).astype(np.float32)
        paths.append(folder / output_name(mesh.mesh.path, branch))
        write_mesh(paths[-1], mesh.mesh, arrays, location=mesh.location)
    return paths


def largest_output(
    meshes: Mapping[str, BranchMesh], fields: Mapping[str, Mapping[str, int]], *, num_columns: int = 1
) -> int:
    """Returns how many bytes `write_predictions` writes at most; compression may save some.

    Args:
        meshes: Meshes by branch.
        fields: Number of channels by branch and field.
        num_columns: Arrays for each field: itself, deviations and bounds.
    """
    total = 0
    for branch, mesh in meshes.items():
        channels = num_columns * sum(fields[branch].values()) + sum(fields[branch][name] for name in mesh.reference)
        new_arrays = np.dtype(np.float32).itemsize * channels * len(mesh.position)
        total += 1024 * mesh.mesh.dataset.GetActualMemorySize() + new_arrays
    return total


def output_name(path: Path, branch: str = GEOMETRY_BRANCH) -> str:
    """Returns the name of the file that a mesh with fields is written to; a folder is an OpenFOAM case."""
    if path.is_dir():
        return f"{path.resolve().name}_{branch}.{'vtp' if branch == GEOMETRY_BRANCH else 'vtu'}"
    return path.name if path.suffix.lower() in _WRITABLE else f"{path.stem}.vtp"


def check_forces(surface: BranchMesh, fields: Collection[str]) -> None:
    """Refuses what `surface_forces` cannot integrate, before predicting."""
    if surface.location != "cells":
        raise ValueError(f"{surface.mesh.path}: forces need fields in the cells of the surface, they are on its points")
    check_surface(surface.mesh)
    force_fields(fields)


def surface_forces(predicted: Mapping[str, Array], surface: BranchMesh, reference: ForceReference) -> Forces:
    """Integrates the forces on a surface from its pressure, or pressure coefficient, and its wall shear stress.

    Args:
        predicted: Fields [N, F] or [members, draws, N, F] of the surface: one of `PRESSURES`, and perhaps one of
            `SHEAR_SIGNS`.
        surface: The surface, with fields in its cells.
        reference: What forces are divided by.

    Raises:
        ValueError: There is no pressure, the fields are not in cells, or the mesh is not a surface.
    """
    check_forces(surface, predicted)
    elements = surface_elements(surface.mesh, require_closed=False)

    def coefficients(fields: Mapping[str, Array]) -> dict[str, float]:
        force = surface_force(fields, elements.normal, elements.area, dynamic_pressure=reference.dynamic_pressure)
        return force_coefficients(force, area=reference.area, dynamic_pressure=reference.dynamic_pressure)

    spreads = coefficient_spreads(predicted, coefficients)
    found = {"predicted": {name: float(spread.mean) for name, spread in spreads.items()}}
    if set(force_fields(predicted)) <= set(surface.reference):
        found["reference"] = coefficients(surface.reference)
    pressure = predicted[force_fields(predicted)[0]].reshape(-1, len(elements.area)).mean(axis=0)
    directions = {"drag": DRAG_DIRECTION, "lift": LIFT_DIRECTION}
    notes = pressure_notes(elements.normal, elements.area, pressure, directions)
    return Forces(found, elements.side, spreads, len(force_fields(predicted)) > 1, notes)


def coefficient_spreads(
    fields: Mapping[str, Array], coefficients: Callable[[Mapping[str, Array]], dict[str, float]]
) -> dict[str, Spread]:
    """Returns the coefficients of fields [N, F] or [members, draws, N, F] of a surface.

    Args:
        fields: The fields that forces are integrated from, and perhaps others.
        coefficients: Returns the coefficients of fields [N, F].
    """
    each = {name: fields[name].reshape(-1, *fields[name].shape[-2:]) for name in force_fields(fields)}
    shape = next(iter(fields[name] for name in each)).shape[:-2] or (1, 1)
    found = [coefficients({name: values[place] for name, values in each.items()}) for place in range(np.prod(shape))]
    return {name: Spread.of(np.array([one[name] for one in found]).reshape(shape)) for name in found[0]}


def force_fields(fields: Collection[str]) -> list[str]:
    """Returns the names of the pressure and, if there is one, of the wall shear stress that forces are integrated from.

    Raises:
        ValueError: There is no pressure.
    """
    pressure = [name for name in PRESSURES if name in fields][:1]
    if not pressure:
        raise ValueError(
            f"forces need a field {' or '.join(PRESSURES)}; the branch {GEOMETRY_BRANCH!r} has {list(fields)}"
        )
    return pressure + [name for name in SHEAR_SIGNS if name in fields][:1]


def surface_force(fields: Mapping[str, Array], normal: Array, area: Array, *, dynamic_pressure: float) -> Array:
    """Integrates the force on a surface, [3] in N, or in m⁴/s² for pressure over density.

    Args:
        fields: Fields [N, F] in the cells of the surface, see `force_fields`.
        normal: Outward unit normals [N, 3].
        area: Areas [N], m².
        dynamic_pressure: The unit of a pressure coefficient, Pa.

    Raises:
        ValueError: There is no pressure, or the shapes do not match.
    """
    pressure, *shear = force_fields(fields)
    unit = dynamic_pressure if pressure == "pressure_coefficient" else 1.0
    traction = SHEAR_SIGNS[shear[0]] * fields[shear[0]] if shear else None
    force: Array = integrate_forces(normal, area, unit * fields[pressure], traction)
    return force
