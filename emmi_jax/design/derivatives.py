"""Values and exact derivatives of functionals of a surrogate's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from emmi_jax.design.adjoint import (
    streamed_derivative,
    streamed_gradient,
    streamed_second_derivative,
    streamed_value,
)
from emmi_jax.design.functionals import Functional
from emmi_jax.design.problem import CaseInputs, Problem, Sensitivity
from emmi_jax.design.surface import Surface, add_rows
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.points import Array


def evaluate(surrogate: Surrogate, surface: Surface, functional: Functional, **options: Any) -> float:
    """Computes a functional, streaming once over its points.

    Args:
        surrogate: The surrogate.
        surface: The surface, with fields in its cells.
        functional: What to compute.
        **options: The arguments of `CaseInputs`.

    Raises:
        ValueError: See `sensitivity`.
    """
    if surrogate.others:
        return float(np.mean([evaluate(member, surface, functional, **options) for member in surrogate.members]))
    problem = Problem(CaseInputs(surrogate=surrogate, **options), surface, functional)
    return functional.check_value(float(streamed_value(problem.program, problem.streams)))


def sensitivity(surrogate: Surrogate, surface: Surface, functional: Functional, **options: Any) -> Sensitivity:
    """Computes a functional and its exact gradient with respect to every vertex of the surface.

    The gradient goes through all that depends on a vertex: centres, normals and areas of its cells; the anchors, which
    are cell centres; and the geometry points, which are cell centres too, or fixed combinations of the corners of
    triangles. It is that of one draw of anchors and geometry points, with the neighbours that each supernode has now.
    Where a shift is large enough to change the neighbours, or other points are drawn, the functional jumps by a little,
    and a finite difference across the jump says nothing about the gradient: compare with `draws` of the result. Points
    and anchors of other branches do not move with the surface.

    Memory does not grow with the mesh: points are streamed forward, then backward, where each chunk is computed again;
    or once, forward and backward, if the functional is linear in its sums, as forces and integrals are.

    Args:
        surrogate: The surrogate.
        surface: The surface, with fields in its cells. Fields are predicted at the mean of the corners of each cell.
        functional: What to differentiate, such as `drag`.
        **options: Arguments of `CaseInputs`: geometry, points, anchors, condition, draws, seed, chunk_size, devices.

    Raises:
        ValueError: The model lacks a branch or field, a branch has no points, or positions are unusable.

    Example:
        >>> surface = read_surface("car.vtp")  # doctest: +SKIP
        >>> result = sensitivity(load_run("runs/car"), surface, drag(speed=38.889, area=2.17))  # doctest: +SKIP
        >>> result.vertices  # d Cd / d vertex, [V, 3]  # doctest: +SKIP
    """
    if surrogate.others:
        results = [sensitivity(member, surface, functional, **options) for member in surrogate.members]
        return mean_sensitivity(results, partial(np.mean, axis=0))
    problem = Problem(CaseInputs(surrogate=surrogate, **options), surface, functional)
    vertices = np.zeros_like(surface.vertices)

    def collect(branch: str, start: int, d_offset: Any) -> None:
        idx = surface.corners[start : start + len(d_offset)]
        add_rows(vertices, idx, np.asarray(d_offset)[: len(idx)])

    value, gradient = streamed_gradient(problem.program, problem.streams, collect)
    return problem.finish(functional.check_value(float(value)), vertices, gradient)


def mean_sensitivity(results: Sequence[Sensitivity], mean: Callable[[Any], Any]) -> Sensitivity:
    """Returns the mean of sensitivities of the same draws; `mean` is that of a list of numbers or of arrays."""
    trees = [(one.value, one.vertices, one.geometry, one.condition, one.anchors) for one in results]
    value, vertices, geometry, condition, anchors = jax.tree.map(lambda *leaves: mean(leaves), *trees)
    return Sensitivity(float(value), vertices, geometry, condition, anchors, results[0].draws)


def directional_derivative(
    surrogate: Surrogate,
    surface: Surface,
    functional: Functional,
    direction: ArrayLike,
    *,
    anchor_direction: Mapping[str, Array] | None = None,
    **options: Any,
) -> tuple[float, float]:
    """Computes a functional and its derivative along one displacement of the surface, in forward mode.

    For a few design parameters this is an alternative to `sensitivity`, and a check of it.

    Args:
        surrogate: The surrogate.
        surface: The surface.
        functional: What to differentiate.
        direction: Displacement [V, 3] of its vertices.
        anchor_direction: Displacements [T, 3] of the anchors of other branches; none by default.
        **options: The arguments of `sensitivity`; a mesh of the geometry and the condition stay fixed.

    Returns:
        The functional, and its derivative.

    Raises:
        ValueError: See `sensitivity`; or the direction is not [V, 3].
    """
    problem = Problem(CaseInputs(surrogate=surrogate, **options), surface, functional)
    tangents, moved = problem.directions(direction, anchor_direction or {})
    value, derivative = streamed_derivative(problem.program, problem.streams, tangents, moved)
    return functional.check_value(float(value)), float(derivative)


def hessian_vector_product(
    surrogate: Surrogate,
    surface: Surface,
    functional: Functional,
    direction: ArrayLike,
    *,
    anchor_direction: Mapping[str, Array] | None = None,
    **options: Any,
) -> tuple[Sensitivity, Sensitivity]:
    """Computes a sensitivity, and its derivative along one displacement of the surface: the Hessian times a direction.

    Args:
        surrogate: The surrogate.
        surface: The surface.
        functional: What to differentiate, twice.
        direction: Displacement [V, 3] of its vertices.
        anchor_direction: Displacements [T, 3] of the anchors of other branches; none by default.
        **options: The arguments of `sensitivity`; a mesh of the geometry and the condition stay fixed.

    Returns:
        The sensitivity, and the derivative of everything in it.

    Raises:
        ValueError: See `sensitivity`; or the direction is not [V, 3].
    """
    problem = Problem(CaseInputs(surrogate=surrogate, **options), surface, functional)
    tangents, moved = problem.directions(direction, anchor_direction or {})
    both = np.zeros_like(surface.vertices), np.zeros_like(surface.vertices)

    def collect(branch: str, start: int, d_offsets: Any) -> None:
        idx = surface.corners[start : start + len(d_offsets[0])]
        for vertices, d_offset in zip(both, d_offsets, strict=True):
            add_rows(vertices, idx, np.asarray(d_offset)[: len(idx)])

    values, gradients = streamed_second_derivative(problem.program, problem.streams, tangents, moved, collect)
    functional.check_value(float(values[0]))
    first, second = (problem.finish(float(values[i]), both[i], gradients[i]) for i in range(2))
    return first, second
