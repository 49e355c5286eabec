"""Constraints on an optimised shape, as penalties on the vertices of its surface."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from emmi_jax.design.functionals import vector
from emmi_jax.design.surface import Surface, Vertices, add_rows

Penalty: TypeAlias = Callable[[Surface, Surface], tuple[float, Vertices]]
"""From the moved surface and the one it started from to a value and its gradient [V, 3] by the moved vertices."""


def enclosed_volume(surface: Surface) -> tuple[float, Vertices]:
    """Returns the volume that a closed surface encloses, and its gradient [V, 3]."""
    middle = surface.vertices.mean(axis=0)
    triangles = surface.triangles()
    first, second, third = np.moveaxis((surface.vertices - middle)[triangles], 1, 0)
    normal = np.cross(second, third)
    gradient = np.zeros_like(surface.vertices)
    add_rows(gradient, triangles, np.stack([normal, np.cross(third, first), np.cross(first, second)], axis=1) / 6)
    return float(np.einsum("tn,tn->", first, normal) / 6), gradient


def keep_volume(weight: float = 100.0) -> Penalty:
    """Returns weight · (volume / initial volume - 1)².

    Raises:
        ValueError: The weight is not positive.
    """
    check_weight(weight)

    def penalty(surface: Surface, start: Surface) -> tuple[float, Vertices]:
        initial, _ = enclosed_volume(start)
        volume, gradient = enclosed_volume(surface)
        change = volume / initial - 1
        return weight * change**2, 2 * weight * change / initial * gradient

    return penalty


def keep_clearance(weight: float = 1000.0, *, axis: str = "z") -> Penalty:
    """Returns weight · mean over the vertices of (depth below the lowest point at the start / height at the start)².

    Args:
        weight: The weight.
        axis: What points upwards: ``x``, ``y`` or ``z``.

    Raises:
        ValueError: The weight is not positive, or there is no such axis.
    """
    check_weight(weight)
    if axis not in ("x", "y", "z"):
        raise ValueError(f"axis must be x, y or z, got {axis!r}")
    up = "xyz".index(axis)

    def penalty(surface: Surface, start: Surface) -> tuple[float, Vertices]:
        lowest, height = start.vertices[:, up].min(), np.ptp(start.vertices[:, up])
        depth = np.maximum(lowest - surface.vertices[:, up], 0.0) / height
        gradient = np.zeros_like(surface.vertices)
        gradient[:, up] = -2 * weight * depth / height / len(depth)
        return float(weight * np.mean(depth**2)), gradient

    return penalty


def keep_box_free(low: ArrayLike, high: ArrayLike, *, weight: float = 100.0) -> Penalty:
    """Returns weight · mean over the vertices of (depth in the box / its shortest side)².

    Depth is the distance to the nearest face. Large boxes serve as half-spaces.

    Args:
        low: Lowest corner [3].
        high: Highest corner [3].
        weight: The weight.

    Raises:
        ValueError: The box is empty, or the weight is not positive.
    """
    check_weight(weight)
    first, last = vector("low", low), vector("high", high)
    if not (first < last).all():
        raise ValueError(f"the box must have three positive sides, got {first.tolist()} … {last.tolist()}")
    side = float((last - first).min())

    def penalty(surface: Surface, start: Surface) -> tuple[float, Vertices]:
        # Faces in the order low x, y, z, high x, y, z; the outward way out of the nearest one lowers the depth.
        distance = np.concatenate([surface.vertices - first, last - surface.vertices], axis=1)
        nearest = distance.argmin(axis=1)
        depth = np.maximum(distance[np.arange(len(distance)), nearest], 0.0) / side
        gradient = np.zeros_like(surface.vertices)
        sign = np.where(nearest < 3, 1.0, -1.0)
        gradient[np.arange(len(depth)), nearest % 3] = 2 * weight * depth * sign / side / len(depth)
        return float(weight * np.mean(depth**2)), gradient

    return penalty


def check_weight(weight: float) -> None:
    """Refuses a weight that is not positive."""
    if not 0 < weight < np.inf:
        raise ValueError(f"weight must be positive, got {weight}")
