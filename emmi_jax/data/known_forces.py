"""The force coefficients that a solver wrote beside a case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emmi_jax.config.mesh_dataset import ForceTable
from emmi_jax.data.mesh_dataset import published_tables
from emmi_jax.files.atomic import JsonDict, read_json
from emmi_jax.meshes.reference_area import AREA_NAMES, read_number, read_reference_area

FORCES_FILE = "forces.json"


class KnownForces(NamedTuple):
    """Force coefficients of a case.

    Args:
        cd: Drag coefficient.
        cl: Lift coefficient.
        area: The reference area that both were divided by, m²: 1 where they are `CdA` and `ClA`; None if unknown.
        speed: Speed of the stream, m/s; None if unknown.
        density: Density of the stream, kg/m³; 1 for pressure over density.
    """

    cd: float
    cl: float
    area: float | None
    speed: float | None = None
    density: float = 1.0

    @classmethod
    def from_dict(cls, values: Any) -> KnownForces:
        """Makes them of JSON values, as `_asdict` returns them.

        Raises:
            ValueError: A value is missing or impossible.
        """
        match values:
            case {"cd": cd, "cl": cl, "area": area, "speed": speed, "density": density} if _is_finite(
                cd, cl
            ) and _is_positive(density, *(x for x in (area, speed) if x is not None)):
                return cls(cd, cl, area, speed, density)
        raise ValueError(f"expected finite cd and cl and positive area, speed and density, got {values!r:.120}")


def read_known_forces(path: Path, tables: Sequence[ForceTable] | None = None) -> KnownForces | None:
    """Reads the forces beside a case.

    Args:
        path: A case folder, perhaps with `forces.json` (`CdA` and `ClA` in m², and perhaps `speed` and `density`).
        tables: What to look for where that file is not there, by default the tables of published data sets, such as
            `force_mom_N.csv` (`Cd`, `Cl`) of DrivAerML; its reference area is `aRef` of `geo_ref_N.csv`, and unknown
            without that.

    Returns:
        The forces; None if there are none.

    Raises:
        ValueError: A file is unusable.
    """
    if (file := path / FORCES_FILE).is_file():
        return _from_json(file, read_json(file))
    there = ((table, sorted(path.glob(table.file))) for table in (published_tables() if tables is None else tables))
    table, files = next((pair for pair in there if pair[1]), (None, []))
    if table is None:
        return None
    of_area = [] if table.area_file is None else sorted(path.glob(table.area_file))[:1]
    areas = [read_reference_area(file, tuple(dict.fromkeys((table.area, *AREA_NAMES)))) for file in of_area]
    cd, cl = (read_number(files[0], (name,), f"no {name}") for name in (table.drag, table.lift))
    if not _is_finite(cd, cl):
        raise ValueError(f"{files[0]}: expected finite numbers {table.drag} and {table.lift}, got {cd} and {cl}")
    return KnownForces(cd, cl, areas[0] if areas else None)


def _from_json(file: Path, values: JsonDict) -> KnownForces:
    match values:
        case {"CdA": cd, "ClA": cl}:
            whole = {"cd": cd, "cl": cl, "area": 1.0, "speed": values.get("speed"), "density": values.get("density", 1)}
            try:
                return KnownForces.from_dict(whole)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
    raise ValueError(f"{file}: expected CdA and ClA in m², got {values!r:.80}")


def _is_finite(*values: Any) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _is_positive(*values: Any) -> bool:
    return _is_finite(*values) and all(value > 0 for value in values)
