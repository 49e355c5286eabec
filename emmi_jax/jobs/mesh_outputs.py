"""Meshes with predicted fields: files, metrics and figures."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emmi_jax.data.metrics import Metrics, field_metrics
from emmi_jax.deploy.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.encoded_set import field_columns
from emmi_jax.files.atomic import make_folder
from emmi_jax.files.outputs import check_output
from emmi_jax.inference.meshes import FieldArrays
from emmi_jax.meshes.branch_mesh import BranchMesh, output_name
from emmi_jax.meshes.mesh import Mesh, write_mesh
from emmi_jax.meshes.parts import has_parts, linked_files
from emmi_jax.meshes.surfaces import is_surface, surface_dataset
from emmi_jax.points import Array, is_unknown

FIGURES = ("png", "html")


def mesh_metrics(predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh]) -> dict[str, Metrics]:
    """Compares predictions with the arrays of the meshes; returns the metrics by "branch/field"."""
    return {
        f"{branch}/{name}": field_metrics(predicted[branch][name], reference)
        for branch, mesh in meshes.items()
        for name, reference in mesh.reference.items()
    }


def num_unknown(meshes: Mapping[str, BranchMesh]) -> dict[str, int]:
    """Returns at how many points the arrays of the meshes are NaN, by "branch/field", where they are at some."""
    unknown = {
        f"{branch}/{name}": int(np.count_nonzero(is_unknown(reference)))
        for branch, mesh in meshes.items()
        for name, reference in mesh.reference.items()
    }
    return {name: number for name, number in unknown.items() if number}


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
    """Returns how many bytes of the disk `write_predictions` takes at most, while the fields are on it, too.

    Args:
        meshes: Meshes by branch.
        fields: Number of channels by branch and field.
        num_columns: Arrays for each field: itself, deviations and bounds.
    """
    total = 0
    for branch, mesh in meshes.items():
        channels = 2 * num_columns * sum(fields[branch].values()) + sum(fields[branch][name] for name in mesh.reference)
        new_arrays = np.dtype(np.float32).itemsize * channels * len(mesh.position)
        total += 1024 * mesh.mesh.dataset.GetActualMemorySize() + new_arrays
    return total


def draw_figures(
    folder: Path, predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh], geometry: Array | None
) -> list[Path]:
    """Draws every field of every mesh around the surface mesh, or else around the geometry."""
    from emmi_jax.plots.meshes import MeshFields, draw_mesh_fields

    if GEOMETRY_BRANCH in meshes:
        geometry = meshes[GEOMETRY_BRANCH].position
    paths = []
    for branch, (mesh, location, position, reference, _) in meshes.items():
        fields = MeshFields(branch, _drawn(mesh), location, position, predicted[branch], reference)
        paths += draw_mesh_fields(fields, folder, geometry=geometry)
    return paths


def write_pages(
    folder: Path, predicted: Mapping[str, FieldArrays], meshes: Mapping[str, BranchMesh], geometry: Array | None
) -> list[Path]:
    """Writes a page per mesh that shows its fields in 3-D, with planes around the surface mesh or the geometry."""
    from emmi_jax.plots.mesh_pages import write_mesh_page
    from emmi_jax.plots.meshes import MeshFields

    surface = _drawn(meshes[GEOMETRY_BRANCH].mesh) if GEOMETRY_BRANCH in meshes else None
    if GEOMETRY_BRANCH in meshes:
        geometry = meshes[GEOMETRY_BRANCH].position
    return [
        write_mesh_page(
            MeshFields(branch, _drawn(mesh.mesh), mesh.location, mesh.position, predicted[branch], mesh.reference),
            folder,
            geometry=geometry,
            surface=surface if surface is not None and surface.IsA("vtkPolyData") else None,
        )
        for branch, mesh in meshes.items()
    ]


def _drawn(mesh: Mesh) -> Any:
    return surface_dataset(mesh) if is_surface(mesh) else mesh.dataset


def check_figures(kind: str | None) -> None:
    """Refuses figures of another kind, or those that lack a package.

    Raises:
        ValueError: The kind is unknown.
        ImportError: A package is not installed.
    """
    if kind is not None and kind not in FIGURES:
        raise ValueError(f"--figures must be {' or '.join(FIGURES)}, got {kind!r}")
    if kind is not None:
        importlib.import_module("matplotlib")
    if kind == "html" and importlib.util.find_spec("plotly") is None:
        raise ImportError("--figures html needs a package: pip install plotly")


def check_outputs(folder: Path, paths: list[Path], branches: Sequence[str] = ()) -> None:
    """Refuses a folder where meshes with fields would replace one another or what is read, the files of parts too.

    Raises:
        ValueError: They would, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder")
    names = list(map(output_name, paths, branches) if branches else map(output_name, paths))
    if len(set(names)) < len(names):
        raise ValueError(f"two meshes would become the same file {folder / names[0]}")
    linked = [file for path in paths if path.is_file() and has_parts(path) for file in linked_files(path)]
    check_output(folder, [*paths, *linked], names)


DRAW = {"png": draw_figures, "html": write_pages}
