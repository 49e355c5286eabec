"""Forces on the body from predicted fields on its surface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from emmi_jax.inference.meshes import BranchMesh, FieldArrays
from emmi_jax.meshes.forces import force_coefficients, integrate_forces
from emmi_jax.meshes.surfaces import check_surface, surface_elements
from emmi_jax.points import Array

PRESSURES = ("pressure", "pressure_coefficient")
SHEAR_SIGNS = {"wallshearstress": -1.0, "wall_shear_stress": 1.0}
"""Factor to the traction on the body; the first is DrivAerML's, with the sign of OpenFOAM."""


@dataclass(frozen=True, kw_only=True)
class ForceReference:
    """What forces are divided by: reference area in m², speed in m/s and density in kg/m³ of the stream."""

    area: float
    speed: float
    density: float = 1.0

    def __post_init__(self) -> None:
        for name in ("area", "speed", "density"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


class Forces(NamedTuple):
    """Coefficients of the forces by where they come from, `predicted` or `reference`, and the surface's open edges."""

    coefficients: dict[str, dict[str, float]]
    num_open_edges: int


def check_forces(surface: BranchMesh, fields: Collection[str]) -> None:
    """Refuses what `surface_forces` cannot integrate: see there; this takes no predictions."""
    if surface.location != "cells":
        raise ValueError(f"{surface.mesh.path}: forces need fields in the cells of the surface, they are on its points")
    _pressure(fields)
    check_surface(surface.mesh)


def _pressure(fields: Collection[str]) -> str:
    for name in PRESSURES:
        if name in fields:
            return name
    raise ValueError(f"forces need a field {' or '.join(PRESSURES)}, the surface has {list(fields)}")


def surface_forces(predicted: FieldArrays, surface: BranchMesh, reference: ForceReference) -> Forces:
    """Integrates the forces on a surface from its pressure, or pressure coefficient, and wall shear stress.

    Args:
        predicted: Fields of the surface: one of `PRESSURES`, and perhaps one of `SHEAR_SIGNS`.
        surface: The surface, with fields in its cells.
        reference: What forces are divided by.

    Raises:
        ValueError: There is no pressure, the fields are not in cells, or the mesh is not a surface.
    """
    check_forces(surface, predicted)
    name = _pressure(predicted)
    elements = surface_elements(surface.mesh, require_closed=False)
    dynamic_pressure = reference.density * reference.speed**2 / 2
    unit = dynamic_pressure if name == "pressure_coefficient" else 1.0
    shear = next((name for name in SHEAR_SIGNS if name in predicted), None)

    def coefficients(fields: Mapping[str, Array]) -> dict[str, float]:
        traction = None if shear is None else SHEAR_SIGNS[shear] * fields[shear]
        force = integrate_forces(elements.normal, elements.area, unit * fields[name], traction)
        return force_coefficients(force, area=reference.area, dynamic_pressure=dynamic_pressure)

    found = {"predicted": coefficients(predicted)}
    if {name, shear} - {None} <= set(surface.reference):
        found["reference"] = coefficients(surface.reference)
    return Forces(found, elements.num_open_edges)
