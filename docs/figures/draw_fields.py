"""Trains the two models whose fields the README and the pages show, and draws them.

`python docs/figures/draw_fields.py` takes some minutes, and needs the extras `train` and `cfd`.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

import emmi_jax
from emmi_jax.cli import main
from emmi_jax.data.ellipsoids import TEST_GEOMETRY_SEED
from emmi_jax.data.potential_flow import Ellipsoid, random_ellipsoids
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.plots.ellipsoid import surface_mesh

DOCS = Path(__file__).parents[1]
VIEWS = {"from upstream": ((-1, 0, 0), (0, -1, 0)), "from the side": ((0, -1, 0), (1, 0, 0))}


def run(command: str) -> None:
    """Runs `emmi-jax`."""
    if status := main(command.split()):
        raise SystemExit(status)


def draw_unseen_ellipsoid(run_folder: Path, path: Path) -> None:
    """Draws the surface pressure on the first ellipsoid that the model is tested on."""
    body = random_ellipsoids(1, seed=TEST_GEOMETRY_SEED)[0]
    rng = np.random.default_rng(0)
    points = {"surface": body.sample_surface(rng, 20_000), "volume": body.sample_volume(rng, 20_000)}
    mesh = surface_mesh(body)
    encoded = emmi_jax.load_run(run_folder).encode(points=points)
    predicted = encoded.predict({"surface": mesh.position})["surface_pressure_coefficient"][:, 0]
    exact = body.pressure_coefficient(mesh.position)
    largest = np.abs(predicted - exact).max()
    pressure, difference = Normalize(exact.min(), exact.max()), Normalize(-largest, largest)
    columns = [
        ("predicted", predicted, pressure, "viridis"),
        ("exact", exact, pressure, "viridis"),
        ("difference", predicted - exact, difference, "RdBu_r"),
    ]
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(4.8, 3.9), layout="constrained")
        grid = figure.subplots(2, 3)
        for row, (side, (direction, right)) in zip(grid, VIEWS.items(), strict=True):
            visible = mesh.triangles[(mesh.normal @ np.array(direction) > 0)[mesh.triangles].all(axis=1)]
            shape = Triangulation(mesh.position @ np.array(right), mesh.position[:, 2], visible)
            row[0].set_ylabel(side)
            for axes, (name, values, scale, colors) in zip(row, columns, strict=True):
                axes.tripcolor(shape, values, norm=scale, cmap=colors, shading="gouraud", rasterized=True)
                axes.set(aspect=1, xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if axes in grid[0]:
                    axes.set_title(name, fontsize=10)
        bar = {"orientation": "horizontal", "fraction": 0.06, "pad": 0.03}
        figure.colorbar(ScalarMappable(pressure, "viridis"), ax=grid[:, :2], label="pressure coefficient", **bar)
        figure.colorbar(ScalarMappable(difference, "RdBu_r"), ax=grid[:, 2:], **bar)
        figure.savefig(path, dpi=220)


def write_case(folder: Path) -> Path:
    """Writes the meshes of the notebook, finer: a body, the fluid around it, and the exact fields."""
    pyvista = import_pyvista()
    semi_axes = np.array([1.0, 0.6, 0.5])
    body = Ellipsoid(semi_axes=semi_axes, rotation=np.eye(3))
    folder.mkdir()
    sphere = pyvista.Sphere(radius=1.0, theta_resolution=96, phi_resolution=96)
    surface = pyvista.PolyData.from_regular_faces(sphere.points.astype(np.float64) * semi_axes, sphere.regular_faces)
    center = np.asarray(surface.cell_centers().points)
    on_body = center / np.linalg.norm(center / semi_axes, axis=1, keepdims=True)
    surface.cell_data["Cp"] = body.pressure_coefficient(on_body)
    surface.save(folder / "boundary_1.vtp")
    surface.save(folder / "body_1.stl")
    sphere = pyvista.Sphere(radius=1.0, theta_resolution=64, phi_resolution=64)
    scales = 1.04 + 2.96 * np.linspace(0, 1, 33) ** 2
    layers = [sphere.regular_faces + number * sphere.n_points for number in range(len(scales))]
    wedges = np.concatenate([np.hstack(pair) for pair in itertools.pairwise(layers)])
    points = np.concatenate([scale * sphere.points.astype(np.float64) * semi_axes for scale in scales])
    volume = pyvista.UnstructuredGrid({pyvista.CellType.WEDGE: wedges}, points)
    center = np.asarray(volume.cell_centers().points)
    volume.cell_data["U"] = body.velocity(center)
    volume.save(folder / "volume_1.vtu")
    fields = {"surface": {"pressure_coefficient": "Cp"}, "volume": {"velocity": "U"}}
    (folder / "fields.json").write_text(json.dumps(fields))
    return folder


def draw_meshes(folder: Path) -> None:
    """Trains on the meshes and copies the pictures that `predict --figures` draws."""
    case = write_case(folder / "case")
    runs, fields = folder / "runs", folder / "fields"
    run(f"train --data {case} --out {runs} --name meshes --steps 2500 --dim 48 --checkpoint-every 2500")
    meshes = f"--surface {case / 'boundary_1.vtp'} --volume {case / 'volume_1.vtu'} --geometry {case / 'body_1.stl'}"
    run(f"predict {runs / 'meshes'} {meshes} --compare --figures --out {fields}")
    shrink(fields / "surface_pressure_coefficient.png", DOCS / "mesh_surface.png")
    shrink(fields / "volume_velocity.png", DOCS / "mesh_slices.png")


def shrink(source: Path, target: Path) -> None:
    """Writes a picture as small as a page needs it."""
    picture = PIL.Image.open(source).convert("RGB")
    picture.thumbnail((1300, 1300))
    picture.save(target, optimize=True)


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    with tempfile.TemporaryDirectory() as name:
        run(f"train --out {name} --name ellipsoids")
        draw_unseen_ellipsoid(Path(name) / "ellipsoids", DOCS / "surface_pressure.png")
        draw_meshes(Path(name))
