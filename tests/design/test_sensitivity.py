"""Sensitivities: what `predict` computes, whatever the chunks and devices; and what is refused."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import AnchoredBranchedUPT
from emmi_jax.data.samples import Context
from emmi_jax.design import (
    Surface,
    drag,
    evaluate,
    integral,
    lift,
    mean,
    per_point,
    read_surface,
    sensitivity,
    smooth_maximum,
)
from emmi_jax.design.encoding import vjp_encoding
from emmi_jax.design.program import chunk_sums, vjp_chunk
from emmi_jax.inference.meshes import geometry_points, predict_on_meshes, surface_forces
from emmi_jax.meshes.branch_mesh import geometry_mesh, query_mesh
from emmi_jax.meshes.forces import ForceReference
from emmi_jax.points import PointSet
from tests.design.cases import SAMPLING, VOLUME, build, ellipsoid

REPOSITORY = Path(__file__).parents[2]
DRAG, LIFT = (coefficient(speed=2.0, area=1.5) for coefficient in (drag, lift))
DRAG_AND_SPEED = DRAG + mean("volume", "velocity")
SURFACE = ellipsoid()
POINTS: dict[str, Any] = {"points": {"volume": VOLUME}}


@pytest.fixture(scope="module")
def surrogate() -> Any:
    return build()


@pytest.mark.parametrize("method", ["uniform", "weighted"])
@pytest.mark.parametrize("has_geometry", [False, True])
def test_the_value_is_that_of_predicting_and_integrating(
    surrogate: Any, method: Any, has_geometry: bool, tmp_path: Path
) -> None:
    surrogate = replace(surrogate, sampling=replace(SAMPLING, method=method))
    SURFACE.mesh.dataset.save(tmp_path / "body.vtp")
    ellipsoid((1.01, 0.7, 0.5), 6).mesh.dataset.triangulate().save(tmp_path / "body.stl")
    anchors = {"volume": VOLUME.position[:8]}
    mesh = query_mesh(tmp_path / "body.vtp")
    stored = replace(surrogate, context=Context(anchors))
    geometry = geometry_points(geometry_mesh(tmp_path / "body.stl")) if has_geometry else None
    predicted = predict_on_meshes(stored, {"surface": mesh}, geometry=geometry)["surface"]
    expected = surface_forces(predicted, mesh, ForceReference(area=1.5, speed=2.0)).coefficients["predicted"]
    surface = read_surface(tmp_path / "body.vtp")
    other = {"geometry": read_surface(tmp_path / "body.stl")} if has_geometry else {}
    found = [evaluate(surrogate, surface, functional, anchors=anchors, **other) for functional in (DRAG, LIFT)]
    np.testing.assert_allclose(found, [expected["cd"], expected["cl"]], rtol=1e-4, atol=1e-5)
    assert evaluate(stored, surface, DRAG, **other) == pytest.approx(found[0], rel=1e-6)


@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_chunks_of_any_size_give_the_same_gradient(surrogate: Any, chunk_size: int) -> None:
    expected = sensitivity(surrogate, SURFACE, DRAG_AND_SPEED, **POINTS, chunk_size=56)
    done: list[int] = []
    found = sensitivity(surrogate, SURFACE, DRAG_AND_SPEED, **POINTS, chunk_size=chunk_size, advance=done.append)
    assert found.value == pytest.approx(expected.value, rel=1e-5)
    np.testing.assert_allclose(found.vertices, expected.vertices, rtol=1e-4, atol=1e-5 * np.abs(found.vertices).max())
    assert sum(done) == 2 * (SURFACE.num_cells + len(VOLUME.position))


@pytest.mark.parametrize(
    ("functional", "is_linear"),
    [
        (DRAG, True),
        (2 * DRAG - LIFT + integral("volume", "pressure"), True),
        (DRAG.map(lambda value: 3 * value + 1), True),
        (DRAG.map(lambda value: value**2), False),
        (DRAG.map(lambda value: value if value > 0 else -value), False),
        (DRAG.map(lambda value: value * float(np.asarray(jax.lax.stop_gradient(value)))), False),
        (DRAG.map(lambda value: value[None][jax.lax.stop_gradient(value)[None] > -9].sum()), False),
        (DRAG_AND_SPEED, False),
        (smooth_maximum("volume", "velocity", sharpness=2.0), False),
    ],
    ids=["drag", "sum", "line", "square", "branch", "number", "index", "mean", "maximum"],
)
def test_chunks_go_forward_and_backward_at_once_where_the_functional_is_linear(
    surrogate: Any, functional: Any, is_linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward: list[str] = []

    def counted(program: Any, branch: str, *arguments: Any) -> Any:
        if not isinstance(arguments[-1].position, jax.core.Tracer):
            forward.append(branch)
        return chunk_sums(program, branch, *arguments)

    monkeypatch.setattr("emmi_jax.design.adjoint.chunk_sums", counted)
    done: list[int] = []
    sensitivity(surrogate, SURFACE, functional, **POINTS, chunk_size=30, advance=done.append)
    assert bool(forward) != is_linear
    counts = {"surface": SURFACE.num_cells, "volume": len(VOLUME.position)}
    assert sum(done) == 2 * sum(counts[branch] for branch in functional.branches)


def test_the_gradient_of_a_square_is_twice_the_value_times_that_of_the_number(surrogate: Any) -> None:
    """The two ways through the chunks agree."""
    at_once = sensitivity(surrogate, SURFACE, DRAG, **POINTS, chunk_size=30)
    in_turn = sensitivity(surrogate, SURFACE, DRAG.map(lambda value: value**2), **POINTS, chunk_size=30)
    assert at_once.value == pytest.approx(evaluate(surrogate, SURFACE, DRAG, **POINTS, chunk_size=30), rel=1e-6)
    expected = 2 * at_once.value * at_once.vertices
    np.testing.assert_allclose(in_turn.vertices, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_draws_follow_the_seed_and_can_be_used_again(surrogate: Any) -> None:
    first = sensitivity(surrogate, SURFACE, DRAG, **POINTS)
    other = evaluate(surrogate, SURFACE, DRAG, **POINTS, seed=1)
    assert other != pytest.approx(first.value, rel=1e-4)
    again = sensitivity(surrogate, SURFACE, DRAG, draws=first.draws, seed=1)
    np.testing.assert_array_equal(again.vertices, first.vertices)


def test_the_gradient_of_an_area_is_that_of_the_mesh(surrogate: Any) -> None:
    area = per_point("surface", lambda position, fields, normal, area: area)
    found = sensitivity(surrogate, SURFACE, area, **POINTS)
    assert found.value == pytest.approx(SURFACE.areas().sum(), rel=1e-5)
    # A dilation by 1 + h grows an area by 2 h, and a shift leaves it alone.
    assert (found.vertices * SURFACE.vertices).sum() == pytest.approx(2 * found.value, rel=1e-5)
    np.testing.assert_allclose(found.vertices.sum(axis=0), 0, atol=1e-5)


def test_half_precision_points_the_same_way(surrogate: Any) -> None:
    half = replace(surrogate, model=AnchoredBranchedUPT(replace(surrogate.model.config, dtype="bfloat16")))
    exact, rounded = (sensitivity(model, SURFACE, DRAG, **POINTS).vertices for model in (surrogate, half))
    assert (exact * rounded).sum() > 0.98 * np.linalg.norm(exact) * np.linalg.norm(rounded)


def test_arrays_on_the_device_do_not_grow_with_the_number_of_points(surrogate: Any) -> None:
    def largest(resolution: int) -> tuple[int, int]:
        surface, sizes = ellipsoid(resolution=resolution), []
        gc.collect()

        def measure(_: int) -> None:
            sizes.append(sum(array.nbytes for array in jax.live_arrays()))

        sensitivity(surrogate, surface, DRAG, **POINTS, chunk_size=16, advance=measure)
        return surface.num_cells, max(sizes)

    (few, small), (many, large) = largest(8), largest(20)
    assert many > 5 * few
    # A sum per chunk stays, and what it says about the functional.
    assert large - small <= 64 * (many - few) / 16


def test_other_draws_and_shapes_compile_nothing(surrogate: Any) -> None:
    sensitivity(surrogate, SURFACE, DRAG, **POINTS, seed=1)
    before = [function._cache_size() for function in (chunk_sums, vjp_chunk, vjp_encoding)]
    for seed in (2, 3):
        moved = SURFACE.moved(SURFACE.vertices * (1 + 0.01 * seed))
        sensitivity(surrogate, moved, DRAG, **POINTS, seed=seed)
    assert [function._cache_size() for function in (chunk_sums, vjp_chunk, vjp_encoding)] == before


PROGRAM = """
import json
import jax
import numpy as np
from tests.design.cases import VOLUME, build, ellipsoid
from emmi_jax.design import drag, sensitivity

surrogate, surface = build(), ellipsoid()
functional = drag(speed=2.0, area=1.5)
one, all_of_them = (
    sensitivity(surrogate, surface, functional, points={"volume": VOLUME}, chunk_size=22, devices=devices)
    for devices in (jax.devices()[:1], None)
)
scale = np.abs(one.vertices).max()
difference = np.abs(one.vertices - all_of_them.vertices).max() / scale
print(json.dumps([len(jax.devices()), one.value - all_of_them.value, float(difference)]))
"""


def test_several_devices_share_the_chunks() -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    num_devices, value, gradient = json.loads(run.stdout)
    assert num_devices == 4
    assert abs(value) < 1e-5
    assert gradient < 1e-5


@pytest.mark.parametrize(
    ("functional", "options", "message"),
    [
        (DRAG, {}, "no anchors for the branch 'volume': give them, or points"),
        (integral("wing", "pressure"), POINTS, "reads the branch 'wing', the model has"),
        (integral("surface", "speed"), POINTS, r"'surface' has the fields \['pressure', 'wall_shear_stress'\], got 's"),
        (integral("volume", "velocity", component=3), POINTS, "volume/velocity has 3 components, got component=3"),
        (integral("volume", "pressure"), {"anchors": {"volume": VOLUME.position}}, "'volume': give its points"),
        (integral("volume", "pressure"), {"points": {"volume": PointSet(VOLUME.position, {})}}, "have no cell sizes"),
        (DRAG, {**POINTS, "anchors": {"surface": VOLUME.position}}, "come from the surface mesh, but others"),
        (DRAG, {"points": {"volume": VOLUME.position.tolist()}}, r"points of 'volume' must be an array .*, got list"),
        (DRAG, {"points": {"wing": VOLUME}}, r"unknown branches \['wing'\]"),
        (DRAG, {**POINTS, "condition": [1.0]}, "condition_dim=None but condition is given"),
        (DRAG, {**POINTS, "chunk_size": 0}, "chunk_size must be 'auto' or a positive integer, got 0"),
        (per_point("surface", lambda position, fields, normal, area: area.sum()), POINTS, r"one row for each point"),
    ],
)
def test_what_cannot_be_differentiated_is_refused(
    surrogate: Any, functional: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sensitivity(surrogate, SURFACE, functional, **options)


def test_points_may_be_an_array_of_positions(surrogate: Any) -> None:
    found, expected = (
        sensitivity(surrogate, SURFACE, DRAG, points={"volume": points})
        for points in (VOLUME.position, PointSet(VOLUME.position, {}))
    )
    np.testing.assert_array_equal(found.vertices, expected.vertices)


def test_an_open_surface_is_refused_unless_allowed(tmp_path: Path) -> None:
    dataset = SURFACE.mesh.dataset.triangulate()
    dataset.faces = np.asarray(dataset.faces).reshape(-1, 4)[3:].reshape(-1)
    dataset.save(tmp_path / "open.vtp")
    with pytest.raises(ValueError, match=r"open\.vtp: the surface is not closed: \d+ edges"):
        read_surface(tmp_path / "open.vtp")
    assert read_surface(tmp_path / "open.vtp", require_closed=False).num_open_edges


def test_a_surface_moves_only_to_finite_places() -> None:
    with pytest.raises(ValueError, match=r"finite numbers of shape \[50, 3\], got shape \[3\]"):
        SURFACE.moved(np.zeros(3))
    with pytest.raises(ValueError, match="vertices must be finite"):
        SURFACE.moved(SURFACE.vertices * np.nan)


def test_polygons_turn_counter_clockwise_whatever_the_file_says() -> None:
    flipped = Surface.from_mesh(replace(SURFACE.mesh, dataset=SURFACE.mesh.dataset.flip_faces()))
    for surface in (SURFACE, flipped):
        corners = surface.vertices[surface.corners[:, :3]]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (np.einsum("ni,ni->n", normal, surface.centers()) > 0).all()
    np.testing.assert_allclose(flipped.areas(), SURFACE.areas())
