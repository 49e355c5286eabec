"""Derivatives by the conditions of a run, and shapes for several of them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.config.design import OptimizationJob, SensitivityJob
from emmi_jax.data.conditions import ConditionScale
from emmi_jax.data.samples import Context
from emmi_jax.design import Lattice, MorphedCase, MultiPointCase, drag, evaluate, optimize, sensitivity
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.conditions import under_condition, weighted_conditions
from emmi_jax.jobs.optimize import optimize_surface
from emmi_jax.jobs.sensitivity import differentiate_surface
from tests.design.cases import VOLUME, build, double_precision, ellipsoid, in_double

SCALES = {
    "viscosity": ConditionScale(kind="logarithmic", low=0.1, high=10.0, mean=0.0, std=1.0),
    "wind": ConditionScale(unit="deg", kind="angle", low=0, high=350, mean=170, std=100),
    "yaw": ConditionScale(unit="deg", kind="angle", low=-15, high=15, mean=0, std=8),
}
CONDITION = {"yaw": 4.0, "wind": 80.0, "viscosity": 2.0}
DRAG, SURFACE = drag(area=1.5, speed=2.0), ellipsoid()
JOB: dict[str, Any] = {"run": Path("run"), "area": 1.5, "speed": 2.0}


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    plain = build(condition_dim=4)
    named = replace(plain, normalizer=replace(plain.normalizer, conditions=SCALES))
    return replace(named, context=Context({"volume": VOLUME.position[:8]}))


def test_derivatives_by_conditions_are_exact_and_in_their_units(surrogate):
    with double_precision():
        exact = replace(in_double(surrogate), context=surrogate.context)
        result = sensitivity(exact, SURFACE, DRAG, condition=CONDITION)
        for name, value in CONDITION.items():
            at = [
                evaluate(exact, SURFACE, DRAG, condition=CONDITION | {name: value + step}, draws=result.draws)
                for step in (1e-3 * value, -1e-3 * value)
            ]
            # Channels are float32.
            assert result.condition[name] == pytest.approx((at[0] - at[1]) / (2e-3 * value), rel=1e-2), name


def test_a_functional_over_conditions_is_the_weighted_mean_of_its_values_and_gradients(surrogate):
    lattice, other = Lattice.around(SURFACE, (2, 2, 2)), CONDITION | {"yaw": -10.0}
    parameters = np.random.default_rng(0).normal(size=lattice.zeros().shape) * 0.02
    arguments = surrogate, SURFACE, DRAG, lattice
    both = MultiPointCase(*arguments, conditions=((3.0, CONDITION), (1.0, other)))
    single = [MorphedCase(*arguments, options={"condition": condition}) for condition in (CONDITION, other)]
    values, gradients = zip(*(case.gradient(parameters) for case in single), strict=True)
    value, gradient = both.gradient(parameters)
    assert values[0] != values[1]
    assert value == pytest.approx(np.average(values, weights=(3, 1)), rel=1e-5)
    assert both.value(parameters) == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(gradient, np.average(gradients, axis=0, weights=(3, 1)), rtol=1e-4, atol=1e-6)
    found = optimize(both, lattice.zeros(), max_displacement=0.05, steps=3, checks=1)
    assert found.after.mean() < found.before.mean()
    with pytest.raises(ValueError, match="expected conditions with positive weights"):
        MultiPointCase(*arguments, conditions=((0.0, CONDITION),))


@pytest.fixture
def body(tmp_path: Path) -> Path:
    SURFACE.mesh.dataset.save(tmp_path / "body.vtp")
    return tmp_path / "body.vtp"


def test_the_command_tells_derivatives_by_conditions(surrogate, body, tmp_path):
    printed = io.StringIO()
    console = Console(file=printed, width=100)
    job = SensitivityJob(surface=body, out=tmp_path / "out", **JOB)
    under = under_condition(surrogate, "yaw=4,wind=80,viscosity=2", console)
    differentiate_surface(job, under, console=console)
    found = json.loads((tmp_path / "out" / "sensitivity.json").read_text())["d_drag"]
    expected = sensitivity(surrogate, SURFACE, DRAG, condition=CONDITION).condition
    assert found == pytest.approx(expected, rel=1e-3)
    assert f"d drag / d yaw: {found['yaw']:.5g} per deg" in printed.getvalue()


def test_the_command_lowers_a_weighted_mean_over_conditions(surrogate, body, tmp_path):
    console = Console(file=io.StringIO(), width=100)
    texts = ["3*yaw=4,wind=80,viscosity=2", "yaw=-10,wind=80,viscosity=2"]
    conditions = weighted_conditions(surrogate, texts, console)
    assert [weight for weight, _ in conditions] == [3.0, 1.0]
    job = OptimizationJob(
        surface=body, out=tmp_path / "out", lattice=(2, 2, 2), max_displacement=0.05, steps=2, condition=texts, **JOB
    )
    optimize_surface(job, surrogate, conditions, console=console)
    drag_of = json.loads((tmp_path / "out" / "optimization.json").read_text())["coefficients"]["drag"]
    assert drag_of["after"] < drag_of["before"]
    with pytest.raises(ValueError, match=r"has the form 0\.3\*speed=40,yaw=5, got '-1\*yaw=4'"):
        weighted_conditions(surrogate, ["-1*yaw=4"], console)
