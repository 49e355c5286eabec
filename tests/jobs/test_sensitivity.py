import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.config.design import SensitivityJob
from emmi_jax.data.samples import Context
from emmi_jax.design import drag, evaluate, moment, read_surface, sensitivity, side_force
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.design import coefficient
from emmi_jax.jobs.sensitivity import differentiate_surface
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.vtk import import_pyvista
from tests.design.cases import VOLUME, build, ellipsoid

OPTIONS: dict[str, Any] = {"run": Path("run"), "area": 1.5, "speed": 2.0}


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return replace(build(), context=Context({"volume": VOLUME.position[:8]}))


@pytest.fixture
def body(tmp_path: Path) -> Path:
    ellipsoid().mesh.dataset.save(tmp_path / "body.vtp")
    return tmp_path / "body.vtp"


def differentiate(surrogate: Surrogate, surface: Path, out: Path, **changes: Any) -> str:
    printed = io.StringIO()
    options = {"surface": surface, "out": out, "functional": "drag"} | OPTIONS | changes
    differentiate_surface(SensitivityJob(**options), surrogate, console=Console(file=printed, width=80))
    return printed.getvalue()


def test_the_surface_comes_back_with_its_gradient_a_picture_and_a_summary(surrogate, body, tmp_path):
    out = tmp_path / "out"
    printed = differentiate(surrogate, body, out)
    assert sorted(path.name for path in out.iterdir()) == ["body.vtp", "d_drag.png", "sensitivity.json"]
    expected = sensitivity(surrogate, read_surface(body), drag(area=1.5, speed=2.0))
    names = {"d_drag": 3, "d_drag_normal": 1, "d_drag_normal_smoothed": 1}
    fields = read_mesh(out / "body.vtp").points({name: FieldSource(name) for name in names}, location="points").fields
    assert {name: values.shape[1] for name, values in fields.items()} == names
    np.testing.assert_allclose(fields["d_drag"], expected.vertices, rtol=1e-4, atol=1e-6)
    assert json.loads((out / "sensitivity.json").read_text())["drag"] == pytest.approx(expected.value, rel=1e-5)
    assert f"drag: {expected.value:.5f}" in printed
    assert "112/112 points" in printed.replace(",", "")


def test_a_mesh_of_the_geometry_gets_its_own_gradient(surrogate, body, tmp_path):
    ellipsoid((1.01, 0.7, 0.5), 6).mesh.dataset.triangulate().save(tmp_path / "shape.stl")
    volume = import_pyvista().PolyData(VOLUME.position)
    volume.save(tmp_path / "volume.vtp")
    files = {"geometry": tmp_path / "shape.stl", "volume": tmp_path / "volume.vtp"}
    differentiate(replace(surrogate, context=None), body, tmp_path / "out", **files, functional="side_force")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["body.vtp", "d_side_force.png", "sensitivity.json", "shape.vtp"]
    expected = sensitivity(
        replace(surrogate, context=None),
        read_surface(body),
        side_force(area=1.5, speed=2.0),
        geometry=read_surface(files["geometry"]),
        points={"volume": VOLUME},
    )
    found = read_mesh(tmp_path / "out" / "shape.vtp").points({"g": FieldSource("d_side_force")}, location="points")
    np.testing.assert_allclose(found.fields["g"], expected.geometry, rtol=1e-3, atol=1e-4)


def test_a_moment_is_divided_by_its_length_and_taken_about_its_point(surrogate, body, tmp_path):
    job = SensitivityJob(surface=body, out=tmp_path, functional="moment", **OPTIONS, length=0.7, about=(0.1, 0.2, 0.3))
    expected = moment(area=1.5, speed=2.0, length=0.7, about=(0.1, 0.2, 0.3))
    found, exact = (evaluate(surrogate, read_surface(body), each) for each in (coefficient(job, "moment"), expected))
    assert found == pytest.approx(exact, rel=1e-6)


def test_an_open_surface_is_refused_or_warned_of(surrogate, body, tmp_path):
    dataset = ellipsoid().mesh.dataset.triangulate()
    dataset.faces = np.asarray(dataset.faces).reshape(-1, 4)[2:].reshape(-1)
    dataset.save(tmp_path / "open.vtp")
    with pytest.raises(ValueError, match=r"open\.vtp: the surface is not closed: \d+ edges"):
        differentiate(surrogate, tmp_path / "open.vtp", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    printed = differentiate(surrogate, tmp_path / "open.vtp", tmp_path / "out", allow_open=True)
    assert "normals: outward by the volume that each part encloses" in printed.replace("\n", " ")


def test_what_cannot_work_is_refused_before_anything_is_written(surrogate, body, tmp_path):
    (tmp_path / "file").touch()
    no_surface = tmp_path / "cloud.vtp"
    import_pyvista().PolyData(np.zeros((3, 3))).save(no_surface)
    before = sorted(tmp_path.iterdir())
    for changes, message in (
        ({"functional": "thrust"}, "functional must be one of drag, lift, side_force, moment, got 'thrust'"),
        ({"functional": "moment"}, "a moment needs --length, its reference length"),
        ({"functional": "moment", "length": -1.0}, r"length must be positive, got -1\.0"),
        ({"surface": tmp_path / "none.vtp"}, r"none\.vtp: no such file"),
        ({"surface": no_surface}, "expected a surface of polygons"),
        ({"out": tmp_path}, "would replace"),
        ({"out": tmp_path / "file"}, "file is a file, expected a folder"),
        ({"geometry": body}, "two meshes would become the same file"),
        ({"smoothing": -1.0}, r"smoothing must be 0 or a positive length, got -1\.0"),
        ({"surrogate": replace(surrogate, context=None)}, "needs a mesh for the branch 'volume' too"),
        ({"surrogate": build({"surface": {"speed": 1}}, ("self",))}, r"forces need a field pressure or .*\['speed'\]"),
        ({"surrogate": build({"wing": {"pressure": 1}}, ("self",))}, "none of which is 'surface'"),
        (
            {"surrogate": build({"surface": {"pressure": 1}}, ("self",)), "volume": body},
            "the model has no branch 'volume'",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            differentiate(
                **{"surrogate": surrogate, "surface": body, "out": tmp_path / "out"} | changes,
            )
        assert sorted(tmp_path.iterdir()) == before


def test_a_page_to_turn_replaces_the_picture_when_asked_for(surrogate, body, tmp_path):
    differentiate(surrogate, body, tmp_path / "out", figures="html")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["body.vtp", "d_drag.html", "sensitivity.json"]
    assert '"name": "drag, smoothed"' in (tmp_path / "out/d_drag.html").read_text()
    with pytest.raises(ValueError, match="--figures must be png or html, got 'svg'"):
        differentiate(surrogate, body, tmp_path / "other", figures="svg")
    assert not (tmp_path / "other").exists()
