import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.plots import mesh_pages
from emmi_jax.plots.mesh_pages import write_mesh_page, write_push_page
from emmi_jax.plots.meshes import MeshFields
from tests.data.case_folders import surface_dataset, volume_dataset

CHROMIUM = shutil.which("chromium")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1200,800", "--virtual-time-budget=10000"),
]


def mesh_fields(dataset: Any, branch: str, **fields: np.ndarray) -> MeshFields:
    centres = np.asarray(dataset.cell_centers().points)
    reference = {name: values + 0.1 for name, values in fields.items() if name != "speed"}
    return MeshFields(branch, dataset, "cells", centres, fields, reference)


def page_values(page: str) -> list[str]:
    return re.findall(r'"name": "([^"]*)"', page)


def test_a_page_offers_fields_references_and_errors_and_loads_nothing(tmp_path):
    dataset = surface_dataset()
    shear = np.tile([3.0, 4.0, 0.0], (dataset.n_cells, 1))
    fields = mesh_fields(dataset, "surface", pressure=np.ones((dataset.n_cells, 1)), wall_shear=shear)
    page = write_mesh_page(fields, tmp_path).read_text()
    assert page_values(page) == [
        "pressure, predicted",
        "pressure, reference",
        "pressure, predicted \\u2212 reference",
        "|wall shear|, predicted",
        "|wall shear|, reference",
        "|wall shear|, predicted \\u2212 reference",
    ]
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", page.replace(plotly_code(), ""))
    assert "Coarsened" not in page


@pytest.mark.parametrize("is_flipped", [False, True])
@pytest.mark.parametrize(("side", "eye_y"), [(1, 2.0), (-1, -2.0)])
def test_half_a_body_is_seen_from_its_closed_side(side, eye_y, is_flipped, tmp_path):
    whole = import_pyvista().Box(level=5)
    half = whole.extract_cells(side * whole.cell_centers().points[:, 1] > 0).extract_surface(algorithm=None)
    half = half.flip_faces() if is_flipped else half
    page = write_mesh_page(mesh_fields(half, "surface", speed=np.ones((half.n_cells, 1))), tmp_path).read_text()
    assert f'"eye_y": {eye_y}' in page


def plotly_code() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def test_large_meshes_are_coarsened_for_the_page_only_and_it_says_so(tmp_path, monkeypatch):
    dataset = import_pyvista().Sphere(theta_resolution=60, phi_resolution=60)
    dataset.clear_data()
    num_cells = dataset.n_cells
    monkeypatch.setattr(mesh_pages, "MAX_TRIANGLES", 1000)
    x = np.asarray(dataset.cell_centers().points)[:, :1]
    page = write_mesh_page(mesh_fields(dataset, "surface", speed=x), tmp_path).read_text()
    shown, of = (int(n.replace(",", "")) for n in re.search(r"only: ([\d,]+) of ([\d,]+) triangles", page).groups())
    assert of == num_cells == dataset.n_cells
    assert 200 < shown <= 1000


def test_coarse_triangles_have_the_value_of_the_mesh_where_they_are(monkeypatch):
    dataset = import_pyvista().Sphere(theta_resolution=60, phi_resolution=60)
    dataset.clear_data()
    dataset.cell_data["x"] = np.asarray(dataset.cell_centers().points)[:, 0]
    monkeypatch.setattr(mesh_pages, "MAX_TRIANGLES", 1000)
    shape, values, _ = mesh_pages._triangles([dataset], "cells")
    np.testing.assert_allclose(values["x"], shape.points[shape.corners].mean(axis=1)[:, 0], atol=0.05)


def test_volumes_are_cut_and_points_without_cells_are_shown_themselves(tmp_path):
    volume = volume_dataset()
    fields = mesh_fields(volume, "volume", speed=np.ones((volume.n_cells, 1)))
    cut = write_mesh_page(fields, tmp_path, surface=surface_dataset()).read_text()
    assert '"body": {' in cut
    cloud = import_pyvista().PolyData(np.random.default_rng(0).normal(size=(50, 3)))
    fields = mesh_fields(cloud, "volume", speed=np.ones((50, 1)))
    assert '"corners": null' in write_mesh_page(fields, tmp_path).read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("kind", ["volume", "push"])
def test_a_browser_without_network_shows_the_scene(kind, tmp_path):
    surface, volume = surface_dataset(), volume_dataset()
    if kind == "push":
        values = {"smoothed": np.asarray(surface.points)[:, 0]}
        path = write_push_page(tmp_path / "push.html", "Where to push <it>", surface, values)
    else:
        x = np.asarray(volume.cell_centers().points)[:, :1]
        path = write_mesh_page(mesh_fields(volume, kind, pressure=x), tmp_path, surface=surface)
    picture = tmp_path / "page.png"
    screenshot(path, picture, tmp_path / "profile")
    pixels = imread(picture)[..., :3]
    colourful = np.ptp(pixels, axis=-1) > 0.15
    assert 0.03 < colourful[:, : int(0.8 * pixels.shape[1])].mean() < 0.7
    assert len(np.unique((pixels[colourful] * 15).astype(int), axis=0)) > 30


def screenshot(page: Path, picture: Path, profile: Path) -> None:
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    paths = [f"--user-data-dir={profile}", f"--screenshot={picture}", page.as_uri()]
    subprocess.run([str(CHROMIUM), *OPTIONS, offline, *paths], capture_output=True, check=True, timeout=120)
