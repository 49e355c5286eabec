"""Forces on a body from the pressure and the shear stress on its surface: fields, signs, coefficients.

NumPy arrays are summed in float64. JAX arrays and tracers are summed in float32, so derivatives pass through.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from emmi_jax.deploy.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.scales import float_arrays
from emmi_jax.points import Array

PRESSURES = ("pressure", "pressure_coefficient")
SHEAR_SIGNS = {"wallshearstress": -1.0, "wall_shear_stress": 1.0}
"""Factor from the field to the traction on the body; the first is DrivAerML's, which has OpenFOAM's sign."""
DRAG_DIRECTION, LIFT_DIRECTION = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
_FACING = 1e-6
"""Share of the area from which on a surface faces a direction."""
_ABSOLUTE, _OPEN = 10.0, 1e-3
"""A mean pressure of so many deviations is absolute; an open surface faces one way by this share more."""


@dataclass(frozen=True, kw_only=True)
class ForceReference:
    """Divisors of forces: reference area in m², speed in m/s and density in kg/m³ of the stream."""

    area: float
    speed: float
    density: float = 1.0

    def __post_init__(self) -> None:
        for name in ("area", "speed", "density"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def dynamic_pressure(self) -> float:
        """Density · speed² / 2, in Pa."""
        return self.density * self.speed**2 / 2


def force_fields(fields: Collection[str]) -> list[str]:
    """Returns the names of the pressure and, if there is one, of the wall shear stress that forces are integrated from.

    Raises:
        ValueError: There is no pressure.
    """
    pressure = [name for name in PRESSURES if name in fields][:1]
    if not pressure:
        raise ValueError(
            f"forces need a field {' or '.join(PRESSURES)}; the branch {GEOMETRY_BRANCH!r} has {list(fields)}"
        )
    return pressure + [name for name in SHEAR_SIGNS if name in fields][:1]


@dataclass(frozen=True, kw_only=True)
class ForceSurface:
    """A surface whose forces are integrated.

    Args:
        normal: Outward unit normals [N, 3] of its cells.
        area: Areas [N], m².
        reference: What forces are divided by.
        drag_direction: Along the stream [3], of any length.
        lift_direction: Upwards [3], of any length.
        patches: Names and numbers of cells of its patches, one after another; a name may repeat. Empty where unknown.
    """

    normal: Array
    area: Array
    reference: ForceReference
    drag_direction: ArrayLike = DRAG_DIRECTION
    lift_direction: ArrayLike = LIFT_DIRECTION
    patches: tuple[tuple[str, int], ...] = ()

    def coefficients(self, fields: Mapping[str, Array]) -> dict[str, float]:
        """Returns the coefficients `cd` and `cl` of fields [N, F], see `force_fields`."""
        return self._divided(self._forces(fields).sum(axis=0))

    def by_patch(self, fields: Mapping[str, Array]) -> dict[str, dict[str, float]]:
        """Returns the share of each patch in `coefficients`; nothing where there are no two patches."""
        if len({name for name, _ in self.patches}) < 2:
            return {}
        ends = list(itertools.accumulate(number for _, number in self.patches))
        parts = np.split(self._forces(fields), ends[:-1])
        total = {name: np.zeros(3) for name, _ in self.patches}
        for (name, _), part in zip(self.patches, parts, strict=True):
            total[name] += part.sum(axis=0)
        return {name: self._divided(force) for name, force in total.items()}

    def notes(self, fields: Mapping[str, Array]) -> list[str]:
        """Returns `pressure_notes` of fields [N, F]."""
        directions = {"drag": self.drag_direction, "lift": self.lift_direction}
        return pressure_notes(self.normal, self.area, fields[force_fields(fields)[0]], directions)

    def _forces(self, fields: Mapping[str, Array]) -> Any:
        return field_forces(fields, self.normal, self.area, dynamic_pressure=self.reference.dynamic_pressure)

    def _divided(self, force: Any) -> dict[str, float]:
        return force_coefficients(
            force,
            area=self.reference.area,
            dynamic_pressure=self.reference.dynamic_pressure,
            drag_direction=self.drag_direction,
            lift_direction=self.lift_direction,
        )


def field_forces(fields: Mapping[str, Any], normal: Any, area: Any, *, dynamic_pressure: float) -> Any:
    """Returns the force on each cell of a surface, [N, 3] in N, or in m⁴/s² for pressure over density.

    Args:
        fields: Fields [N, F] in the cells of the surface, see `force_fields`.
        normal: Outward unit normals [N, 3].
        area: Areas [N], m².
        dynamic_pressure: The unit of a pressure coefficient, Pa.

    Raises:
        ValueError: There is no pressure, or the shapes do not match.
    """
    pressure, *shear = force_fields(fields)
    unit = dynamic_pressure if pressure == "pressure_coefficient" else 1.0
    traction = SHEAR_SIGNS[shear[0]] * fields[shear[0]] if shear else None
    return _cell_forces(normal, area, unit * fields[pressure], traction, 0.0)


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
    return _cell_forces(normal, area, pressure, wall_shear_stress, reference_pressure).sum(axis=0)


def _cell_forces(
    normal: ArrayLike,
    area: ArrayLike,
    pressure: ArrayLike,
    wall_shear_stress: ArrayLike | None,
    reference_pressure: float,
) -> Any:
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
    return a[:, None] * ((reference_pressure - p) * n + tau)


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
    coefficients = {"cd": (total * drag).sum() / scale, "cl": (total * lift).sum() / scale}
    return coefficients if is_jax else {name: float(value) for name, value in coefficients.items()}


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
