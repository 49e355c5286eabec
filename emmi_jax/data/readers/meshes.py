"""Case folders of meshes: a file per branch, or its parts, and perhaps a surface of the geometry.

Names and arrays are those of a `dataset.toml` or a `fields.json` beside them, or else those of a published data set.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.features import Names, with_distances, with_normals
from emmi_jax.data.known_forces import KnownForces, read_known_forces
from emmi_jax.data.mesh_dataset import (
    DRIVAERML,
    Sources,
    dataset_file,
    published,
    published_geometry,
    published_name,
    published_patterns,
    published_sources,
    read_dataset,
    read_sources,
)
from emmi_jax.data.readers.reader import Reader, describing_files, is_data_name, read_geometry
from emmi_jax.files.atomic import check_space
from emmi_jax.meshes.components import found_arrays, quoted
from emmi_jax.meshes.legacy import file_arrays
from emmi_jax.meshes.mesh import FieldSource, Mesh, read_mesh
from emmi_jax.meshes.parts import PART_SUFFIXES, has_parts, linked_files, open_parts, part_arrays
from emmi_jax.meshes.point_inputs import DISTANCE
from emmi_jax.meshes.surfaces import area_vectors, is_surface, surface_triangles
from emmi_jax.meshes.vtk import GHOSTS
from emmi_jax.points import PointSet

SUFFIXES = (".vtp", ".vtu", ".vtk", *PART_SUFFIXES)

_PART = re.compile(r"(.*)\.(\d+|\w+)\.part", re.IGNORECASE)
_PIECE, _COUNT = re.compile(rb"<Piece [^>]*>"), re.compile(rb'NumberOf(\w+)="(\d+)"')
_HEAD_BYTES = 1 << 14


class MeshReader(Reader):
    """Reads folders of meshes."""

    def owns(self, path: Path) -> bool:
        """Returns whether a folder has a mesh of a branch."""
        return bool(self.branches(path))

    def branches(self, path: Path) -> tuple[str, ...]:
        """Returns the branches that have a mesh."""
        return tuple(branch for branch, files in mesh_files(path).items() if files)

    def files(self, path: Path) -> list[Path]:
        """Returns the meshes, what describes them, and the surface of the geometry."""
        own = dict.fromkeys(file for files in mesh_files(path).values() for file in files)
        for file in [*own]:
            own.update(dict.fromkeys(linked_files(file, self.selection) if has_parts(file) else ()))
        return sorted(filter(None, (*own, *describing_files(path), geometry_mesh_file(path))))

    def known_sources(self, path: Path) -> Sources:
        """Returns those of the published data set whose arrays a mesh has."""
        name = self._published(path)
        return DRIVAERML if name is None else published_sources(name)

    def conditions(self, path: Path) -> ConditionSource | None:
        """Returns where the published data set of a case has its conditions."""
        name = None if dataset_file(path) is not None else self._published(path)
        return None if name is None else published()[name].conditions

    def _published(self, path: Path) -> str | None:
        """Returns the name of the published data set whose arrays the first mesh has."""
        for branch, files in mesh_files(path).items():
            if files and _is_mesh(files[0].name):
                return published_name(branch, self._all_arrays(files[0]))
        return None

    def problem(self, path: Path, sources: Sources | None) -> str | None:
        """Says which parts or arrays are missing."""
        check_named_branches(path, self.branches(path))
        wanted = self.sources(path, sources)
        for branch, files in mesh_files(path).items():
            if files:
                _check_mapped(path, branch, files[0], wanted)
            if files and files[0].suffix.lower() == ".part":
                _check_parts(path, files)
            elif files:
                file = _only_file(path, files)
                there = set() if file is None else self._all_arrays(file)
                names = [source.array for source in wanted.get(branch, {}).values()]
                if absent := [quoted(name) for name in names if not found_arrays(name, there)]:
                    return f"{files[0].name}: no array {', '.join(sorted(absent))}"
        return None

    def left_out(self, path: Path, sources: Sources, *, with_arrays: bool = True) -> list[str]:
        """Returns other files, and arrays that are no fields."""
        lines = super().left_out(path, sources)
        if with_arrays:
            files = {branch: files[0] for branch, files in mesh_files(path).items() if files}
            arrays = {b: (f.name, self._all_arrays(f)) for b, f in files.items() if _is_mesh(f.name)}
            lines += unused_arrays(arrays, sources)
        return lines

    def read(self, path: Path, options: ReadOptions) -> Case:
        """Reads a folder; points of its geometry are drawn on the triangles of its surface."""
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder")
        check_named_branches(path, self.branches(path))
        points, left_out, side = dict[str, PointSet](), list[str](), ""
        patches: tuple[tuple[str, int], ...] = ()
        sources = self.sources(path, options.sources)
        for branch, files in mesh_files(path).items():
            if not files:
                continue
            _check_mapped(path, branch, files[0], sources)
            with _joined(path, files) as whole:
                points[branch], mesh, of_branch = self._read_points(whole, branch, sources[branch], options)
            side = side or of_branch
            patches = mesh.patches if branch == GEOMETRY_BRANCH else patches
            left_out += [f"{files[0].name}: {line}" for line in mesh.left_out]
        if not points:
            raise ValueError(_nothing_to_read(path))
        points = self._with_distances(path, points, options.inputs)
        if (geometry := geometry_mesh_file(path)) is None:
            return Case(points, None, tuple(left_out), side, patches=patches)
        drawn, of_geometry = read_geometry(geometry)
        return Case(points, drawn, (*left_out, *of_geometry), side, patches=patches)

    def read_meshes(self, path: Path) -> dict[str, Mesh]:
        """Reads the meshes of a case with all arrays, and the surface of the geometry as `geometry`."""
        meshes = {}
        for branch, files in mesh_files(path).items():
            if files:
                with _joined(path, files) as file:
                    meshes[branch] = read_mesh(file, branch=branch, selection=self.selection)
        geometry = geometry_mesh_file(path) if meshes else None
        return meshes if geometry is None else {"geometry": read_mesh(geometry, ()), **meshes}

    def num_surface_rows(self, path: Path) -> int | None:
        """Returns how many points or cells the surface has at least; None with a file of the geometry."""
        if not (files := mesh_files(path).get(GEOMETRY_BRANCH)) or geometry_mesh_file(path) is not None:
            return None
        with files[0].open("rb") as file:
            piece = _PIECE.search(file.read(_HEAD_BYTES))
        counts = {} if piece is None else {name: int(number) for name, number in _COUNT.findall(piece[0])}
        num_points, num_cells = counts.pop(b"Points", 0), sum(counts.values())
        return min(num_points, num_cells or num_points) or None

    def has_choice(self, path: Path) -> bool:
        """Returns whether a mesh is a file of several."""
        return any(has_parts(file) for files in mesh_files(path).values() for file in files)

    def forces(self, path: Path) -> KnownForces | None:
        """Returns the forces that a solver wrote in the table of the data set."""
        if (dataset := read_dataset(path)) is not None:
            return read_known_forces(path, [dataset.forces] if dataset.forces else [])
        name = None if dataset_file(path) is not None else self._published(path)
        if name is not None and published()[name].forces is None:  # its forces.json is another
            return None
        return read_known_forces(path)

    def _read_points(
        self, file: Path, branch: str, sources: Mapping[str, FieldSource], options: ReadOptions
    ) -> tuple[PointSet, Mesh, str]:
        there = self._all_arrays(file) if (names := options.inputs.get(branch, ())) else set()
        sources = {**{name: FieldSource(name) for name in names if name in there}, **sources}
        side, arrays = "", {source.array for source in sources.values()}
        mesh = read_mesh(file, arrays, branch=branch, selection=self.selection)
        points = mesh.points(sources, with_cell_sizes=options.with_cell_sizes or False, mask_nan=options.mask_nan)
        is_in_cells = mesh.location_of(arrays) == "cells"
        if options.with_cell_sizes is None and is_in_cells and (sizes := mesh.cell_sizes()).any():
            points = points._replace(cell_size=sizes)
        if options.with_area_vectors and branch == GEOMETRY_BRANCH and is_in_cells and is_surface(mesh):
            vectors, side = area_vectors(mesh)
            points = points._replace(area_vector=vectors)
        location = mesh.location_of(arrays)
        return with_normals(points, mesh, location, names), mesh, side

    def _with_distances(self, path: Path, points: dict[str, PointSet], inputs: Names) -> dict[str, PointSet]:
        """Adds distances to the surface of the geometry, or else to that of the branch, where they are wanted."""
        if not any(
            DISTANCE in names and b in points and DISTANCE not in points[b].fields for b, names in inputs.items()
        ):
            return points
        geometry, files = geometry_mesh_file(path), mesh_files(path).get(GEOMETRY_BRANCH, [])
        if geometry is None and not files:
            raise ValueError(f"{path}: the distance to the surface needs a surface mesh, or a file of the geometry")
        with contextlib.nullcontext(geometry) if geometry is not None else _joined(path, files) as file:
            return with_distances(
                points, surface_triangles(read_mesh(file, (), branch=GEOMETRY_BRANCH, selection=self.selection)), inputs
            )

    def _all_arrays(self, file: Path) -> set[str]:
        """Returns the names of the arrays of a mesh file."""
        names = part_arrays(file, self.selection) if has_parts(file) else file_arrays(file)
        return names.cells | names.points


def mesh_files(path: Path) -> dict[str, list[Path]]:
    """Returns the mesh of each branch, or its parts in their order: `volume_1.vtu.00.part`, `volume_1.vtu.01.part`.

    The case of the letters of its name does not matter.
    """
    if not path.is_dir() or any(path.glob("internal.vt[uk]")):  # output of foamToVTK
        return {}
    dataset = read_dataset(path)
    own = None if dataset is None else {branch: of.files for branch, of in dataset.branches.items()}
    known = sorted(published_patterns(), key=_reach) if own is None else [own]
    choices = ({branch: _meshes(path, pattern) for branch, pattern in patterns.items()} for patterns in known)
    return next((files for files in choices if any(files.values())), {})


def _reach(patterns: Mapping[str, str]) -> int:
    """Orders patterns: those that name more of a file come first, as `volume_*[0-9].vtu` does before `volume*`."""
    return -min(map(len, patterns.values()))


def geometry_mesh_file(path: Path) -> Path | None:
    """Returns the surface of the geometry: the `.stl` file, or else the `.obj` or the `.ply` file.

    Raises:
        ValueError: There are several of the same kind.
    """
    dataset = read_dataset(path)
    for pattern in published_geometry() if dataset is None else dataset.geometry:
        if file := _only_file(path, _matching(path, pattern)):
            return file
    return None


def check_named_branches(path: Path, there: Collection[str]) -> None:
    """Refuses a case that has some branches, but lacks one that the file beside it names."""
    if (file := dataset_file(path)) is None or not there:
        return
    for branch in read_sources(file):
        if branch not in there:
            dataset = read_dataset(path)
            known = published_patterns()[0]
            pattern = known.get(branch) if dataset is None else dataset.branches[branch].files
            wanted = f"the branches {', '.join(known)}" if pattern is None else f"{pattern} with {', '.join(SUFFIXES)}"
            matching = [name for name in _other_kinds(path) if pattern and pattern.strip("*").lower() in name.lower()]
            others = f", found {', '.join(matching)}" if matching else ""
            raise ValueError(
                f"{path}: {file.name} names the branch {branch!r}, which no file has: expected {wanted}{others}"
            )


def _check_mapped(path: Path, branch: str, file: Path, sources: Sources) -> None:
    if branch not in sources:
        mapping = dataset_file(path)
        what = "the run" if mapping is None else mapping.name
        raise ValueError(f"{path}: {what} has no fields for the branch {branch!r} of {file.name}")


def unused_arrays(arrays: Mapping[str, tuple[str, Collection[str]]], sources: Sources) -> list[str]:
    """Returns a line for each branch whose mesh, of this name and with these arrays, has some that are no fields."""
    lines = []
    for branch, (what, names) in arrays.items():
        known = (found_arrays(source.array, names) or () for source in sources.get(branch, {}).values())
        used = {name for mapping in known for name in mapping}
        if unused := sorted({*names} - used - {GHOSTS}):
            lines.append(f"{what}: the arrays {', '.join(unused)}")
    return lines


def _matching(path: Path, pattern: str) -> list[Path]:
    """Returns the files in a folder that match a pattern, whatever the case of its letters."""
    folder, _, name = pattern.rpartition("/")
    return sorted(p for p in (path / folder).glob("*") if fnmatch(p.name.lower(), name.lower()) and p.is_file())


def _meshes(path: Path, pattern: str) -> list[Path]:
    if whole := [p for p in _matching(path, pattern) if _is_mesh(p.name)]:
        return _without_copies(whole) if len(whole) > 1 else whole
    parts = _matching(path, f"{pattern}*.part")
    return [p for p in parts if (part := _PART.fullmatch(p.name)) and _is_mesh(part[1])]


def _without_copies(files: list[Path]) -> list[Path]:
    """Returns the only file of one mesh, or else the files without those that another consists of."""
    plain, linked = [file for file in files if not has_parts(file)], set[Path]()
    if len(plain) == 1:
        return plain
    for file in filter(has_parts, files):
        with contextlib.suppress(ValueError, OSError):  # it is read and refused later
            parts = open_parts(file)
            linked.update(each for time in (None, *parts.times()) for each in parts.files(time))
    return [file for file in files if file not in linked]


def _is_mesh(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _nothing_to_read(path: Path) -> str:
    wanted = [f"{pattern}{suffix}" for pattern, suffix in zip(published_patterns()[0].values(), SUFFIXES, strict=False)]
    wanted += ["tensors such as surface_position_vtp.pt", "quadpress_smpl.vtk", "hexvelo_smpl.vtk", "folders with them"]
    unread = _other_kinds(path)
    others = f"; meshes are read from {', '.join(SUFFIXES)}, not from {', '.join(unread[:5])}" if unread else ""
    return f"{path}: no case in this folder: expected {' or '.join(wanted)}{others}"


def _other_kinds(path: Path) -> list[str]:
    """Returns the names of meshes that would be those of a branch if their kind were read, here or a folder deeper."""
    files = (p for pattern in ("*", "*/*") for p in path.glob(pattern) if p.is_file())
    stems = tuple(pattern.strip("*").lower() for patterns in published_patterns() for pattern in patterns.values())
    return sorted(
        p.relative_to(path).as_posix()
        for p in files
        if p.name.lower().startswith(stems) and not _is_mesh(p.name) and is_data_name(p.name)
    )


def _check_parts(path: Path, files: list[Path]) -> None:
    """Refuses parts that are not numbered from 00 on without a gap."""
    numbers = [int(number) if (number := file.name.split(".")[-2]).isdigit() else -1 for file in files]
    if numbers != list(range(len(files))):
        raise ValueError(f"{path}: expected parts from 00 on without a gap, found {', '.join(f.name for f in files)}")


@contextmanager
def _joined(path: Path, files: list[Path]) -> Iterator[Path]:
    """Yields the file of a mesh; parts are joined in a temporary one, and messages name the first of them."""
    if files[0].suffix.lower() != ".part":
        if (file := _only_file(path, files)) is not None:
            yield file
        return
    _check_parts(path, files)
    with tempfile.TemporaryDirectory() as folder:
        check_space(Path(folder), sum(file.stat().st_size for file in files))
        whole = Path(folder, files[0].name.rsplit(".", 2)[0])
        with whole.open("wb") as target:
            for file in files:
                with file.open("rb") as source:
                    shutil.copyfileobj(source, target)
        try:
            yield whole
        except ValueError as error:
            raise ValueError(str(error).replace(str(whole), str(path / whole.name))) from None


def _only_file(path: Path, files: Collection[Path] | Iterator[Path]) -> Path | None:
    """Returns the only file, if there is one.

    Raises:
        ValueError: There are several.
    """
    candidates = sorted(files)
    if len(candidates) > 1:
        names = ", ".join(file.name for file in candidates)
        raise ValueError(
            f"{path}: a case has one such file, found {names}: join them to one, name one in dataset.toml, or "
            "move the others away"
        )
    return candidates[0] if candidates else None
