"""Gradients against central differences in float64, with draws and neighbours held fixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from emmi_jax.config import SupernodePoolingConfig
from emmi_jax.design import (
    directional_derivative,
    drag,
    evaluate,
    mean,
    moment,
    sensitivity,
    smooth_maximum,
)
from emmi_jax.design.adjoint import streamed_gradient
from emmi_jax.design.problem import CaseInputs, Problem
from tests.design.cases import VOLUME, build, double_precision, ellipsoid, in_double

STREAM = {"speed": 2.0, "area": 1.5}
SURFACE = ellipsoid()
DIRECTION = np.random.default_rng(1).normal(size=SURFACE.vertices.shape)
STEP = 1e-4


@pytest.fixture(scope="module", autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


def central_difference(value: Any) -> float:
    """Fourth order: the error is that of float64, not of the step."""
    first, second = ((value(h) - value(-h)) / (2 * h) for h in (STEP, 2 * STEP))
    return (4 * first - second) / 3


def check(result: float, value: Any) -> None:
    assert result == pytest.approx(central_difference(value), rel=1e-6)


FORCES = drag(**STREAM) + 0.3 * moment(**STREAM, length=0.7, about=(0.1, 0.2, 0.3))
WAKE = smooth_maximum("volume", "velocity", sharpness=2.0) - 0.1 * mean("volume", "pressure")
CASES = {
    "masked, decoder": {
        "implementation": "masked",
        "blocks": ("perceiver",),
        "geometry_depth": 1,
        "decoder_depths": {"surface": 1},
    },
    "xla, radius": {
        "implementation": "xla",
        "supernode_pooling": SupernodePoolingConfig(radius=6.0, max_degree=8, mode="absrelpos"),
    },
    "blockwise, untied": {"implementation": "blockwise", "blocks": ("perceiver_untied", "self_untied")},
    "no_geometry": {"blocks": ("cross",), "remat": True},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_gradients_of_forces_are_exact(changes: dict[str, Any]) -> None:
    surrogate = in_double(build(**changes))
    options: dict[str, Any] = {"points": {"volume": VOLUME}, "chunk_size": 24}
    result = sensitivity(surrogate, SURFACE, FORCES, **options)
    options["draws"] = result.draws
    check(
        (result.vertices * DIRECTION).sum(),
        lambda step: evaluate(surrogate, SURFACE.moved(SURFACE.vertices + step * DIRECTION), FORCES, **options),
    )


@pytest.mark.parametrize("changes", [{}, {"vector_potentials": {"volume": ("velocity",)}}], ids=["plain", "curl"])
def test_a_functional_of_the_volume_has_an_exact_gradient_too(changes: dict[str, Any]) -> None:
    surrogate = in_double(build(**changes))
    options: dict[str, Any] = {"points": {"volume": VOLUME}, "chunk_size": 24}
    result = sensitivity(surrogate, SURFACE, WAKE, **options)
    check(
        (result.vertices * DIRECTION).sum(),
        lambda step: evaluate(
            surrogate, SURFACE.moved(SURFACE.vertices + step * DIRECTION), WAKE, draws=result.draws, **options
        ),
    )
    anchors = result.draws.anchors["volume"]
    along = np.random.default_rng(2).normal(size=anchors.shape)
    check(
        (result.anchors["volume"] * along).sum(),
        lambda step: evaluate(
            surrogate, SURFACE, WAKE, draws=replace(result.draws, anchors={"volume": anchors + step * along}), **options
        ),
    )


def test_the_mesh_of_the_geometry_has_an_exact_gradient_of_its_own() -> None:
    surrogate, body = in_double(build()), ellipsoid((1.02, 0.71, 0.52), 6)
    options: dict[str, Any] = {"points": {"volume": VOLUME}, "chunk_size": 24}
    result = sensitivity(surrogate, SURFACE, FORCES, geometry=body, **options)
    along = np.random.default_rng(2).normal(size=body.vertices.shape)
    options["draws"] = result.draws
    check(
        (result.geometry * along).sum(),
        lambda step: evaluate(surrogate, SURFACE, FORCES, geometry=body.moved(body.vertices + step * along), **options),
    )
    check(
        (result.vertices * DIRECTION).sum(),
        lambda step: evaluate(
            surrogate, SURFACE.moved(SURFACE.vertices + step * DIRECTION), FORCES, geometry=body, **options
        ),
    )


def test_a_condition_has_an_exact_gradient() -> None:
    surrogate, condition, along = in_double(build(condition_dim=2)), np.array([0.3, -0.2]), np.array([1.0, -2.0])
    options: dict[str, Any] = {"points": {"volume": VOLUME}, "chunk_size": 24}
    result = sensitivity(surrogate, SURFACE, FORCES, condition=condition, **options)
    check(
        (result.condition * along).sum(),
        lambda step: evaluate(surrogate, SURFACE, FORCES, condition=condition + step * along, **options),
    )


@pytest.mark.parametrize("changes", [{}, {"vector_potentials": {"volume": ("velocity",)}}], ids=["plain", "curl"])
def test_the_adjoint_and_the_forward_derivative_agree_to_the_last_digits(changes: dict[str, Any]) -> None:
    surrogate = in_double(build(blocks=("perceiver",), **changes))
    options: dict[str, Any] = {"points": {"volume": VOLUME}, "chunk_size": 30}
    result = sensitivity(surrogate, SURFACE, FORCES + WAKE, **options)
    value, derivative = directional_derivative(surrogate, SURFACE, FORCES + WAKE, DIRECTION, **options)
    assert value == pytest.approx(result.value, rel=1e-12)
    assert derivative == pytest.approx((result.vertices * DIRECTION).sum(), rel=1e-11)


def test_masked_anchors_take_no_part() -> None:
    """The streams serve a bare model too, whose anchors may be padded."""
    surrogate = in_double(build())
    options: dict[str, Any] = {"points": {"volume": VOLUME}, "chunk_size": 24}
    problem = Problem(CaseInputs(surrogate=surrogate, **options), SURFACE, FORCES)
    padded = problem.streams.inputs["anchors"]["surface"]
    mask = np.arange(padded.shape[1])[None] < 5
    short = {**problem.streams.inputs["anchors"], "surface": padded[:, :5]}
    cases = [{"anchor_masks": {"surface": mask}}, {"anchors": short}]
    found = []
    for changes in cases:
        streams = replace(problem.streams, inputs={**problem.streams.inputs, **changes})
        found.append(streamed_gradient(problem.program, streams, lambda branch, start, d_offset: None))
    (value, gradient), (expected, truncated) = found
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(gradient["anchors"]["surface"][:, :5], truncated["anchors"]["surface"], rtol=1e-9)
    assert not np.asarray(gradient["anchors"]["surface"][:, 5:]).any()
