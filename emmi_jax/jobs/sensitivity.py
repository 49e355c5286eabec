"""`emmi-jax sensitivity`: read a surface, differentiate, write it with the gradient, draw where to push it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.design.coefficients import drag, lift, side_force
from emmi_jax.design.derivatives import sensitivity
from emmi_jax.design.functionals import Functional
from emmi_jax.design.normal_part import NormalPart, normal_part
from emmi_jax.design.problem import Sensitivity
from emmi_jax.design.surface import Surface, read_surface
from emmi_jax.files.atomic import check_space, make_folder, write_json
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.meshes import PRESSURES, ForceReference, output_name, query_mesh
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.predict_meshes import check_outputs
from emmi_jax.jobs.progress import ProgressBar, print_paths, warn_few_anchors, warn_open, warn_outside
from emmi_jax.meshes.mesh import write_mesh
from emmi_jax.points import PointSet

FUNCTIONALS: dict[str, Callable[..., Functional]] = {"drag": drag, "lift": lift, "side_force": side_force}
DEFAULT_SMOOTHING = 0.02
"""Length to smooth over, as a share of the longest side of the surface."""

_PICTURE_LABEL = "change of {name} per length and area\nred: push in, blue: pull out"


@dataclass(frozen=True, kw_only=True)
class SensitivityJob:
    """What to differentiate.

    Args:
        surface: Mesh file of the surface.
        out: Folder for the surface with its gradient, a picture and `sensitivity.json`; made if it is missing.
        functional: A key of `FUNCTIONALS`.
        reference: What forces are divided by.
        geometry: A surface that shows the geometry to the model; by default the surface itself.
        volume: A mesh to draw the anchors of the branch ``volume`` from, unless the run stores them.
        smoothing: Length to smooth over, in the unit of the mesh; by default `DEFAULT_SMOOTHING` of the longest side.
        allow_open: Whether surfaces may have open edges, so that their outward side is a guess.
        seed: Seed of the draws.
        chunk_size: Points per call of the model.
    """

    surface: Path
    out: Path
    functional: str
    reference: ForceReference
    geometry: Path | None = None
    volume: Path | None = None
    smoothing: float | None = None
    allow_open: bool = False
    seed: int = 0
    chunk_size: ChunkSize = "auto"


def differentiate_surface(job: SensitivityJob, surrogate: Surrogate, *, console: Console) -> None:
    """Computes where to push a surface and writes everything to a folder.

    Args:
        job: What to differentiate.
        surrogate: What predicts.
        console: Where progress, warnings and results are printed.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is unusable or does not fit the model, or a mesh would be overwritten.
        UnwritableFileError: The disk is full, or too small for the output.
    """
    _check(job, surrogate)
    surface = read_surface(job.surface, require_closed=not job.allow_open)
    geometry = None if job.geometry is None else read_surface(job.geometry, require_closed=False)
    points = _points(job, surrogate)
    warn_open(job.surface, surface.num_open_edges, console)
    warn_outside(surrogate.normalizer, job.surface, surface.vertices, console)
    warn_few_anchors(surrogate.sampling, {GEOMETRY_BRANCH: surface.corners}, console)
    check_space(job.out, sum(map(_largest_output, filter(None, (surface, geometry)))))
    functional = FUNCTIONALS[job.functional](
        speed=job.reference.speed, area=job.reference.area, density=job.reference.density
    )
    # Forward and back again.
    with ProgressBar(console, 2 * surface.num_cells) as progress:
        result = sensitivity(
            surrogate,
            surface,
            functional,
            geometry=geometry,
            points=points,
            seed=job.seed,
            chunk_size=job.chunk_size,
            advance=progress.advance,
        )
    length = _smoothing_length(job, surface)
    paths = _write(job, result, surface, geometry, length)
    console.print(f"{job.functional}: {result.value:z.5f}", highlight=False)
    print_paths(paths, console)


def _check(job: SensitivityJob, surrogate: Surrogate) -> None:
    """Refuses what cannot work while there is nothing to clean up."""
    config = surrogate.model.config
    if job.functional not in FUNCTIONALS:
        raise ValueError(f"functional must be one of {', '.join(FUNCTIONALS)}, got {job.functional!r}")
    if GEOMETRY_BRANCH not in config.fields:
        raise ValueError(f"the model has the branches {list(config.branches)}, none of which is {GEOMETRY_BRANCH!r}")
    names = config.fields[GEOMETRY_BRANCH]
    if not set(PRESSURES) & set(names):
        raise ValueError(f"forces need a field {' or '.join(PRESSURES)}; the branch 'surface' has {list(names)}")
    if job.geometry is not None and not config.has_geometry:
        raise ValueError(f"{job.geometry}: the model has no geometry branch to show it to")
    if job.smoothing is not None and not 0 <= job.smoothing < np.inf:
        raise ValueError(f"smoothing must be 0 or a positive length, got {job.smoothing}")
    stored = {} if surrogate.context is None else surrogate.context.anchors
    given = {GEOMETRY_BRANCH, *stored, *(() if job.volume is None else ("volume",))}
    for branch in config.branches:
        if branch not in given:
            raise ValueError(f"the model needs a mesh for the branch {branch!r} too, to draw its anchors from")
    if job.volume is not None and "volume" not in config.branches:
        raise ValueError(f"{job.volume}: the model has no branch 'volume'")
    importlib.import_module("matplotlib")
    check_outputs(job.out, [job.surface, *filter(None, (job.geometry,))])


def _points(job: SensitivityJob, surrogate: Surrogate) -> dict[str, PointSet]:
    if job.volume is None:
        return {}
    mesh = query_mesh(job.volume)
    is_weighted = surrogate.sampling.method == "weighted"
    return {"volume": PointSet(mesh.position, {}, mesh.mesh.cell_sizes(mesh.location) if is_weighted else None)}


def _smoothing_length(job: SensitivityJob, surface: Surface) -> float:
    if job.smoothing is not None:
        return job.smoothing
    return DEFAULT_SMOOTHING * float(np.ptp(surface.vertices, axis=0).max())


def _write(
    job: SensitivityJob, result: Sensitivity, surface: Surface, geometry: Surface | None, length: float
) -> list[Path]:
    from emmi_jax.plots.meshes import draw_surface_push

    name = f"d_{job.functional}"
    part = normal_part(surface, result.vertices, length=length)
    make_folder(job.out)
    paths = [_write_mesh(job.out, surface, _arrays(name, result.vertices, part))]
    if geometry is not None and result.geometry is not None:
        own = normal_part(geometry, result.geometry, length=length)
        paths.append(_write_mesh(job.out, geometry, _arrays(name, result.geometry, own)))
    words = job.functional.replace("_", " ")
    title = f"Where to push the surface to lower its {words} of {result.value:z.4f}"
    dataset: Any = None if surface.mesh is None else surface.mesh.dataset
    label = _PICTURE_LABEL.format(name=words)
    paths.append(draw_surface_push(job.out / f"{name}.png", title, dataset, part.smoothed, label))
    summary = {
        job.functional: result.value,
        "area": job.reference.area,
        "speed": job.reference.speed,
        "density": job.reference.density,
        "smoothing_length": length,
        "seed": job.seed,
    }
    write_json(job.out / "sensitivity.json", summary)
    return [*paths, job.out / "sensitivity.json"]


def _arrays(name: str, gradient: Any, part: NormalPart) -> dict[str, Any]:
    values = {name: gradient, f"{name}_normal": part.raw, f"{name}_normal_smoothed": part.smoothed}
    return {key: array.astype(np.float32) for key, array in values.items()}


def _write_mesh(folder: Path, surface: Surface, arrays: dict[str, Any]) -> Path:
    if surface.mesh is None:
        raise ValueError("the surface was not read from a file")
    path = folder / output_name(surface.mesh.path)
    write_mesh(path, surface.mesh, arrays, location="points")
    return path


def _largest_output(surface: Surface) -> int:
    size = 0 if surface.mesh is None else 1024 * surface.mesh.dataset.GetActualMemorySize()
    return int(size) + 5 * np.dtype(np.float32).itemsize * len(surface.vertices)
