"""OpenFOAM cases: which of their arrays are fields, by the names that OpenFOAM gives them, and their points."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from emmi_jax.config import FoamSelection
from emmi_jax.data.cases import Case
from emmi_jax.data.field_sources import Sources
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.meshes.components import all_found, found_arrays, quoted
from emmi_jax.meshes.mesh import FieldSource, Mesh
from emmi_jax.meshes.openfoam import foam_arrays, foam_branches, foam_patches, read_foam
from emmi_jax.meshes.openfoam_times import foam_time
from emmi_jax.meshes.surfaces import area_vectors, surface_triangles
from emmi_jax.points import PointSet

KNOWN_ARRAYS: Mapping[str, Mapping[str, str]] = {
    "surface": {"pressure": "p", "wallshearstress": "wallShearStress"},
    "volume": {
        "velocity": "U",
        "pressure": "p",
        "totalpcoeff": "total(p)_coeff",
        "vorticity": "vorticity",
        "temperature": "T",
        "nut": "nut",
        "k": "k",
        "omega": "omega",
        "epsilon": "epsilon",
        "nuTilda": "nuTilda",
    },
}
"""Names of OpenFOAM's arrays by branch and field; where there is a mean in time, such as `UMean`, it is preferred."""


def proposed_sources(arrays: Mapping[str, Collection[str]]) -> Sources:
    """Returns the arrays of a case that are fields, among its arrays by branch."""
    found: Sources = {}
    for branch, names in arrays.items():
        candidates = {field: (f"{array}Mean", array) for field, array in KNOWN_ARRAYS[branch].items()}
        present = {field: next((n for n in both if found_arrays(n, names)), None) for field, both in candidates.items()}
        found[branch] = {field: FieldSource(name) for field, name in present.items() if name is not None}
    return found


def foam_problem(path: Path, sources: Sources, selection: FoamSelection) -> str | None:
    """Says why a case cannot be read, as far as names and headers of its files tell; None if nothing is wrong."""
    for branch, names in foam_arrays(path, selection).items():
        wanted = [source.array for source in sources.get(branch, {}).values()]
        if absent := sorted(quoted(name) for name in wanted if not found_arrays(name, names)):
            return f"no array {', '.join(absent)} at time {foam_time(path, selection)}"
        if not wanted:
            return f"no field is known among the arrays {sorted(names)} of the {branch}"
    return None


def read_foam_case(
    path: Path,
    sources: Sources,
    selection: FoamSelection,
    num_geometry_points: int,
    *,
    with_cell_sizes: bool,
    with_area_vectors: bool,
) -> Case:
    """Reads a case; points of its geometry are drawn on the patches of the surface, uniform in area.

    Raises:
        ValueError: A file is damaged, the selection does not suit the case, or an array is absent.
    """
    branches = foam_branches(path, selection)
    if problem := foam_problem(path, sources, selection):
        raise ValueError(f"{path}: {problem}")
    wanted = {branch: [source.array for source in sources[branch].values()] for branch in branches}
    arrays = {b: all_found(wanted[b], names) or () for b, names in foam_arrays(path, selection).items()}
    meshes = read_foam(path, branches, selection, arrays)
    points = {branch: _points(mesh, branch, sources, with_cell_sizes) for branch, mesh in meshes.items()}
    geometry, side = None, ""
    if "surface" in meshes:
        if with_area_vectors:
            vectors, side = area_vectors(meshes["surface"])
            points["surface"] = points["surface"]._replace(area_vector=vectors)
        geometry = sample_triangles(0, surface_triangles(meshes["surface"]), num_geometry_points)
    left_out = {f"{branch}: {line}": None for branch, mesh in meshes.items() for line in mesh.left_out}
    return Case(points, geometry, tuple(left_out), side)


def describe_foam(path: Path, selection: FoamSelection) -> str:
    """Says in one line what is read of a case."""
    patches = foam_patches(path, selection)
    chosen, others = (
        [
            f"{name} ({patch.num_faces:,} faces)" if patch.num_faces is not None else name
            for name, patch in patches.items()
            if patch.is_chosen == is_chosen
        ]
        for is_chosen in (True, False)
    )
    return (
        f"{path}: time {foam_time(path, selection) or 'none'}, surface: {', '.join(chosen) or 'none'}; "
        f"other patches: {', '.join(others) or 'none'}"
    )


def _points(mesh: Mesh, branch: str, sources: Sources, with_cell_sizes: bool) -> PointSet:
    return mesh.points(sources[branch], location="cells", with_cell_sizes=with_cell_sizes)
