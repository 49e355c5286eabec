"""Runs that learn coefficients, so that cases of different speeds mix, and predict in physical units."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import emmi_jax
from emmi_jax import deploy
from emmi_jax.cli import main
from emmi_jax.config import TrainSettings
from emmi_jax.config.conditions import ScalingLaw
from emmi_jax.data.load import load_dataset
from emmi_jax.deploy.scaling_laws import field_factor
from emmi_jax.design import drag, sensitivity
from emmi_jax.design.surface import read_surface
from emmi_jax.inference.intervals import Intervals
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.points import PointSet
from emmi_jax.runs.directory import RunDirectory
from tests.data.case_folders import write_case_folder
from tests.jobs.tiny_runs import NO_GEOMETRY, run, tiny_settings

SPEED, DENSITY = {"run_0": 20.0, "run_1": 40.0, "run_2": 30.0}, {"run_0": 1.0, "run_1": 1.2, "run_2": 1.1}
FIELDS = {"surface": {"pressure": "p"}, "volume": {"velocity": "U", "pressure": "p"}}
LAW = {"speed": "speed", "density": "density"}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One flow at several speeds and densities: velocities are U u, pressures rho U² Cp / 2."""
    folder = tmp_path_factory.mktemp("data") / "cases"
    first = write_case_folder(tmp_path_factory.mktemp("data") / "case")
    for name, speed in SPEED.items():
        shutil.copytree(first, folder / name)
        for file in ("boundary_1.vtp", "volume_1.vtu"):
            mesh = import_pyvista().read(folder / name / file)
            mesh.cell_data["p"] = 0.5 * DENSITY[name] * speed**2 * np.asarray(mesh.cell_data["Cp"], np.float64)
            if "U" in mesh.cell_data:
                mesh.cell_data["U"] = speed * np.asarray(mesh.cell_data["U"], np.float64)
            mesh.save(folder / name / file)
        (folder / name / "fields.json").write_text(json.dumps(FIELDS))
        (folder / name / "conditions.json").write_text(json.dumps({"speed": speed, "density": DENSITY[name]}))
    (folder / "split.json").write_text(json.dumps({"train": ["run_0", "run_1"], "test": ["run_2"]}))
    return folder


def settings(data: Path, **changes: object) -> TrainSettings:
    return tiny_settings(data, **NO_GEOMETRY | {"steps": 2, "learning_rate": 0.05, "nondimensionalize": LAW} | changes)


@pytest.fixture(scope="module")
def trained(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run(settings(cases), path)
    return path


def test_statistics_are_those_of_coefficients_whatever_the_speed(cases, trained):
    kept = RunDirectory.open(trained).read_config().normalizer
    (cp,) = import_pyvista().read(cases / "run_0" / "boundary_1.vtp").cell_data["Cp"][None]
    assert kept.fields["surface"]["pressure"].mean[0] == pytest.approx(cp.mean(), rel=1e-5)
    assert kept.fields["surface"]["pressure"].std[0] == pytest.approx(cp.std(), rel=1e-5)
    assert kept.fields["volume"]["velocity"].mean[0] < 2
    dataset = load_dataset(settings(cases))
    assert dataset.measure().normalizer(position_range=5000.0).fields == kept.fields


def test_scales_under_a_condition_are_inverse_to_one_another(trained):
    normalizer = RunDirectory.open(trained).read_config().normalizer.under({"speed": 30.0, "density": 1.1})
    values = np.random.default_rng(0).normal(size=(9, 3)) * 30
    there = normalizer.normalize_field("volume", "velocity", values)
    np.testing.assert_allclose(normalizer.denormalize_field("volume", "velocity", there), values, rtol=1e-5, atol=1e-4)


def test_intervals_grow_with_the_units_of_the_condition(trained):
    position, widths = np.random.default_rng(0).uniform(-1, 1, (9, 3)), {}
    surrogate = emmi_jax.load_run(trained)
    intervals = Intervals(0.5, {"surface/pressure": 2.0, "volume/velocity": 2.0, "volume/pressure": 2.0}, False)
    for speed in (20.0, 60.0):
        points = {branch: PointSet(position, {}) for branch in ("surface", "volume")}
        condition = {"speed": speed, "density": 1.0}
        encoded = surrogate.encode_draws(1, points=points, condition=condition, intervals=intervals)
        found = encoded.predict({"surface": position, "volume": position})
        widths[speed] = [found[f"{name}_high"] - found[name] for name in ("volume_pressure", "volume_velocity")]
    for of_slow, of_fast, factor in zip(widths[20.0], widths[60.0], (9, 3), strict=True):
        np.testing.assert_allclose(of_fast, factor * of_slow, rtol=1e-2)


def test_predictions_are_in_physical_units_live_and_exported(trained, cases, tmp_path):
    surrogate, condition = emmi_jax.load_run(trained), {"speed": 30.0, "density": 1.1}
    surface = np.asarray(import_pyvista().read(cases / "run_0" / "boundary_1.vtp").cell_centers().points)
    volume = np.asarray(import_pyvista().read(cases / "run_0" / "volume_1.vtu").cell_centers().points)
    points = {"surface": surface, "volume": volume}
    found = surrogate.encode(points=points, condition=condition).predict(points)
    bare = replace(surrogate, normalizer=replace(surrogate.normalizer, nondimensionalize=None))
    coefficients = bare.encode(points=points, condition=condition).predict(points)
    factors = {"surface_pressure": 495.0, "volume_pressure": 495.0, "volume_velocity": 30.0}
    for name, factor in factors.items():
        np.testing.assert_allclose(found[name], factor * coefficients[name], rtol=1e-4, atol=1e-3 * factor)
    assert main(["export", str(trained), "--out", str(tmp_path / "run.emmi")]) == 0
    exported = deploy.load(tmp_path / "run.emmi").encode(points=points, condition=condition).predict(points)
    for name, values in found.items():
        np.testing.assert_allclose(exported[name], values, rtol=1e-6)
    with pytest.raises(ValueError, match="fields are relative to the condition 'speed': give the conditions by their"):
        surrogate.encode(points=points, condition=[0.0, 0.0])


def test_forces_agree_with_those_of_coefficients(trained, cases):
    surrogate, condition = emmi_jax.load_run(trained), {"speed": 30.0, "density": 1.1}
    volume = np.asarray(import_pyvista().read(cases / "run_0" / "volume_1.vtu").cell_centers().points)
    surface = read_surface(cases / "run_0" / "boundary_1.vtp")
    options = {"condition": condition, "points": {"volume": volume}}
    physical = sensitivity(surrogate, surface, drag(speed=30.0, area=2.0, density=1.1), **options)
    bare = replace(surrogate, normalizer=replace(surrogate.normalizer, nondimensionalize=None))
    of_coefficients = sensitivity(bare, surface, drag(speed=1.0, area=2.0, density=2.0), **options)
    assert of_coefficients.value == pytest.approx(physical.value, rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(physical.vertices, of_coefficients.vertices, rtol=1e-2, atol=1e-5)
    assert physical.condition == {}  # speed and density change the scales of the fields, too


def test_an_evaluation_is_in_physical_units(trained, tmp_path):
    assert main(["evaluate", str(trained), "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation_test.json").read_text())["mean"]
    assert found["volume/velocity"]["relative_l2"] < 0.2  # the mean of u/U, times the speed of the case


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"speed": "U"}, "nondimensionalize names the condition 'U', the conditions are density, speed"),
        ({"density": "density"}, "ScalingLaw lacks the key 'speed'"),
    ],
)
def test_a_law_of_conditions_that_are_not_there_is_refused(cases, law, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(settings(cases, nondimensionalize=law))


def test_a_speed_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="the condition 'U', which must be positive, got 0"):
        field_factor("velocity", ScalingLaw(speed="U"), {"U": 0.0})


@pytest.mark.parametrize("is_single", [True, False])
def test_conditions_of_what_is_no_folder_of_cases_are_refused(is_single: bool, tmp_path: Path) -> None:
    path = write_case_folder(tmp_path / "case") if is_single else None
    settings = tiny_settings(path, **NO_GEOMETRY).updated({"conditions": {"inlet": "front"}})
    with pytest.raises(ValueError, match=r"conditions need a folder of cases, got \{'inlet': 'front'\}"):
        load_dataset(settings)
