"""Shapes with a lower drag, or whatever a functional says: gradient steps on the parameters of a morph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.design.familiar import CasePenalty
from emmi_jax.design.morphed import MorphedCase
from emmi_jax.design.morphs import Lattice, Parameters, parameter_gradient
from emmi_jax.design.penalties import Penalty
from emmi_jax.design.surface import Surface, Vertices

_SHRINKS = 20
_SLACK = 1e-6


class Step(NamedTuple):
    """One step: the functional and the penalties before it, and how far the surface then moves at most from the start.

    `num_outside` counts vertices outside the box of the training data.
    """

    value: float
    penalty: float
    displacement: float
    num_outside: int


@dataclass(frozen=True, eq=False)
class Optimization:
    """Result of `optimize`.

    Args:
        parameters: The parameters of the last shape.
        surface: The last shape.
        history: The steps. Each is on other draws, unless `redraw` is off, so its value has their noise.
        before: The functional of the first shape [checks], each on draws that no step has seen.
        after: The functional of the last shape on the same draws.
        stopped: Why it ended before the last step; empty if it did not.
    """

    parameters: Parameters
    surface: Surface
    history: list[Step]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    stopped: str = ""


def optimize(
    case: MorphedCase,
    parameters: Parameters,
    *,
    max_displacement: float,
    steps: int = 50,
    penalties: Sequence[Penalty] = (),
    case_penalties: Sequence[CasePenalty] = (),
    symmetry: str | None = None,
    transformation: Any = None,
    redraw: bool = True,
    checks: int = 3,
    advance: Callable[[Step], object] = lambda step: None,
) -> Optimization:
    """Lowers a functional plus penalties by changing the parameters of a morph.

    Anchors and geometry points are drawn anew for every step, so that the optimum is none of one draw. It stops early
    if more vertices leave the box of the training data than were outside at the start: there the surrogate guesses.

    Args:
        case: The functional of a morphed shape; negate it to raise it.
        parameters: Where to start.
        max_displacement: How far a vertex may move from the surface of the case, in the unit of the mesh.
        steps: Number of steps.
        penalties: What the shape must not do, such as `keep_volume()`.
        case_penalties: The same for what depends on the model, such as `keep_familiar(familiarity)`.
        symmetry: Axis ``x``, ``y`` or ``z``: a `Lattice` then moves symmetrically about its middle plane across it.
        transformation: An `optax.GradientTransformation`; by default Adam, with steps that shrink and together go about
            twice as far as the bound. For L-BFGS, chain `optax.scale_by_lbfgs()` with a step size, and do not redraw.
        redraw: Whether each step draws other points.
        checks: How many further draws the first and the last shape are compared on.
        advance: Called after each step.

    Raises:
        ValueError: An argument is out of range, the morph has no symmetry, or the functional is not finite.
        ImportError: optax is not installed.
    """
    _check_sizes(max_displacement, steps, checks)
    project = _projection(case, parameters, max_displacement, symmetry)
    transformation = _adam(max_displacement, steps) if transformation is None else transformation
    first = current = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        state = transformation.init(_as_jax(current))
    num_outside_of = case.surrogate.normalizer.num_outside
    history, stopped = list[Step](), ""
    for number in range(steps):
        drawn = _redrawn(case, number) if redraw else case
        value, penalty, gradient = _objective(drawn, current, penalties, case_penalties)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = transformation.update(_as_jax(gradient), state, _as_jax(current))
        proposed = project(jax.tree.map(lambda leaf, update: leaf + np.asarray(update, np.float64), current, updates))
        num_outside = num_outside_of(moved := case.moved(proposed).vertices)
        history.append(Step(value, penalty, _largest(moved - case.surface.vertices), num_outside))
        advance(history[-1])
        if num_outside > num_outside_of(case.surface.vertices):
            stopped = f"step {number + 1} moves {num_outside} vertices out of the box of the training data"
            break
        current = proposed
    before, after = _compared(case, range(steps, steps + checks), first, current)
    return Optimization(current, case.moved(current), history, before, after, stopped)


def _check_sizes(max_displacement: float, steps: int, checks: int) -> None:
    if not 0 < max_displacement < np.inf:
        raise ValueError(f"max_displacement must be positive, got {max_displacement}")
    if steps < 1 or checks < 1:
        raise ValueError(f"steps and checks must be at least 1, got {steps} and {checks}")


def _adam(max_displacement: float, steps: int) -> Any:
    """Returns Adam with steps that shrink and together go about twice as far as the bound."""
    import optax

    size = max_displacement * min(4 / steps, 1 / 4)
    return optax.adam(optax.cosine_decay_schedule(size, steps, alpha=0.1))


def _compared(case: MorphedCase, numbers: range, *shapes: Parameters) -> list[NDArray[np.float64]]:
    """Returns the values of shapes on the same further draws."""
    unseen = [_redrawn(case, number) for number in numbers]
    return [np.array([drawn.value(at) for drawn in unseen]) for at in shapes]


def _objective(
    case: MorphedCase,
    parameters: Parameters,
    penalties: Sequence[Penalty],
    case_penalties: Sequence[CasePenalty],
) -> tuple[float, float, Parameters]:
    """Returns the functional, the penalties, and the gradient of their sum."""
    result = case.sensitivity(parameters)
    gradient = case.pull_back(parameters, result)
    surface, total = case.moved(parameters), 0.0
    by_vertex = np.zeros_like(surface.vertices)
    for penalty in penalties:
        value, of_vertices = penalty(surface, case.surface)
        total, by_vertex = total + value, by_vertex + of_vertices
    pulled = parameter_gradient(case.morph, parameters, case.surface.vertices, by_vertex)
    gradient = jax.tree.map(np.add, gradient, pulled)
    for of_case in case_penalties:
        value, slope = of_case(case, parameters)
        total, gradient = total + value, jax.tree.map(np.add, gradient, slope)
    return result.value, total, gradient


def _redrawn(case: MorphedCase, number: int) -> MorphedCase:
    """Returns the case with other draws, all different from its own."""
    seed = case.options.get("seed", 0) + 1 + number
    return replace(case, options={**case.options, "seed": seed}, draws=None)


def _projection(
    case: MorphedCase, parameters: Parameters, bound: float, symmetry: str | None
) -> Callable[[Parameters], Parameters]:
    """Returns what brings parameters back to shapes that are allowed."""
    morph = case.morph
    if symmetry is not None and (symmetry not in ("x", "y", "z") or not isinstance(morph, Lattice)):
        raise ValueError(f"symmetry must be x, y or z, of a Lattice; got {symmetry!r} of {type(morph).__name__}")

    def project(proposed: Parameters) -> Parameters:
        if isinstance(morph, Lattice):
            proposed = proposed if symmetry is None else _symmetric(proposed, "xyz".index(symmetry))
            # A point moves by a mean of its control points, so it moves no farther than they do.
            length = np.linalg.norm(proposed, axis=-1, keepdims=True)
            return proposed * np.minimum(1, bound / np.maximum(length, bound))
        for _ in range(_SHRINKS):
            largest = _largest(case.moved(proposed).vertices - case.surface.vertices)
            if largest <= bound * (1 + _SLACK):
                return proposed
            share = bound / largest
            proposed = jax.tree.map(lambda start, end, share=share: start + share * (end - start), parameters, proposed)
        raise ValueError(f"the morph moves the surface by {largest:g} at the start: max_displacement is {bound:g}")

    return project


def _symmetric(parameters: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Returns displacements of control points that mirror each other across the middle plane of an axis."""
    mirrored = np.flip(parameters, axis=axis) * np.where(np.arange(3) == axis, -1.0, 1.0)
    return (parameters + mirrored) / 2


def _as_jax(tree: Parameters) -> Parameters:
    """Returns the tree in the widest floats that JAX has."""
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), tree)


def _largest(displacement: Vertices) -> float:
    return float(np.linalg.norm(displacement, axis=1).max())
