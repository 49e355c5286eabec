"""`emmi-jax sensitivity`: read a surface, differentiate, write it with the gradient, draw where to push it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.config.design import SensitivityJob
from emmi_jax.data.familiarity import Familiarity
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.design.derivatives import sensitivity
from emmi_jax.design.normal_part import NormalPart, normal_part
from emmi_jax.design.problem import Sensitivity
from emmi_jax.design.surface import Surface
from emmi_jax.files.atomic import JsonDict, check_space, make_folder, write_json
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.conditions import under_condition
from emmi_jax.jobs.design import check_design, coefficient, design_reference, largest_output, read_design
from emmi_jax.jobs.familiarity import report_familiarity
from emmi_jax.jobs.mesh_outputs import check_figures
from emmi_jax.jobs.progress import ProgressBar, print_paths, say
from emmi_jax.meshes.branch_mesh import output_name
from emmi_jax.meshes.mesh import write_mesh
from emmi_jax.runs.calibration import read_familiarity
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run

DEFAULT_SMOOTHING = 0.02
"""Length to smooth over, as a share of the longest side of the surface."""

_PICTURE_LABEL = "change of {name} per length and area\nred: push in, blue: pull out"


def run_job(job: SensitivityJob, *, console: Console) -> None:
    """Runs `emmi-jax sensitivity`; see `differentiate_surface`."""
    design_reference(job)  # what is missing there costs no time to load a run
    surrogate = under_condition(load_run(job.run, job.checkpoint), job.condition, console)
    config = RunDirectory.open(job.run).read_config()
    sources, foam = config.field_sources(), config.foam(None, None)
    familiarity = read_familiarity(job.run, surrogate)
    differentiate_surface(job, surrogate, sources, familiarity=familiarity, foam=foam, console=console)


def differentiate_surface(
    job: SensitivityJob,
    surrogate: Surrogate,
    sources: Sources | None = None,
    *,
    familiarity: Familiarity | None = None,
    foam: FoamSelection = DEFAULT_SELECTION,
    console: Console,
) -> None:
    """Computes where to push a surface and writes everything to a folder.

    Args:
        job: What to differentiate.
        surrogate: What predicts.
        sources: The arrays that the run was trained on, by branch and name.
        familiarity: What cases are usual; None for nothing about it.
        foam: The parts of files of several meshes, as in training.
        console: Where progress, warnings and results are printed.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is unusable or does not fit the model, or a mesh would be overwritten.
        UnwritableFileError: The disk is full, or too small for the output.
    """
    if job.smoothing is not None and not 0 <= job.smoothing < np.inf:
        raise ValueError(f"smoothing must be 0 or a positive length, got {job.smoothing}")
    check_figures(job.figures)
    check_design(job, surrogate)
    surface, geometry, points, features = read_design(job, surrogate, sources or {}, console, foam)
    check_space(job.out, sum(largest_output(mesh, 5) for mesh in (surface, geometry) if mesh is not None))
    # Forward and back again.
    with ProgressBar(console, 2 * surface.num_cells) as progress:
        result = sensitivity(
            surrogate,
            surface,
            coefficient(job, job.functional),
            geometry=geometry,
            points=points,
            features=features,
            seed=job.seed,
            chunk_size=job.chunk_size or "auto",
            advance=progress.advance,
        )
    length = _smoothing_length(job, surface)
    usual: JsonDict | None = None
    if familiarity is not None:
        shown = result.draws.positions(surface, geometry)
        usual = report_familiarity(familiarity, surrogate.encode_draws(1, **shown), console)
    paths = _write(job, result, surface, geometry, length, usual)
    say(console, f"{job.functional}: {result.value:z.5f}")
    units = {name: scale.unit or "unit" for name, scale in surrogate.normalizer.conditions.items()}
    for name, derivative in _by_condition(result).items():
        say(console, f"d {job.functional} / d {name}: {derivative:z.5g} per {units[name]}")
    print_paths(paths, console)


def _smoothing_length(job: SensitivityJob, surface: Surface) -> float:
    if job.smoothing is not None:
        return job.smoothing
    return DEFAULT_SMOOTHING * float(np.ptp(surface.vertices, axis=0).max())


def _write(
    job: SensitivityJob,
    result: Sensitivity,
    surface: Surface,
    geometry: Surface | None,
    length: float,
    familiarity: JsonDict | None,
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
    if job.figures == "html":
        from emmi_jax.plots.mesh_pages import write_push_page

        values = {f"{words}, smoothed": part.smoothed, words: part.raw}
        paths.append(write_push_page(job.out / f"{name}.html", title, dataset, values))
    else:
        paths.append(draw_surface_push(job.out / f"{name}.png", title, dataset, part.smoothed, label))
    summary: JsonDict = {
        job.functional: result.value,
        **dataclasses.asdict(design_reference(job)),
        "smoothing_length": length,
        "seed": job.seed,
    }
    if by_condition := _by_condition(result):
        summary[f"d_{job.functional}"] = by_condition
    if familiarity is not None:
        summary["familiarity"] = familiarity
    write_json(job.out / "sensitivity.json", summary)
    return [*paths, job.out / "sensitivity.json"]


def _by_condition(result: Sensitivity) -> dict[str, float]:
    """Returns the derivatives by the conditions of the run, per unit of each."""
    if not isinstance(result.condition, Mapping):
        return {}
    return {name: value for name, value in result.condition.items() if isinstance(value, float)}


def _arrays(name: str, gradient: Any, part: NormalPart) -> dict[str, Any]:
    values = {name: gradient, f"{name}_normal": part.raw, f"{name}_normal_smoothed": part.smoothed}
    return {key: array.astype(np.float32) for key, array in values.items()}


def _write_mesh(folder: Path, surface: Surface, arrays: dict[str, Any]) -> Path:
    if surface.mesh is None:
        raise ValueError("the surface was not read from a file")
    path = folder / output_name(surface.mesh.path)
    write_mesh(path, surface.mesh, arrays, location="points")
    return path
