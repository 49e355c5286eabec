"""Coefficients of the forces and moments on a surface, as functionals.

>>> objective = drag(speed=38.889, area=2.17) + 0.2 * lift(speed=38.889, area=2.17)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from numpy.typing import ArrayLike

from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.design.functionals import Fields, Functional, Sums, Terms, unit, vector
from emmi_jax.meshes.forces import ForceReference, field_forces


def drag(*, speed: float, area: float, density: float = 1.0, direction: ArrayLike = (1.0, 0.0, 0.0)) -> Functional:
    """Returns the drag coefficient: the force along `direction` over dynamic pressure and reference area.

    It is computed from the pressure, or pressure coefficient, of the branch ``surface``, and its wall shear stress if
    there is one, with the signs of `emmi_jax.meshes.forces.integrate_forces`.

    Args:
        speed: Speed of the stream, m/s.
        area: Reference area, m².
        density: Density of the stream, kg/m³; 1 for a pressure divided by the density.
        direction: Along the stream [3], of any length.

    Raises:
        ValueError: A reference value is not positive, or the direction is zero.
    """
    return _force(unit("direction", direction), ForceReference(area=area, speed=speed, density=density))


def lift(*, speed: float, area: float, density: float = 1.0, direction: ArrayLike = (0.0, 0.0, 1.0)) -> Functional:
    """Returns the lift coefficient; see `drag`."""
    return drag(speed=speed, area=area, density=density, direction=direction)


def side_force(
    *, speed: float, area: float, density: float = 1.0, direction: ArrayLike = (0.0, 1.0, 0.0)
) -> Functional:
    """Returns the side force coefficient; see `drag`."""
    return drag(speed=speed, area=area, density=density, direction=direction)


def moment(
    *,
    speed: float,
    area: float,
    length: float,
    density: float = 1.0,
    axis: ArrayLike = (0.0, 1.0, 0.0),
    about: ArrayLike = (0.0, 0.0, 0.0),
) -> Functional:
    """Returns the moment coefficient about an axis through a point.

    Args:
        speed: Speed of the stream, m/s.
        area: Reference area, m².
        length: Reference length, m.
        density: Density of the stream, kg/m³; 1 for a pressure divided by the density.
        axis: The axis [3], of any length; y for pitching.
        about: A point on the axis [3], m.

    Raises:
        ValueError: A reference value is not positive, or the axis is zero.
    """
    if not 0 < length < float("inf"):
        raise ValueError(f"length must be positive, got {length}")
    reference = ForceReference(area=area, speed=speed, density=density)
    along, origin = unit("axis", axis), vector("about", about)

    def terms(position: Any, fields: Fields, normal: Any, area: Any) -> Terms:
        force = field_forces(fields, normal, area, dynamic_pressure=reference.dynamic_pressure)
        return {"moment": (jnp.cross(position, force) * jnp.asarray(along, force.dtype)).sum(axis=-1)}

    scale = 1 / (reference.dynamic_pressure * reference.area * length)
    sums = Sums(GEOMETRY_BRANCH, terms, about=tuple(origin))
    return Functional((sums,), lambda totals: totals[0]["moment"] * scale)


def _force(direction: Any, reference: ForceReference) -> Functional:
    def terms(position: Any, fields: Fields, normal: Any, area: Any) -> Terms:
        force = field_forces(fields, normal, area, dynamic_pressure=reference.dynamic_pressure)
        return {"force": (force * jnp.asarray(direction, force.dtype)).sum(axis=-1)}

    scale = 1 / (reference.dynamic_pressure * reference.area)
    return Functional((Sums(GEOMETRY_BRANCH, terms),), lambda totals: totals[0]["force"] * scale)
