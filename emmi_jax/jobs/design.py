"""Shared by `emmi-jax sensitivity` and `emmi-jax optimize`: a surface, a functional of forces, and checks of both."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.config.design import DesignJob
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.deploy.features import GEOMETRY
from emmi_jax.design.coefficients import drag, lift, moment, side_force
from emmi_jax.design.features import refuse_moving_features
from emmi_jax.design.functionals import Functional
from emmi_jax.design.surface import Surface, read_surface
from emmi_jax.files.outputs import check_output
from emmi_jax.inference.mesh_features import feature_sources, geometry_with_features, with_features
from emmi_jax.inference.meshes import check_case
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.mesh_outputs import check_outputs
from emmi_jax.jobs.predict import force_reference
from emmi_jax.jobs.progress import print_left_out, print_sides, warn_few_anchors, warn_outside
from emmi_jax.meshes.branch_mesh import BranchMesh, query_mesh
from emmi_jax.meshes.forces import ForceReference, force_fields
from emmi_jax.points import Array, PointSet

FUNCTIONALS: dict[str, Callable[..., Functional]] = {
    "drag": drag,
    "lift": lift,
    "side_force": side_force,
    "moment": moment,
}


def design_reference(job: DesignJob) -> ForceReference:
    """Returns what the forces of a job are divided by.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: The area is missing, or a value is impossible.
    """
    reference = force_reference(job, job.speed)
    if reference is None:
        raise ValueError("forces need --speed and one of --area and --reference")
    return reference


def coefficient(job: DesignJob, name: str) -> Functional:
    """Returns the functional of this name."""
    reference = design_reference(job)
    options: dict[str, Any] = {"length": job.length, "about": job.about} if name == "moment" else {}
    return FUNCTIONALS[name](speed=reference.speed, area=reference.area, density=reference.density, **options)


def known_coefficients(job: DesignJob) -> list[str]:
    """Returns the names of those that can be computed: without a length there is no moment."""
    return [name for name in FUNCTIONALS if name != "moment" or job.length is not None]


class DesignMeshes(NamedTuple):
    """Input of a job: the surface, the mesh of the geometry if it is another one, and points by branch."""

    surface: Surface
    geometry: Surface | None
    points: dict[str, PointSet]
    features: dict[str, Array]


def check_design(job: DesignJob, surrogate: Surrogate) -> None:
    """Refuses what cannot work while there is nothing to clean up.

    Raises:
        ValueError: The model lacks a branch or field, the functional is unknown, or a mesh would be overwritten.
        ImportError: matplotlib is not installed.
    """
    config = surrogate.model.config
    if job.functional not in FUNCTIONALS:
        raise ValueError(f"functional must be one of {', '.join(FUNCTIONALS)}, got {job.functional!r}")
    if job.functional not in known_coefficients(job):
        raise ValueError("a moment needs --length, its reference length")
    coefficient(job, job.functional)
    if GEOMETRY_BRANCH not in config.fields:
        raise ValueError(f"the model has the branches {list(config.branches)}, none of which is {GEOMETRY_BRANCH!r}")
    force_fields(config.fields[GEOMETRY_BRANCH])
    check_case(surrogate, {GEOMETRY_BRANCH, *(() if job.volume is None else ("volume",))}, job.geometry)
    if job.volume is not None and "volume" not in config.branches:
        raise ValueError(f"{job.volume}: the model has no branch 'volume'")
    refuse_moving_features(surrogate.features)
    importlib.import_module("matplotlib")
    check_outputs(job.out, [job.surface, *filter(None, (job.geometry,))])
    written = [f"{path.stem}.stl" for path in (job.surface, job.geometry) if path is not None]
    check_output(job.out, [job.surface, job.geometry, job.volume], written)


def read_design(
    job: DesignJob,
    surrogate: Surrogate,
    sources: Sources,
    console: Console,
    foam: FoamSelection = DEFAULT_SELECTION,
) -> DesignMeshes:
    """Reads the meshes of a job with their features, and warns of what makes its results doubtful.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is unusable, or the surface is open but must not be.
    """
    surface = read_surface(job.surface, require_closed=not job.allow_open, selection=foam)
    geometry = None if job.geometry is None else read_surface(job.geometry, require_closed=False, selection=foam)
    taken, points, features = surrogate.features, {}, {}
    if job.volume is not None:
        read = query_mesh(job.volume, "volume", foam, inputs=feature_sources("volume", taken, sources))
        mesh = with_features({"volume": read}, taken, sources, None)["volume"]
        is_weighted = surrogate.sampling.method == "weighted"
        points["volume"] = mesh.points(with_cell_sizes=is_weighted)
    if surface.mesh is not None:
        cells = {GEOMETRY_BRANCH: BranchMesh(surface.mesh, "cells", surface.centers(), {})}
        own = with_features(cells, taken, sources, None)[GEOMETRY_BRANCH].features
        features = {} if own is None else {GEOMETRY_BRANCH: own}
        shown = geometry_with_features(cells, taken, sources, None, has_context=False)
        features |= {} if shown is None or shown.features is None else {GEOMETRY: shown.features}
    for part in (surface, geometry):
        if part is not None and part.mesh is not None:
            print_left_out(part.mesh.left_out, console, part.mesh.path)
    print_sides({str(job.surface): surface.side}, console)
    warn_outside(surrogate.normalizer, job.surface, surface.vertices, console)
    warn_few_anchors(surrogate.sampling, {GEOMETRY_BRANCH: surface.corners}, console)
    return DesignMeshes(surface, geometry, points, features)


def largest_output(surface: Surface, num_channels: int) -> int:
    """Returns how many bytes a surface with so many numbers more for each point and cell takes at most."""
    size = 0 if surface.mesh is None else 1024 * surface.mesh.dataset.GetActualMemorySize()
    return int(size) + 4 * num_channels * (len(surface.vertices) + surface.num_cells)
