"""OpenFOAM cases and the output of foamToVTK as they lie on disk: the internal mesh, and a surface of patches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.meshes.foam_to_vtk import VtkFiles, vtk_times
from emmi_jax.meshes.legacy import file_arrays
from emmi_jax.meshes.mesh import Mesh, checked_mesh, read_mesh
from emmi_jax.meshes.openfoam_mesh import mesh_files, read_patches, read_poly_mesh
from emmi_jax.meshes.openfoam_times import case_roots, field_files, foam_time, passed_over, roots_at
from emmi_jax.meshes.openfoam_values import FoamField
from emmi_jax.meshes.parts import join
from emmi_jax.meshes.parts_file import chosen_names
from emmi_jax.meshes.vtk import import_pyvista, read_dataset


class FoamPatch(NamedTuple):
    """A patch: its type and number of faces, which foamToVTK does not tell, and whether it belongs to the surface."""

    kind: str | None
    num_faces: int | None
    is_chosen: bool


def is_foam(path: Path) -> bool:
    """Returns whether a folder is a case, decomposed or not, or output of foamToVTK."""
    try:
        return bool(case_roots(path) or vtk_times(path))
    except ValueError:  # of an unusable case; reading says what is wrong
        return True


def case_folder(path: Path) -> Path:
    """Returns the folder of a `.foam` file, which ParaView opens in place of its case; or else the path."""
    return path.absolute().parent if path.suffix.lower() == ".foam" and path.is_file() else path


def foam_patches(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> dict[str, FoamPatch]:
    """Returns the patches of a case by name.

    Raises:
        ValueError: A regular expression is none or matches no patch, or walls are asked for and patches have no types.
    """
    kinds = _native_patches(path, selection) if case_roots(path) else _vtk_patches(path, selection)
    chosen = _chosen_patches(path, {name: kind for name, (kind, _) in kinds.items()}, selection.patches)
    return {name: FoamPatch(kind, number, name in chosen) for name, (kind, number) in kinds.items()}


def foam_branches(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> tuple[str, ...]:
    """Returns the branches of a folder: a volume, and a surface if patches are chosen; none if it is no case."""
    if not is_foam(path):
        return ()
    kinds = _native_patches(path, selection) if case_roots(path) else _vtk_patches(path, selection)
    # Where types are unknown, reading says which patches there are to choose from.
    has_surface = selection.patches or any(_is_wall(kind) for kind, _ in kinds.values())
    return ("surface", "volume") if has_surface and kinds else ("volume",)


def foam_files(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> list[Path]:
    """Returns the files that are read: meshes, and fields of the time.

    Raises:
        ValueError: The case does not have the time, or lacks a file of the mesh.
    """
    if not (roots := roots_at(path, selection)):
        files = _vtk_files(path, selection)
        return [files.internal, *files.patches.values()]
    time = foam_time(path, selection)
    return [file for root in roots for file in (*mesh_files(root, time).values(), *field_files(root, time))]


def foam_arrays(path: Path, selection: FoamSelection = DEFAULT_SELECTION) -> dict[str, set[str]]:
    """Returns the names of the arrays by branch; only headers are read.

    Raises:
        ValueError: See `foam_patches` and `foam_time`.
    """
    branches = foam_branches(path, selection)
    if roots := roots_at(path, selection):
        names = {file.name.removesuffix(".gz") for file in field_files(roots[0], foam_time(path, selection))}
        return dict.fromkeys(branches, names)
    files = _vtk_files(path, selection)
    arrays = {"volume": file_arrays(files.internal).cells}
    if "surface" in branches:
        chosen = [name for name, patch in foam_patches(path, selection).items() if patch.is_chosen]
        arrays["surface"] = set.intersection(*(file_arrays(files.patches[name]).cells for name in chosen))
    return {branch: arrays[branch] for branch in branches}


def read_foam(
    path: Path,
    branches: Collection[str],
    selection: FoamSelection = DEFAULT_SELECTION,
    arrays: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Mesh]:
    """Reads a case.

    Args:
        path: The folder of a case, decomposed or not, ASCII or binary; or output of foamToVTK.
        branches: `volume`: the internal mesh, cells in the order of OpenFOAM; `surface`: the chosen patches, one after
            another. Fields are in the cells.
        selection: The patches and the time.
        arrays: The arrays to read by branch; None for all.

    Returns:
        Meshes by branch.

    Raises:
        ValueError: A file is damaged, or the selection does not suit the case.
        ImportError: pyvista is not installed.
    """
    import_pyvista()
    if not is_foam(path):
        raise ValueError(f"{path}: neither an OpenFOAM case nor output of foamToVTK")
    for root in (roots := roots_at(path, selection)):
        mesh_files(root, foam_time(path, selection))
    chosen: list[str] = []
    if "surface" in branches:
        chosen = [name for name, patch in foam_patches(path, selection).items() if patch.is_chosen]
        if not chosen:
            raise ValueError(f"{path}: no patch is a wall; choose those of the surface with --surface-patches")
    parts, left_out = dict[str, list[Any]](), dict[str, dict[str, None]]()
    patches: list[tuple[str, int]] = []
    if roots:
        wanted = None if arrays is None else {name for branch in branches for name in arrays.get(branch, ())}
        time = foam_time(path, selection)
        for root in roots:
            for branch, patch, dataset, lines in _read_root(root, time, chosen, branches, wanted):
                parts.setdefault(branch, []).append(dataset)
                patches += [] if patch is None else [(patch, dataset.n_cells)]
                left_out.setdefault(branch, {}).update(dict.fromkeys(lines))
    else:
        files = _vtk_files(path, selection)
        sources = {"volume": [files.internal], "surface": [files.patches[name] for name in chosen]}
        parts = {b: [read_dataset(f, None if arrays is None else arrays.get(b)) for f in sources[b]] for b in branches}
        patches = [(name, part.n_cells) for name, part in zip(chosen, parts.get("surface", ()), strict=False)]
    if missing := sorted(set(branches) - set(parts)):
        raise ValueError(f"{path}: has no cells for the branch {missing[0]!r}")
    meshes = {b: checked_mesh(path, join(parts[b])[0], is_patch=b == "surface") for b in branches}
    if "surface" in meshes and sum(number for _, number in patches) == meshes["surface"].dataset.n_cells:
        meshes["surface"] = replace(meshes["surface"], patches=tuple(patches))
    return {b: replace(mesh, left_out=(*mesh.left_out, *left_out.get(b, ()))) for b, mesh in meshes.items()}


def read_branch(
    path: Path, branch: str, selection: FoamSelection = DEFAULT_SELECTION, arrays: Collection[str] | None = None
) -> Mesh:
    """Reads a mesh file, or a branch of a case if the path is a folder; see `read_mesh` and `read_foam`."""
    if path.is_dir():
        mesh = read_foam(path, [branch], selection, None if arrays is None else {branch: arrays})[branch]
        return replace(mesh, left_out=(*passed_over(path, selection), *mesh.left_out))
    return read_mesh(path, arrays, branch=branch, selection=selection)


def _read_root(
    root: Path, time: str | None, chosen: Sequence[str], branches: Collection[str], arrays: Collection[str] | None
) -> Iterator[tuple[str, str | None, Any, list[str]]]:
    """Yields the internal mesh and each chosen patch of one mesh: branch, name of the patch, content, what it lacks.

    An array that is asked for by name must be readable.
    """
    mesh = read_poly_mesh(mesh_files(root, time))
    files = {file.name.removesuffix(".gz"): file for file in field_files(root, time)}
    fields, left_out = dict[str, FoamField](), list[str]()
    for name, file in files.items():
        if arrays is None or name in arrays:
            with _unless_needed(arrays, left_out):
                fields[name] = FoamField(file, mesh)
    if "volume" in branches and mesh.num_cells:
        dataset = mesh.cells()
        for name, field in fields.items():
            with _unless_needed(arrays, left_out):
                dataset.cell_data[name] = field.cells()
        yield "volume", None, dataset, left_out
    for patch in chosen if "surface" in branches else ():
        if patch in mesh.patches and mesh.patches[patch].num_faces:
            dataset = mesh.surface(mesh.patches[patch])
            for name, field in fields.items():
                with _unless_needed(arrays, left_out):
                    dataset.cell_data[name] = field.faces(patch)
            yield "surface", patch, dataset, left_out


@contextmanager
def _unless_needed(arrays: Collection[str] | None, left_out: list[str]) -> Iterator[None]:
    """Notes an error in place of raising it, where no array is asked for by name."""
    try:
        yield
    except ValueError as error:
        if arrays is not None:
            raise
        left_out.append(str(error))


def _native_patches(path: Path, selection: FoamSelection) -> dict[str, tuple[str | None, int | None]]:
    """Returns the types and the numbers of faces; those of the processors are added."""
    patches: dict[str, tuple[str | None, int | None]] = {}
    time = foam_time(path, selection)
    for root in roots_at(path, selection):
        try:
            file = mesh_files(root, time)["boundary"]
        except ValueError:  # reading names all files that are missing
            continue
        for name, patch in read_patches(file).items():
            patches[name] = patch.kind, patch.num_faces + (patches.get(name, (None, 0))[1] or 0)
    return patches


def _is_wall(kind: str | None) -> bool:
    """Returns whether the type of a patch is, or is derived from, that of a wall, as `mappedWall`; or is unknown."""
    return kind is None or kind.lower().endswith("wall")


def _chosen_patches(path: Path, kinds: Mapping[str, str | None], patterns: Collection[str]) -> set[str]:
    if not patterns:
        if len(kinds) > 1 and None in kinds.values():
            raise ValueError(
                f"{path}: the files do not say which patches are walls: choose with --surface-patches from "
                f"{', '.join(kinds)}"
            )
        return {name for name, kind in kinds.items() if _is_wall(kind)}
    return chosen_names(path, kinds, patterns, kind="patch")


def _vtk_files(path: Path, selection: FoamSelection) -> VtkFiles:
    return vtk_times(path)[foam_time(path, selection) or ""]


def _vtk_patches(path: Path, selection: FoamSelection) -> dict[str, tuple[str | None, int | None]]:
    return dict.fromkeys(_vtk_files(path, selection).patches, (None, None))
