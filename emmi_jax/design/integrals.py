"""Integrals, means and smooth extrema of a field over a surface or a box of the volume, as functionals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emmi_jax.design.functionals import NO_LOGARITHM, Box, Fields, Functional, PointFunction, Sums, per_point
from emmi_jax.ops.arrays import safe_norm


def integral(branch: str, field: str, *, component: int | None = None, box: Box | None = None) -> Functional:
    """Returns the integral of a field over a surface or a volume.

    Args:
        branch: The branch.
        field: The field.
        component: Component of a vector; None means its magnitude, or a scalar itself.
        box: Only cells with their centre in this box count; a cell on its way through a face has no derivative.

    Raises:
        ValueError: The box is no box. One without points is refused when the functional is computed.
    """
    terms = _sized(branch, _scalar(branch, field, component), lambda value, size: value * size)
    return per_point(branch, terms, box=box)


def mean(branch: str, field: str, *, component: int | None = None, box: Box | None = None) -> Functional:
    """Returns the mean of a field over a surface or a volume; see `integral`."""
    scalar = _scalar(branch, field, component)
    value = _sized(branch, scalar, lambda value, size: value * size)
    size = _sized(branch, scalar, lambda value, size: size)
    sums = Sums(branch, lambda *point: {"value": value(*point), "size": size(*point)}, box=box)
    return Functional((sums,), lambda totals: totals[0]["value"] / totals[0]["size"])


def smooth_maximum(
    branch: str, field: str, *, sharpness: float, component: int | None = None, box: Box | None = None
) -> Functional:
    """Returns a differentiable stand-in for the largest value of a field, log(mean(exp(k·f))) / k.

    It lies below the maximum, the closer the larger the sharpness k, and does not depend on how fine the mesh is.

    Args:
        branch: The branch.
        field: The field.
        sharpness: k, in the inverse unit of the field; values within 1/k of the maximum take part.
        component: Component of a vector; None means its magnitude, or a scalar itself.
        box: Only cells with their centre in this box count.

    Raises:
        ValueError: The sharpness is not positive, or the box is no box; see `integral`.
    """
    return _smooth_extremum(branch, _scalar(branch, field, component), sharpness, 1, box)


def smooth_minimum(
    branch: str, field: str, *, sharpness: float, component: int | None = None, box: Box | None = None
) -> Functional:
    """Returns a differentiable stand-in for the smallest value of a field; see `smooth_maximum`."""
    return _smooth_extremum(branch, _scalar(branch, field, component), sharpness, -1, box)


def _smooth_extremum(
    branch: str, scalar: Callable[[Fields], jax.Array], sharpness: float, sign: int, box: Box | None
) -> Functional:
    if not 0 < sharpness < float("inf"):
        raise ValueError(f"sharpness must be positive, got {sharpness}")
    factor = sign * sharpness

    def exponent(value: jax.Array, size: jax.Array) -> jax.Array:
        return jnp.where(size > 0, factor * value + jnp.log(jnp.where(size > 0, size, 1)), NO_LOGARITHM)

    weighted = _sized(branch, scalar, exponent)
    size = _sized(branch, scalar, lambda value, size: size)
    sums = Sums(
        branch,
        lambda *point: {"exponent": weighted(*point), "size": size(*point)},
        logarithmic=frozenset({"exponent"}),
        box=box,
    )
    return Functional((sums,), lambda totals: (totals[0]["exponent"] - jnp.log(totals[0]["size"])) / factor)


def _scalar(branch: str, field: str, component: int | None) -> Callable[[Fields], jax.Array]:
    def scalar(fields: Fields) -> jax.Array:
        if field not in fields:
            raise ValueError(f"the branch {branch!r} has the fields {list(fields)}, got {field!r}")
        values = fields[field]
        if component is not None and not 0 <= component < values.shape[1]:
            raise ValueError(f"{branch}/{field} has {values.shape[1]} components, got component={component}")
        if component is not None or values.shape[1] == 1:
            return values[:, component or 0]
        return safe_norm(values)

    return scalar


def _sized(
    branch: str,
    scalar: Callable[[Fields], jax.Array],
    combine: Callable[[jax.Array, jax.Array], jax.Array],
) -> PointFunction:
    """Returns what each point contributes, from its value and the size of its cell."""

    def terms(position: jax.Array, fields: Fields, normal: Any, size: jax.Array | None) -> jax.Array:
        if size is None:
            raise ValueError(
                f"the points of {branch!r} have no cell sizes to integrate with: pass a PointSet with them"
            )
        return combine(scalar(fields), size)

    return terms
