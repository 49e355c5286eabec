"""Forces on a body from the pressure and the shear stress on its surface, and their coefficients.

NumPy arrays are summed in float64. JAX arrays and tracers are summed in float32, so derivatives pass through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from emmi_jax.points import float_arrays

DRAG_DIRECTION, LIFT_DIRECTION = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
_FACING = 1e-6
"""Share of the area from which on a surface faces a direction."""
_ABSOLUTE, _OPEN = 10.0, 1e-3
"""A mean pressure of so many deviations is absolute; an open surface faces one way by this share more."""


def integrate_forces(
    normal: ArrayLike,
    area: ArrayLike,
    pressure: ArrayLike,
    wall_shear_stress: ArrayLike | None = None,
    *,
    reference_pressure: float = 0.0,
) -> Any:
    """Integrates the force of a fluid on a body, `sum (tau - (p - p_ref) n) A` over the cells of its surface.

    Signs: normals point out of the body into the fluid, so pressure pushes against them. The shear stress is the
    traction of the fluid on the body: a stream along x drags a wall along +x. OpenFOAM's `wallShearStress` has the
    opposite sign, and so do the files of DrivAerML: scale it by -1. A pressure divided by the density, as
    incompressible OpenFOAM writes it, gives a force divided by the density.

    Args:
        normal: Outward unit normals [N, 3].
        area: Areas [N], m².
        pressure: Pressure [N] or [N, 1], Pa.
        wall_shear_stress: Traction on the body [N, 3], Pa; None for an ideal fluid.
        reference_pressure: Subtracted from the pressure, which matters for a surface that is not closed.

    Returns:
        Force [3] in N.

    Raises:
        ValueError: The shapes do not match.

    Example:
        >>> integrate_forces([[0.0, 0.0, 1.0]], [2.0], [3.0]).tolist()[2]
        -6.0
    """
    stress: ArrayLike = 0.0 if wall_shear_stress is None else wall_shear_stress
    _, n, a, p, tau = float_arrays(normal, area, pressure, stress)
    if a.ndim != 1:
        raise ValueError(f"area has shape {a.shape}, expected (N,)")
    p = p[:, None] if p.ndim == 1 else p
    checked = [("normal", n, 3), ("pressure", p, 1)] + [("wall_shear_stress", tau, 3)] * (tau.ndim > 0)
    for name, array, channels in checked:
        if array.shape != (len(a), channels):
            raise ValueError(f"{name} has shape {array.shape}, expected ({len(a)}, {channels})")
    # No matrix product, because accelerators compute those of float32 with fewer bits.
    return (a[:, None] * ((reference_pressure - p) * n + tau)).sum(axis=0)


def force_coefficients(
    force: ArrayLike,
    *,
    area: float,
    dynamic_pressure: float | None = None,
    density: float | None = None,
    speed: float | None = None,
    drag_direction: ArrayLike = DRAG_DIRECTION,
    lift_direction: ArrayLike = LIFT_DIRECTION,
) -> dict[str, Any]:
    """Divides the components of a force along two directions by dynamic pressure times reference area.

    Args:
        force: Force on the body [3], N.
        area: Reference area, m²; of a car, that of its frontal projection.
        dynamic_pressure: `density · speed² / 2`, Pa; else the next two are given.
        density: Density of the stream, kg/m³; 1 for a force divided by the density.
        speed: Speed of the stream, m/s.
        drag_direction: Along the stream [3], of any length.
        lift_direction: Upwards [3], of any length.

    Returns:
        The coefficients `cd` and `cl`, without unit: floats, or JAX scalars for a JAX array.

    Raises:
        ValueError: A reference value is missing, given twice or not positive; or a direction is zero.
    """
    if (dynamic_pressure is None) == (density is None and speed is None) or (density is None) != (speed is None):
        raise ValueError(
            "expected either dynamic_pressure or both density and speed, got "
            f"dynamic_pressure={dynamic_pressure}, density={density}, speed={speed}"
        )
    if dynamic_pressure is None and density is not None and speed is not None:
        dynamic_pressure = density * speed**2 / 2
    for name, value in (("area", area), ("dynamic pressure", dynamic_pressure)):
        if value is None or not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    directions = check_direction("drag_direction", drag_direction), check_direction("lift_direction", lift_direction)
    _, total, drag, lift = float_arrays(force, *directions)
    is_jax = isinstance(total, jax.Array)
    if total.shape != (3,) or not (is_jax or np.all(np.isfinite(total))):
        raise ValueError(f"force is {total if is_jax else total.tolist()}, expected 3 finite numbers")
    scale = (dynamic_pressure or 0.0) * area
    found = {"cd": (total * drag).sum() / scale, "cl": (total * lift).sum() / scale}
    return found if is_jax else {name: float(value) for name, value in found.items()}


def pressure_notes(
    normal: ArrayLike, area: ArrayLike, pressure: ArrayLike, directions: Mapping[str, ArrayLike]
) -> list[str]:
    """Returns what to know of the part of a force that is from pressure, a line each.

    That is a direction that no cell of the surface faces, and one along which the mean pressure makes most of the
    force, because the surface is open and the pressure absolute.

    Args:
        normal: Unit normals [N, 3].
        area: Areas [N].
        pressure: Pressure, or pressure coefficient, [N] or [N, 1].
        directions: The directions [3] by what they are of, such as `lift`.
    """
    n, a, p = (np.asarray(array, np.float64) for array in (normal, area, pressure))
    p, whole, lines = p.reshape(-1), max(a.sum(), 1e-300), []
    mean = (a * p).sum() / whole
    is_absolute = abs(mean) > _ABSOLUTE * np.sqrt((a * (p - mean) ** 2).sum() / whole)
    for name, direction in directions.items():
        facing = n @ check_direction(f"{name}_direction", direction) * a
        along = f"{name} along ({', '.join(f'{x:g}' for x in np.asarray(direction, np.float64))})"
        if np.abs(facing).sum() <= _FACING * whole:
            lines.append(f"{along} has no part from pressure: no cell of the surface faces that way")
        elif is_absolute and abs(facing.sum()) > _OPEN * np.abs(facing).sum():
            lines.append(
                f"{along} is mostly that of the mean pressure, {mean:.4g}: the surface is open, so subtract the "
                "pressure of the stream first"
            )
    return lines


def check_direction(name: str, direction: ArrayLike) -> Any:
    """Returns a direction as a unit vector [3]; one that is zero or not finite is a ValueError that names it."""
    array = np.asarray(direction, dtype=np.float64)
    if array.shape != (3,) or not np.all(np.isfinite(array)):
        raise ValueError(f"{name} is {array.tolist()}, expected 3 finite numbers")
    if not array.any():
        raise ValueError(f"{name} is zero, expected a direction")
    return array / np.linalg.norm(array)
