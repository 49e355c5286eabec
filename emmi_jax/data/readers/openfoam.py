"""OpenFOAM cases: which of their arrays are fields, by the names that OpenFOAM gives them, and their points."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from emmi_jax.config import FoamSelection
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.features import with_distances, with_normals
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.data.readers.meshes import check_named_branches, unused_arrays
from emmi_jax.data.readers.reader import NUM_GEOMETRY_POINTS, Reader, describing_files
from emmi_jax.data.sampling import sample_triangles
from emmi_jax.files.atomic import parse_toml
from emmi_jax.meshes.components import all_found, found_arrays, quoted
from emmi_jax.meshes.mesh import FieldSource, Location, Mesh
from emmi_jax.meshes.openfoam import foam_arrays, foam_branches, foam_files, foam_patches, is_foam, read_foam
from emmi_jax.meshes.openfoam_times import foam_time, other_files, passed_over, roots_at
from emmi_jax.meshes.surfaces import area_vectors, surface_triangles

KNOWN_ARRAYS: Mapping[str, Mapping[str, str]] = parse_toml((files(__package__) / "openfoam.toml").read_bytes())
"""Names of OpenFOAM's arrays by branch and field."""


def proposed_sources(arrays: Mapping[str, Collection[str]]) -> Sources:
    """Returns the arrays of a case that are fields, among its arrays by branch."""
    sources: Sources = {}
    for branch, names in arrays.items():
        candidates = {field: (f"{array}Mean", array) for field, array in KNOWN_ARRAYS[branch].items()}
        present = {field: next((n for n in both if found_arrays(n, names)), None) for field, both in candidates.items()}
        sources[branch] = {field: FieldSource(name) for field, name in present.items() if name is not None}
    return sources


class OpenFoamReader(Reader):
    """Reads OpenFOAM cases, decomposed or not, and output of foamToVTK."""

    location: ClassVar[Location] = "cells"

    def owns(self, path: Path) -> bool:
        """Returns whether a folder is a case."""
        return is_foam(path)

    def branches(self, path: Path) -> tuple[str, ...]:
        """Returns a volume, and a surface if patches are chosen."""
        return foam_branches(path, self.selection)

    def files(self, path: Path) -> list[Path]:
        """Returns the mesh and the fields of the time."""
        return sorted([*foam_files(path, self.selection), *describing_files(path)])

    def known_sources(self, path: Path) -> Sources:
        """Returns the arrays that OpenFOAM names so."""
        return proposed_sources(foam_arrays(path, self.selection))

    def problem(self, path: Path, sources: Sources | None) -> str | None:
        """Says which arrays are absent at the time."""
        check_named_branches(path, self.branches(path))
        return self._problem_of_arrays(path, self.sources(path, sources))

    def _problem_of_arrays(self, path: Path, sources: Sources) -> str | None:
        for branch, names in foam_arrays(path, self.selection).items():
            wanted = [source.array for source in sources.get(branch, {}).values()]
            if absent := sorted(quoted(name) for name in wanted if not found_arrays(name, names)):
                return f"no array {', '.join(absent)} at time {foam_time(path, self.selection)}"
            if not wanted:
                return f"no field is known among the arrays {sorted(names)} of the {branch}"
        return None

    def left_out(self, path: Path, sources: Sources, *, with_arrays: bool = True) -> list[str]:
        """Returns other files and times, and arrays that are no fields."""
        lines = [*super().left_out(path, sources), *passed_over(path, self.selection)]
        if (roots := roots_at(path, self.selection)) and (
            others := other_files(roots[0], time := foam_time(path, self.selection))
        ):
            lines.append(f"time {time}: {', '.join(others)}, no fields of cells")
        if with_arrays:
            arrays = foam_arrays(path, self.selection)
            lines += unused_arrays({branch: (f"the {branch}", names) for branch, names in arrays.items()}, sources)
        return lines

    def read(self, path: Path, options: ReadOptions) -> Case:
        """Reads a case; points of its geometry are drawn on the patches of the surface, uniform in area."""
        sources, selection = self.sources(path, options.sources), self.selection
        branches = self.branches(path)
        if problem := self._problem_of_arrays(path, sources):
            raise ValueError(f"{path}: {problem}")
        there = foam_arrays(path, selection)
        further = {b: [name for name in options.inputs.get(b, ()) if name in names] for b, names in there.items()}
        sources = {b: {**{n: FieldSource(n) for n in further.get(b, ())}, **of} for b, of in sources.items()}
        wanted = {branch: [source.array for source in sources[branch].values()] for branch in branches}
        arrays = {b: all_found(wanted[b], names) or () for b, names in there.items()}
        meshes = read_foam(path, branches, selection, arrays)
        with_sizes = options.with_cell_sizes is not False
        points = {
            branch: mesh.points(
                sources[branch], location="cells", with_cell_sizes=with_sizes, mask_nan=options.mask_nan
            )
            for branch, mesh in meshes.items()
        }
        geometry, side = None, ""
        if "surface" in meshes:
            if options.with_area_vectors:
                vectors, side = area_vectors(meshes["surface"])
                points["surface"] = points["surface"]._replace(area_vector=vectors)
            names = options.inputs.get("surface", ())
            points["surface"] = with_normals(points["surface"], meshes["surface"], "cells", names)
            triangles = surface_triangles(meshes["surface"])
            points = with_distances(points, triangles, options.inputs)
            geometry = sample_triangles(0, triangles, NUM_GEOMETRY_POINTS)
        left_out = {f"{branch}: {line}": None for branch, mesh in meshes.items() for line in mesh.left_out}
        patches = meshes["surface"].patches if "surface" in meshes else ()
        return Case(points, geometry, tuple(left_out), side, patches=patches)

    def read_meshes(self, path: Path) -> dict[str, Mesh]:
        """Reads the meshes of a case with all arrays."""
        return read_foam(path, self.branches(path), self.selection)

    def has_choice(self, path: Path) -> bool:
        """Returns that a case has patches and times."""
        return True

    def describe(self, path: Path) -> list[str]:
        """Says which time and patches are read."""
        return [describe_foam(path, self.selection)]


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
