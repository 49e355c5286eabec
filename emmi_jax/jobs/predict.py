"""`emmi-jax predict`: at points, on meshes, or in all cells of a case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from emmi_jax.config.jobs import PredictionJob, ReferenceOptions
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.intervals import Certainty
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.conditions import under_condition
from emmi_jax.jobs.openfoam_case import FoamJob
from emmi_jax.jobs.predict_meshes import MeshJob, predict_meshes
from emmi_jax.jobs.predict_openfoam import write_openfoam
from emmi_jax.jobs.predict_points import PointJob, predict_points
from emmi_jax.jobs.predict_sweep import parse_sweep, predict_sweep
from emmi_jax.meshes.forces import ForceReference
from emmi_jax.meshes.openfoam import case_folder
from emmi_jax.meshes.parts import has_parts
from emmi_jax.meshes.reference_area import read_reference_area
from emmi_jax.runs.calibration import read_calibration, read_familiarity
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run


def run_job(job: PredictionJob, *, console: Console) -> None:
    """Runs `emmi-jax predict`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Options contradict one another, or the run or a file is unusable; nothing is written.
    """
    given = {"surface": job.surface, "volume": job.volume}
    meshes = {name: case_folder(path) for name, path in given.items() if path is not None}
    geometry = None if job.geometry is None else case_folder(job.geometry)
    forces = force_reference(job, job.speed)
    _check_options(job, meshes, has_forces=forces is not None)
    sweep = None if job.condition_sweep is None else parse_sweep(job.condition_sweep)
    if sweep is not None and (forces is None or "surface" not in meshes or job.compare or job.figures):
        raise ValueError(
            "--condition-sweep gives coefficients: it needs --surface, --speed and an area, and no figures"
        )
    if sweep is not None and (job.repeats is not None or job.interval is not None):
        raise ValueError("--condition-sweep gives coefficients alone, without --repeats and --interval")
    target = job.out if job.write_openfoam is None else job.write_openfoam
    if target is None:
        raise ValueError("expected --out, or --write-openfoam")
    surrogate, config = load_run(job.run, job.checkpoint), RunDirectory.open(job.run).read_config()
    if sweep is None:
        surrogate = under_condition(surrogate, job.condition, console)
    certainty = _certainty(job, surrogate)
    foam = config.foam(job.surface_patches, job.time)
    chunk_size: ChunkSize = job.chunk_size or "auto"
    if job.points is not None:
        at_points = PointJob(points=job.points, out=target, chunk_size=chunk_size, certainty=certainty)
        predict_points(at_points, surrogate, console=console)
    elif job.write_openfoam is not None:
        case = FoamJob(
            case=target,
            geometry=geometry,
            foam=foam,
            time=job.write_time,
            overwrite=job.overwrite,
            chunk_size=chunk_size,
        )
        write_openfoam(case, surrogate, config.field_sources(), console=console)
    else:
        on_meshes = MeshJob(
            meshes=meshes,
            out=target,
            geometry=geometry,
            compare=job.compare,
            fields=job.fields,
            forces=forces,
            foam=foam,
            chunk_size=chunk_size,
            figures=job.figures,
            certainty=certainty,
            mask_nan=config.mask_nan,
        )
        if sweep is not None and forces is not None:
            predict_sweep(on_meshes, forces, surrogate, config.field_sources(), sweep, job.condition, console=console)
        else:
            predict_meshes(on_meshes, surrogate, config.field_sources(), console=console)


def _check_options(job: PredictionJob, meshes: Mapping[str, Path], *, has_forces: bool) -> None:
    """Refuses inputs that contradict one another."""
    for_meshes = bool(meshes or job.geometry or job.compare or job.fields or job.figures or has_forces)
    if job.write_openfoam is not None:
        if job.points or meshes or job.out or job.compare or job.fields or job.figures or has_forces:
            raise ValueError("--write-openfoam takes no other input or output than --geometry and --surface-patches")
        if job.repeats is not None or job.interval is not None:
            raise ValueError("--write-openfoam writes fields alone, without --repeats and --interval")
    elif (job.points is None) == (not meshes) or (job.points is not None and for_meshes):
        raise ValueError("expected either --points, or --surface and --volume with their options")
    sources = (*meshes.values(), job.geometry, job.write_openfoam)
    if (job.surface_patches or job.time) and not any(
        path is not None and (path.is_dir() or has_parts(path)) for path in sources
    ):
        raise ValueError(
            "--surface-patches and --time are for OpenFOAM cases and files of several meshes, and none is given"
        )


def _certainty(job: PredictionJob, surrogate: Surrogate) -> Certainty:
    """Returns how many draws to average over, as calibrated where intervals are asked for.

    Raises:
        ValueError: The run is not calibrated, or otherwise than asked for, or the level needs more cases.
    """
    familiarity = read_familiarity(job.run, surrogate)
    if job.interval is None:
        return Certainty(job.repeats or 1, familiarity=familiarity)
    calibration = read_calibration(job.run, surrogate)
    if job.repeats not in (None, calibration.repeats):
        raise ValueError(f"the run was calibrated with --repeats {calibration.repeats}, got {job.repeats}")
    return Certainty(calibration.repeats, calibration.intervals(job.interval), familiarity)


def force_reference(options: ReferenceOptions, speed: float | None) -> ForceReference | None:
    """Returns what forces are divided by; None if no option asks for them.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: Speed or area is missing or impossible, or there are two areas.
    """
    given = {"--area": options.area, "--reference": options.reference, "--speed": speed, "--density": options.density}
    given = {option: value for option, value in given.items() if value is not None}
    if not given:
        return None
    area, table = options.area, options.reference
    if speed is None or (area is None) == (table is None):
        raise ValueError(f"forces need --speed and one of --area and --reference, got {', '.join(given)}")
    if area is None and table is not None:
        area = read_reference_area(table)
    return ForceReference(area=area or 0.0, speed=speed, density=1.0 if options.density is None else options.density)
