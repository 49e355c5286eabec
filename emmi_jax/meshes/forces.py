"""Forces on a body from the pressure and the shear stress on its surface, and their coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def integrate_forces(
    normal: ArrayLike,
    area: ArrayLike,
    pressure: ArrayLike,
    wall_shear_stress: ArrayLike | None = None,
    *,
    reference_pressure: float = 0.0,
) -> NDArray[np.float64]:
    """Integrates the force of a fluid on a body, `sum (tau - (p - p_ref) n) A` over the cells of its surface.

    Signs: normals point out of the body into the fluid, so pressure pushes against them, and the shear stress is the
    traction of the fluid on the body: a stream along x drags a wall along +x. OpenFOAM's `wallShearStress`, and with it
    the DrivAerML files, has the opposite sign: read it with the factor -1. A pressure divided by the density, as
    incompressible OpenFOAM writes it, gives a force divided by the density.

    Args:
        normal: Outward unit normals [N, 3].
        area: Areas [N], m².
        pressure: Pressure [N] or [N, 1], Pa.
        wall_shear_stress: Traction on the body [N, 3], Pa; None for an ideal fluid.
        reference_pressure: Subtracted from the pressure; it matters for a surface that does not close.

    Returns:
        Force [3] in N, summed in float64.

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> integrate_forces([[0.0, 0.0, 1.0]], [2.0], [3.0]).tolist()[2]
        -6.0
    """
    area = np.asarray(area, dtype=np.float64)
    if area.ndim != 1:
        raise ValueError(f"area has shape {area.shape}, expected (N,)")
    normal = _rows("normal", normal, area, 3)
    traction = (reference_pressure - _rows("pressure", pressure, area, 1)) * normal
    if wall_shear_stress is not None:
        traction = traction + _rows("wall_shear_stress", wall_shear_stress, area, 3)
    force: NDArray[np.float64] = area @ traction
    return force


def force_coefficients(
    force: ArrayLike,
    *,
    area: float,
    dynamic_pressure: float | None = None,
    density: float | None = None,
    speed: float | None = None,
    drag_direction: ArrayLike = (1.0, 0.0, 0.0),
    lift_direction: ArrayLike = (0.0, 0.0, 1.0),
) -> dict[str, float]:
    """Divides the components of a force along two directions by dynamic pressure times reference area.

    Args:
        force: Force on the body [3], N.
        area: Reference area, m²; of a car, that of its frontal projection.
        dynamic_pressure: `density · speed² / 2`, Pa; or else the next two.
        density: Density of the stream, kg/m³; 1 for a force divided by the density.
        speed: Speed of the stream, m/s.
        drag_direction: Along the stream [3], of any length.
        lift_direction: Upwards [3], of any length.

    Returns:
        The coefficients `cd` and `cl`, without unit.

    Raises:
        ValueError: A reference value is missing, given twice or not positive, or a direction is zero.
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
    force = _vector("force", force)
    scale = (dynamic_pressure or 0.0) * area
    return {
        "cd": float(force @ _unit("drag_direction", drag_direction) / scale),
        "cl": float(force @ _unit("lift_direction", lift_direction) / scale),
    }


def _rows(name: str, values: ArrayLike, area: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if channels == 1 and array.ndim == 1:
        array = array[:, None]
    if array.shape != (len(area), channels):
        raise ValueError(f"{name} has shape {array.shape}, expected ({len(area)}, {channels})")
    return array


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array: NDArray[Any] = np.asarray(values, dtype=np.float64)
    if array.shape != (3,) or not np.all(np.isfinite(array)):
        raise ValueError(f"{name} is {array.tolist()}, expected 3 finite numbers")
    return array


def _unit(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = _vector(name, values)
    if not array.any():
        raise ValueError(f"{name} is zero, expected a direction")
    unit: NDArray[np.float64] = array / np.linalg.norm(array)
    return unit
