import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import imread

from emmi_jax.meshes.surfaces import fan_triangles
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.plots import meshes as mesh_plots
from emmi_jax.plots.meshes import MeshFields, draw_mesh_fields
from emmi_jax.plots.parity import draw_parity
from emmi_jax.plots.render import can_render
from tests.data.case_folders import surface_dataset, volume_dataset

RENDERED = "as this machine can"
DRAWINGS = [RENDERED, "without pyvista's rendering"]


@pytest.fixture(params=DRAWINGS)
def drawing(request, monkeypatch):
    """Both ways to draw a surface; where nothing can be rendered they are one."""
    if request.param != RENDERED:
        monkeypatch.setattr(mesh_plots, "can_render", lambda: False)


def fields_on(branch, dataset, location="cells", *, reference=True, channels=1):
    position = np.asarray(dataset.cell_centers().points if location == "cells" else dataset.points)
    values = np.sin(3 * position[:, :1]) + np.arange(channels)
    return MeshFields(branch, dataset, location, position, {"u": 1.1 * values}, {"u": values} if reference else {})


def check_picture(path: Path) -> np.ndarray:
    """A PNG of a sensible size in which something is drawn, in colours."""
    picture = imread(path)[..., :3]
    assert 300 < min(picture.shape[:2]) <= max(picture.shape[:2]) < 2000
    assert np.count_nonzero(np.ptp(picture, axis=2) > 0.1) > 0.02 * picture[..., 0].size
    return picture


DATASETS = {
    "surface": (surface_dataset, "cells"),
    "surface points": (surface_dataset, "points"),
    "volume": (volume_dataset, "cells"),
    "volume points": (volume_dataset, "points"),
    "cloud": (lambda: import_pyvista().PolyData(np.random.default_rng(0).normal(size=(300, 3))), "points"),
    "flat": (lambda: import_pyvista().Plane(direction=(1, 0, 0)), "cells"),
}


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize(
    ("kind", "reference", "drawing"),
    [
        *((kind, True, RENDERED) for kind in DATASETS),
        *((kind, True, DRAWINGS[1]) for kind in ("surface", "surface points", "flat")),
        ("surface", False, RENDERED),
        ("cloud", False, RENDERED),
    ],
    indirect=["drawing"],
)
def test_every_kind_of_mesh_gets_its_pictures_and_nothing_is_printed(kind, reference, tmp_path, capfd):
    make, location = DATASETS[kind]
    paths = draw_mesh_fields(fields_on("branch", make(), location, reference=reference), tmp_path)
    names = ["branch_u.png", "branch_u_parity.png"] if reference else ["branch_u.png"]
    assert [path.name for path in paths] == sorted(p.name for p in tmp_path.iterdir()) == names
    check_picture(paths[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("drawing")
def test_a_surface_shows_its_front_to_the_front(tmp_path):
    dataset = surface_dataset()
    position = np.asarray(dataset.cell_centers().points)
    upstream = np.where(position[:, :1] < 0, 1.0, 0.0)
    fields = MeshFields("s", dataset, "cells", position, {"u": upstream}, {})
    picture = check_picture(draw_mesh_fields(fields, tmp_path)[0])
    # Light changes brightness, and hue not.
    hue = picture / np.maximum(picture.max(axis=2, keepdims=True), 0.1)
    yellow, violet = ((np.abs(hue - color) < 0.05).all(axis=2) for color in ([1, 0.91, 0.14], [0.81, 0, 1]))
    # Three rows of panels under each other: yellow alone, then yellow at the left and violet at the right.
    pictures = slice(0, int(0.75 * picture.shape[1]))
    thirds = np.array_split(np.arange(picture.shape[0]), 3)
    assert yellow[thirds[0], pictures].sum() > 100 * max(1, violet[thirds[0], pictures].sum())
    for rows in thirds[1:]:
        columns = [np.nonzero(color[rows, pictures])[1].mean() for color in (yellow, violet)]
        assert columns[0] < columns[1]


@pytest.mark.parametrize("location", ["cells", "points"])
@pytest.mark.parametrize("shift", [0.0, 3e5])
def test_what_is_rendered_stands_where_it_stands_without_rendering(shift, location, monkeypatch):
    dataset = surface_dataset(24)
    position = np.asarray(dataset.cell_centers().points if location == "cells" else dataset.points)
    data = dataset.cell_data if location == "cells" else dataset.point_data
    dataset.clear_data()
    data["u"] = np.sin(3 * position).sum(axis=1)
    dataset.points = np.asarray(dataset.points) + shift
    rendered = panels(dataset, location)
    monkeypatch.setattr(mesh_plots, "can_render", lambda: False)
    for lit, flat in zip(rendered, panels(dataset, location), strict=True):
        inside = (flat != 1).any(axis=2)
        assert lit.shape == flat.shape
        assert 0.6 < inside.mean() < 0.8
        assert ((lit != 1).any(axis=2) != inside).mean() < 0.005
        # The same colours, between the brightness of an edge and that of what faces the viewer.
        brightness = lit[inside].sum(axis=1) / flat[inside].sum(axis=1)
        assert np.quantile(brightness, 0.01) > 0.5
        assert np.quantile(brightness, 0.99) < 1.01
        assert np.median(np.abs(lit[inside] / brightness[:, None] - flat[inside])) < 0.01


def panels(dataset, location) -> list[np.ndarray]:
    """Pictures [height, width, 3] of a surface with the field "u", by view, without axes."""
    pictures = []
    for scene in mesh_plots._surface_scenes(dataset, location):
        axes = Figure().subplots()
        scene.view.paint(axes, scene.arrays["u"], Normalize(-2, 2), "viridis")
        pictures.append(np.asarray(axes.images[0].get_array()))
    return pictures


@pytest.mark.parametrize("failure", ["a crash", "a refusal", "no end", "no process"])
def test_where_a_trial_fails_nothing_is_rendered(failure, monkeypatch):
    def run(command, **options):
        assert command[0] == sys.executable
        if failure == "no end":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        if failure == "no process":
            raise OSError("no memory")
        return subprocess.CompletedProcess(command, {"a crash": -6, "a refusal": 1}[failure])

    monkeypatch.setattr(subprocess, "run", run)
    assert not can_render.__wrapped__()


def test_a_slice_leaves_the_body_out(tmp_path):
    picture = check_picture(draw_mesh_fields(fields_on("v", volume_dataset(), reference=False), tmp_path)[0])
    assert (np.abs(picture - 0.85) < 0.01).all(axis=2).mean() > 0.05


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_prediction_against_truth_has_a_panel_a_channel(channels, tmp_path):
    values = np.random.default_rng(0).normal(size=(5000, channels))
    picture = check_picture(draw_parity(tmp_path / "a.png", "title", "u", values + 0.1, values))
    assert picture.shape[1] / picture.shape[0] == pytest.approx((1.2 + 4.1 * channels) / 4.7, rel=0.2)


def test_constant_fields_are_drawn(tmp_path):
    dataset = surface_dataset(8)
    ones = np.ones((dataset.n_cells, 3), np.float32)
    fields = MeshFields("s", dataset, "cells", np.asarray(dataset.cell_centers().points), {"u": ones}, {"u": ones})
    for path in draw_mesh_fields(fields, tmp_path):
        assert imread(path).std() > 0


def test_a_picture_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def save(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)
    with pytest.raises(OSError, match="disk full"):
        draw_mesh_fields(fields_on("s", surface_dataset(8)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_polygons_are_cut_into_fans_that_know_their_cells():
    pyvista = import_pyvista()
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [-1, 0.5, 0]], float)
    dataset = pyvista.PolyData(points, faces=[3, 0, 1, 2, 5, 0, 1, 2, 3, 4], lines=[2, 0, 1], verts=[1, 3])
    corners, cell = fan_triangles(dataset)
    np.testing.assert_array_equal(corners, [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 4]])
    np.testing.assert_array_equal(cell, [2, 3, 3, 3])
    assert fan_triangles(pyvista.PolyData(points))[0].shape == (0, 3)
