"""`emmi-jax predict --condition-sweep`: force coefficients of a surface over a range of a condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console

from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.deploy.encoded_set import collect
from emmi_jax.files.atomic import make_folder, write_csv
from emmi_jax.inference.mesh_features import geometry_with_features
from emmi_jax.inference.meshes import check_forces, geometry_points, predict_on_meshes, surface_forces
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.conditions import under_values
from emmi_jax.jobs.predict_meshes import MeshJob, check_mesh_job, read_meshes, shown_geometry
from emmi_jax.jobs.progress import ProgressBar, new_table, print_paths
from emmi_jax.meshes.forces import ForceReference, force_fields

CSV, PICTURE = "sweep.csv", "sweep.png"
MOST_VALUES = 10_000


class Sweep(NamedTuple):
    """The values of a condition."""

    name: str
    values: tuple[float, ...]


def parse_sweep(text: str) -> Sweep:
    """Parses "yaw=-10:10:21" into 21 values from -10 to 10.

    Raises:
        ValueError: It is not of this form.
    """
    name, _, limits = text.partition("=")
    try:
        low, high, number = limits.split(":")
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.linspace(float(low), float(high), min(int(number), MOST_VALUES + 1))
    except ValueError:
        values = np.zeros(0)
    if not name.strip() or not 0 < values.size <= MOST_VALUES or not np.isfinite(values).all():
        raise ValueError(f"a sweep has the form yaw=-10:10:21, got {text!r}")
    return Sweep(name.strip(), tuple(values.tolist()))


def predict_sweep(
    job: MeshJob,
    forces: ForceReference,
    surrogate: Surrogate,
    sources: Sources,
    sweep: Sweep,
    text: str | None,
    *,
    console: Console,
) -> None:
    """Predicts the forces on a surface under each value of a condition; writes a table and a picture to a folder.

    All values see the same anchors and geometry points, and run the same compiled program.

    Args:
        job: The meshes.
        forces: What forces are divided by.
        surrogate: What predicts.
        sources: The arrays that the run was trained on, by branch and name.
        sweep: The values.
        text: The other conditions, such as "speed=40".
        console: Where progress, warnings and the table are printed.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: A condition is missing or unknown, or a file is unusable or does not fit the model.
    """
    under = under_values(surrogate, text, sweep.name, sweep.values, console)
    check_mesh_job(job, surrogate)
    shown = shown_geometry(job, surrogate)
    meshes, has_context = read_meshes(job, surrogate, sources, shown), surrogate.context is not None
    with_inputs = geometry_with_features(meshes, surrogate.features, sources, shown, has_context)
    geometry = geometry_points(shown) if with_inputs is None and shown is not None else with_inputs
    names, surface = surrogate.model.config.fields[GEOMETRY_BRANCH], meshes[GEOMETRY_BRANCH]
    check_forces(surface, names)
    rows = []
    with ProgressBar(console, len(under), unit="values") as progress:
        for value, at in zip(sweep.values, under, strict=True):
            each, watch = collect(GEOMETRY_BRANCH, len(surface.position), force_fields(names))
            predict_on_meshes(
                at,
                meshes,
                only=(GEOMETRY_BRANCH,),
                geometry=geometry,
                certainty=job.certainty,
                watch=watch,
                chunk_size=job.chunk_size,
            )
            coefficients = surface_forces(each, surface, forces).coefficients["predicted"]
            rows.append((value, coefficients["cd"], coefficients["cl"]))
            progress.advance(1, f"{sweep.name} {value:g}")
    _report(job, surrogate, sweep.name, rows, console)


def _report(
    job: MeshJob, surrogate: Surrogate, name: str, rows: Sequence[tuple[float, float, float]], console: Console
) -> None:
    from emmi_jax.plots.sweep import draw_sweep

    scale = surrogate.normalizer.conditions.get(name)  # none where a converted model has the names
    label = name if scale is None or scale.unit is None else f"{name} [{scale.unit}]"
    make_folder(job.out)
    write_csv(job.out / CSV, [(label, "cd", "cl"), *rows])
    values, *coefficients = map(np.array, zip(*rows, strict=True))
    draw_sweep(job.out / PICTURE, label, values, dict(zip(("Cd", "Cl"), coefficients, strict=True)))
    cells = [[f"{value:g}", f"{cd:z.4f}", f"{cl:z.4f}"] for value, cd, cl in rows]
    console.print(new_table("Predicted coefficients", [label, "Cd", "Cl"], cells))
    print_paths([job.out / CSV, job.out / PICTURE], console)
