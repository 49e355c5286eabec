"""`emmi-jax predict`."""

from __future__ import annotations

from emmi_jax.config.jobs import PredictionJob


def predict(job: PredictionJob) -> None:
    """Predict fields at any number of points, in physical units.

    \b
    --points holds these arrays:
      surface, volume    points to predict, either or both ('position' if the
                         model has one branch)
      surface_anchors, volume_anchors, geometry
                         points that show the case to the model; default:
                         those of the run, or drawn from the points above
    OUT receives surface_pressure, volume_velocity, … ('pressure' if the model
    has one branch). --points is an .npz file, a folder of .npy files with
    these names, or one such file. If OUT is a folder, it receives one .npy
    file per field, and neither positions nor fields need to fit in memory.

    \b
    Meshes (.vtp, .vtu, .vtk, .stl, .ply, .obj, .pvtu, .pvtp, .vtm, .vtpc, .pvd,
    .case, .vtkhdf, .cgns) are written to the folder OUT with predicted_<field>.
    --compare adds error_<field> and comparison.json.
    A MESH may also be the folder of an OpenFOAM case, or of foamToVTK.

    \b
    --write-openfoam writes U, p, … into CASE/0, with the boundary conditions
    that are there; CASE/0 is kept as CASE/0.orig.

    \b
    Example:
      emmi-jax predict runs/first --points points.npz --out fields.npz
      emmi-jax predict runs/car --surface boundary.vtp --out fields
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.predict import run_job

    run_job(job, console=Console(soft_wrap=False))
