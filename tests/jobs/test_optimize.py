import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.config.design import OptimizationJob
from emmi_jax.data.samples import Context
from emmi_jax.design import read_surface
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.optimize import optimize_surface
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from tests.design.cases import VOLUME, build, ellipsoid

OPTIONS: dict[str, Any] = {"run": Path("run"), "area": 1.5, "speed": 2.0}


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return replace(build(), context=Context({"volume": VOLUME.position[:8]}))


@pytest.fixture
def body(tmp_path: Path) -> Path:
    ellipsoid().mesh.dataset.save(tmp_path / "body.vtp")
    return tmp_path / "body.vtp"


def lower(surrogate: Surrogate, surface: Path, out: Path, **changes: Any) -> str:
    printed = io.StringIO()
    options = {"lattice": (3, 2, 2), "max_displacement": 0.05, "steps": 4, "functional": "drag", "keep": ("volume",)}
    job = OptimizationJob(**{"surface": surface, "out": out} | OPTIONS | options | changes)
    optimize_surface(job, surrogate, console=Console(file=printed, width=80))
    return printed.getvalue()


def test_the_new_shape_is_written_with_its_history_fields_and_coefficients(surrogate, body, tmp_path):
    out = tmp_path / "out"
    shape = tmp_path / "shape.stl"
    ellipsoid((1.01, 0.7, 0.5), 6).mesh.dataset.triangulate().save(shape)
    printed = lower(surrogate, body, out, geometry=shape, symmetry="y")
    names = ["body.stl", "body.vtp", "displacement.png", "history.csv", "optimization.json", "shape.stl"]
    assert sorted(path.name for path in out.iterdir()) == names
    before, after = read_surface(body), read_surface(out / "body.vtp")
    moved = after.vertices - before.vertices
    assert 0.01 < np.linalg.norm(moved, axis=1).max() <= 0.05 + 1e-6
    written = read_mesh(out / "body.vtp").points({"d": FieldSource("displacement")}, location="points")
    np.testing.assert_allclose(written.fields["d"], moved, atol=1e-6)
    fields = {f"{when}_{name}" for when in ("before", "after") for name in ("pressure", "wall_shear_stress")}
    assert set(read_mesh(out / "body.vtp").dataset.cell_data.keys()) == fields
    np.testing.assert_allclose(read_surface(out / "body.stl").areas().sum(), after.areas().sum(), rtol=0.02)
    assert np.abs(read_surface(out / "shape.stl").vertices - read_surface(shape).vertices).max() > 0.01
    summary = json.loads((out / "optimization.json").read_text())
    assert list(summary["coefficients"]) == ["drag", "lift", "side_force"]
    assert summary["coefficients"]["drag"]["after"] < summary["coefficients"]["drag"]["before"]
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert f"{summary['coefficients']['drag']['after']:.5f}" in printed
    np.testing.assert_array_equal(read_surface(body).vertices, before.vertices)


def test_far_from_the_origin_it_says_that_stl_loses_digits(surrogate, body, tmp_path):
    offset = np.array([4e5, 0.0, 0.0])
    mesh = ellipsoid().mesh.dataset
    mesh.points = mesh.points.astype(np.float64) + offset
    mesh.save(tmp_path / "far.vtp")
    low = tuple(np.asarray(surrogate.normalizer.position_low) + offset)
    far = replace(
        surrogate,
        normalizer=replace(surrogate.normalizer, position_low=low),
        context=Context({"volume": VOLUME.position[:8] + offset}),
    )
    assert "float32" not in lower(surrogate, body, tmp_path / "here", steps=1)
    assert "steps of 0.031 (a vertex may move by 0.05): far.vtp is exact" in lower(
        far, tmp_path / "far.vtp", tmp_path / "there", steps=1
    ).replace("\n", " ")


def test_what_cannot_work_is_refused_before_anything_is_written(surrogate, body, tmp_path):
    before = sorted(tmp_path.iterdir())
    for changes, message in (
        ({"keep": ("shape",)}, "keep must be among volume, clearance, familiar, got 'shape'"),
        ({"lattice": (1, 2, 2)}, r"each at least 2, got \(1, 2, 2\)"),
        ({"max_displacement": 0.0}, r"max_displacement must be positive, got 0\.0"),
        ({"symmetry": "w"}, "symmetry must be x, y or z, got 'w'"),
        ({"functional": "thrust"}, "functional must be one of drag, lift, side_force, moment, got 'thrust'"),
        ({"surface": tmp_path / "none.vtp"}, r"none\.vtp: no such file"),
        ({"out": tmp_path}, "would replace"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            lower(**{"surrogate": surrogate, "surface": body, "out": tmp_path / "out"} | changes)
        assert sorted(tmp_path.iterdir()) == before
