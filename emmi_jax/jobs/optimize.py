"""`emmi-jax optimize`: move a surface by a lattice of control points until a coefficient is lower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.config.design import OptimizationJob
from emmi_jax.data.familiarity import Familiarity
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.design.draws import draw_case
from emmi_jax.design.familiar import keep_familiar
from emmi_jax.design.morphed import MorphedCase
from emmi_jax.design.morphs import Lattice
from emmi_jax.design.multi_point import MultiPointCase
from emmi_jax.design.normal_part import vertex_normals
from emmi_jax.design.optimization import Optimization, Step, optimize
from emmi_jax.design.penalties import Penalty, keep_clearance, keep_volume
from emmi_jax.design.surface import Surface
from emmi_jax.files.atomic import JsonDict, atomic_path, check_space, make_folder, write_csv, write_json
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.conditions import Weighted, under_condition, weighted_conditions
from emmi_jax.jobs.design import (
    DesignMeshes,
    check_design,
    coefficient,
    design_reference,
    known_coefficients,
    largest_output,
    read_design,
)
from emmi_jax.jobs.familiarity import report_familiarity
from emmi_jax.jobs.progress import ProgressBar, new_table, print_paths, warn
from emmi_jax.meshes.branch_mesh import output_name
from emmi_jax.meshes.mesh import Mesh, write_mesh
from emmi_jax.runs.calibration import read_familiarity
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run

PENALTIES = {"volume": keep_volume, "clearance": keep_clearance}
"""Names for `--keep` that serve any model."""
FAMILIAR = "familiar"
"""Name for `--keep` of the distance from the training cases."""

_PICTURE_LABEL = "displacement along the normal (mesh unit)\nred: pushed in, blue: pulled out"


def run_job(job: OptimizationJob, *, console: Console) -> None:
    """Runs `emmi-jax optimize`; see `optimize_surface`."""
    design_reference(job)  # what is missing there costs no time to load a run
    surrogate, config = load_run(job.run), RunDirectory.open(job.run).read_config()
    sources, foam = config.field_sources(), config.foam(None, None)
    familiarity = read_familiarity(job.run, surrogate)
    if familiarity is None and FAMILIAR in job.keep:
        raise ValueError(f"--keep familiar needs a run that knows its training cases: emmi-jax calibrate {job.run}")
    if len(job.condition) > 1:
        conditions = weighted_conditions(surrogate, job.condition, console)
        optimize_surface(job, surrogate, conditions, sources, familiarity=familiarity, foam=foam, console=console)
    else:
        under = under_condition(surrogate, job.condition[0] if job.condition else None, console)
        optimize_surface(job, under, sources=sources, familiarity=familiarity, foam=foam, console=console)


def optimize_surface(
    job: OptimizationJob,
    surrogate: Surrogate,
    conditions: Weighted = (),
    sources: Sources | None = None,
    *,
    familiarity: Familiarity | None = None,
    foam: FoamSelection = DEFAULT_SELECTION,
    console: Console,
) -> None:
    """Moves a surface until a coefficient is lower, and writes the new shape and how it got there to a folder.

    Args:
        job: What to lower.
        surrogate: What predicts.
        conditions: Weights and conditions, of which the mean is lowered; none for that of the surrogate.
        sources: The arrays that the run was trained on, by branch and name.
        familiarity: What cases are usual; None for nothing about it.
        foam: The parts of files of several meshes, as in training.
        console: Where progress, warnings and results are printed.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A file is unusable or does not fit the model, an option is out of range, or a mesh would be
            overwritten.
        UnwritableFileError: The disk is full, or too small for the output.
    """
    check_design(job, surrogate)
    penalties = _penalties(job)
    meshes = read_design(job, surrogate, sources or {}, console, foam)
    surface, geometry, points, features = meshes
    channels = 6 + 2 * sum(surrogate.model.config.fields["surface"].values())
    check_space(job.out, 2 * sum(largest_output(mesh, channels) for mesh in (surface, geometry) if mesh is not None))
    lattice = Lattice.around(surface if geometry is None else _joined(surface, geometry), job.lattice)
    options = {"points": points, "features": features, "seed": job.seed, "chunk_size": job.chunk_size or "auto"}
    arguments = surrogate, surface, coefficient(job, job.functional), lattice, geometry, options
    case = MultiPointCase(*arguments, conditions=conditions) if conditions else MorphedCase(*arguments)
    with ProgressBar(console, job.steps, unit="steps") as progress:

        def advance(step: Step) -> None:
            progress.advance(1, f"{job.functional} {step.value:z.5f}  moved {step.displacement:.4g}")

        result = optimize(
            case,
            lattice.zeros(),
            max_displacement=job.max_displacement,
            steps=job.steps,
            penalties=penalties,
            case_penalties=[keep_familiar(familiarity)] if familiarity is not None and FAMILIAR in job.keep else [],
            symmetry=job.symmetry,
            advance=advance,
        )
    if result.stopped:
        warn(f"{result.stopped}: stopped", console)
    coefficients = _coefficients(job, surrogate, meshes, case, result)
    usual = {} if familiarity is None else _familiarity(familiarity, case, result, console)
    paths = _write(job, case, lattice, result, {"coefficients": coefficients, **usual}, console)
    rows = [[name, *(f"{value:z.5f}" for value in values.values())] for name, values in coefficients.items()]
    console.print(new_table("Predicted coefficients", ["coefficient", "before", "after"], rows))
    print_paths(paths, console)


def _penalties(job: OptimizationJob) -> list[Penalty]:
    """Checks the options that the library would refuse only after reading the meshes."""
    if unknown := [name for name in job.keep if name not in (*PENALTIES, FAMILIAR)]:
        raise ValueError(f"keep must be among {', '.join((*PENALTIES, FAMILIAR))}, got {unknown[0]!r}")
    if len(job.lattice) != 3 or min(job.lattice) < 2:
        raise ValueError(f"lattice must be three numbers of control points, each at least 2, got {job.lattice}")
    if not 0 < job.max_displacement < np.inf:
        raise ValueError(f"max_displacement must be positive, got {job.max_displacement}")
    if job.symmetry not in (None, "x", "y", "z"):
        raise ValueError(f"symmetry must be x, y or z, got {job.symmetry!r}")
    return [PENALTIES[name]() for name in job.keep if name != FAMILIAR]


def _joined(surface: Surface, geometry: Surface) -> Surface:
    """Both meshes, for the box around them."""
    return Surface(np.concatenate([surface.vertices, geometry.vertices]), surface.corners, surface.num_corners)


def _coefficients(
    job: OptimizationJob, surrogate: Surrogate, meshes: DesignMeshes, case: MorphedCase, result: Optimization
) -> dict[str, dict[str, float]]:
    """Returns every coefficient before and after, on the same draws, which no step has seen; means for the one lowered.

    `optimize` counts its draws upwards from the seed of the job.
    """
    seed = job.seed + job.steps + 1
    surface, geometry, points, features = meshes
    unseen = draw_case(surrogate, surface, geometry=geometry, points=points, features=features, seed=seed)
    table = {job.functional: {"before": float(result.before.mean()), "after": float(result.after.mean())}}
    for name in known_coefficients(job):
        if name == job.functional:
            continue
        other = replace(case, functional=coefficient(job, name), draws=unseen)
        start = np.zeros_like(result.parameters)
        table[name] = {"before": other.value(start), "after": other.value(result.parameters)}
    return table


def _familiarity(familiarity: Familiarity, case: MorphedCase, result: Optimization, console: Console) -> JsonDict:
    """Says how far the first and the last shape are from the training cases."""
    start = np.zeros_like(result.parameters)
    return {
        "familiarity": {
            when: report_familiarity(familiarity, case.encoded(parameters), console, what=when)
            for when, parameters in (("before", start), ("after", result.parameters))
        }
    }


def _write(
    job: OptimizationJob,
    case: MorphedCase,
    lattice: Lattice,
    result: Optimization,
    summary: JsonDict,
    console: Console,
) -> list[Path]:
    from emmi_jax.plots.meshes import draw_surface_push

    make_folder(job.out)
    surface, start = result.surface, np.zeros_like(result.parameters)
    displacement = surface.vertices - case.surface.vertices
    dataset = surface.dataset()
    dataset.point_data["displacement"] = displacement.astype(np.float32)
    fields: dict[str, Any] = {}
    for when, parameters in (("before", start), ("after", result.parameters)):
        fields |= {f"{when}_{name}": values for name, values in case.fields(parameters).items()}
    paths = [job.out / output_name(job.surface)]
    write_mesh(paths[0], Mesh(job.surface, dataset), fields, location="cells")
    paths.append(_write_stl(job.out / f"{job.surface.stem}.stl", surface))
    if (step := float(np.spacing(np.float32(np.abs(surface.vertices).max())))) > job.max_displacement / 100:
        warn(
            f".stl files hold float32, which this far from the origin has steps of {step:.2g} "
            f"(a vertex may move by {job.max_displacement:g}): {paths[0].name} is exact",
            console,
        )
    moved = case.moved_geometry(result.parameters)
    if moved is not None and job.geometry is not None:
        paths.append(_write_stl(job.out / f"{job.geometry.stem}.stl", moved))
    along = np.einsum("vn,vn->v", displacement, vertex_normals(case.surface))
    before, after = summary["coefficients"][job.functional].values()
    title = f"How the surface moved: {job.functional.replace('_', ' ')} {before:z.4f} → {after:z.4f}"
    paths.append(draw_surface_push(job.out / "displacement.png", title, dataset, -along, _PICTURE_LABEL))
    numbered = ([number, *step] for number, step in enumerate(result.history, start=1))
    write_csv(job.out / "history.csv", [["step", *Step._fields], *numbered])
    summary |= {
        "before": result.before.tolist(),
        "after": result.after.tolist(),
        "stopped": result.stopped,
        "lattice": {"low": lattice.low, "high": lattice.high, "displacements": result.parameters.tolist()},
    }
    write_json(job.out / "optimization.json", summary)
    return [*paths, job.out / "history.csv", job.out / "optimization.json"]


def _write_stl(path: Path, surface: Surface) -> Path:
    with atomic_path(path) as partial:
        surface.dataset().triangulate().save(partial)
    return path
