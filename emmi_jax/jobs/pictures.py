"""The pictures of a trained run: its loss, and predictions beside exact fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from emmi_jax.data.metrics import known_rows
from emmi_jax.data.potential_flow import Ellipsoid
from emmi_jax.data.samples import Dataset
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.plots.ellipsoid import draw_slice, draw_surface, slice_grid, surface_mesh
from emmi_jax.plots.loss import draw_loss
from emmi_jax.plots.point_cloud import draw_fields, near_middle_plane
from emmi_jax.points import PointSet, is_unknown, take_points
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.training.evaluation import encode_sample, query_chunk_size

Predict: TypeAlias = Callable[..., dict[str, Any]]
"""From positions by branch, and their features, to the fields there."""


def draw_pictures(dataset: Dataset, surrogate: Surrogate, run: RunDirectory) -> list[Path]:
    """Draws the loss of a run, and predictions on its first test case, into PNG files; returns their paths."""
    sample = next(iter(dataset.test_samples()))
    predict = partial(encode_sample(surrogate, sample).predict, chunk_size=query_chunk_size(sample))
    paths = [draw_loss(run.read_metrics(), run.path, run.read_validation())]
    if dataset.body is not None:
        return paths + _draw_ellipsoid(dataset.body, predict, run.path)
    return paths + _draw_points(dataset.shown, predict, run.path)


def _draw_ellipsoid(body: Ellipsoid, predict: Predict, folder: Path) -> list[Path]:
    """Draws the surface pressure and the speed in the plane z = 0."""
    mesh, grid = surface_mesh(body), slice_grid(body)
    title = "Surface pressure of an unseen ellipsoid, semi-axes {:.2f}, {:.2f}, {:.2f}".format(*body.semi_axes)
    pressure = predict({"surface": mesh.position})["surface_pressure_coefficient"]
    velocity = predict({"volume": grid.position})["volume_velocity"]
    exact = body.pressure_coefficient(mesh.position)
    return [
        draw_surface(folder / "surface_pressure.png", title, mesh, pressure[:, 0], exact),
        draw_slice(folder / "volume_velocity.png", grid, velocity, body.velocity(grid.position)),
    ]


def _draw_points(points: Mapping[str, PointSet], predict: Predict, folder: Path) -> list[Path]:
    """Draws every field at the points near the middle plane."""
    paths = []
    for branch, part in points.items():
        near = take_points(part, near_middle_plane(part.position))
        features = {} if near.features is None else {branch: near.features}
        predicted = predict({branch: near.position}, query_features=features)
        for name, known in near.fields.items():
            if not is_unknown(known).all():
                shown = known_rows(known, near.position, predicted[f"{branch}_{name}"], known)
                paths.append(draw_fields(folder / f"{branch}_{name}.png", name, *shown))
    return paths
