"""Forces in the output of `emmi-jax predict`, with their uncertainty."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from emmi_jax.deploy.intervals import Intervals
from emmi_jax.files.atomic import JsonDict, write_json
from emmi_jax.inference.meshes import Forces
from emmi_jax.jobs.progress import say
from emmi_jax.meshes.forces import ForceReference

_LABELS = {"cd": "Cd", "cl": "Cl"}


def report_forces(
    folder: Path, forces: Forces, reference: ForceReference, intervals: Intervals | None, console: Console
) -> None:
    """Prints coefficients with their intervals, and writes `forces.json`.

    Args:
        folder: Where the file is written.
        forces: The coefficients.
        reference: What they are divided by.
        intervals: Those of the calibration; None where none are asked for.
        console: Where they are printed.
    """
    summary: JsonDict = dict(forces.coefficients)
    bounds: dict[str, tuple[float, float]] = {}
    if intervals is not None:
        if lacking := [name for name in forces.spreads if name not in intervals.quantiles]:
            say(
                console,
                f"no interval of {', '.join(map(_LABELS.__getitem__, lacking))}: the run was calibrated without",
            )
        bounds = {
            name: intervals.of_number(name, spread, unit=reference.area)
            for name, spread in forces.spreads.items()
            if name in intervals.quantiles
        }
        summary["interval"] = {"level": intervals.level, **{name: _finite(bound) for name, bound in bounds.items()}}
    for kind in ("members", "draws"):
        deviations = {name: getattr(spread, kind) for name, spread in forces.spreads.items()}
        if None not in deviations.values():
            summary[f"deviation_{kind}"] = {name: float(value) for name, value in deviations.items()}
    for which, patches in forces.patches.items():
        if patches:
            summary.setdefault("patches", {})[which] = patches
    only = "" if forces.has_shear else "  (pressure only)"
    for which, values in forces.coefficients.items():
        shown = [
            f"{_LABELS[name]} {value:z.4f}" + (_bounds(bounds.get(name)) if which == "predicted" else "")
            for name, value in values.items()
        ]
        at = f" at {100 * intervals.level:g} %" if which == "predicted" and bounds and intervals is not None else ""
        say(console, f"{which}: {'  '.join(shown)}{at}{only}")
        for patch, of_patch in forces.patches[which].items():
            say(console, f"  {patch}: {'  '.join(f'{_LABELS[name]} {value:z.4f}' for name, value in of_patch.items())}")
    write_json(folder / "forces.json", summary)


def _bounds(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:z.4f}, {interval[1]:z.4f}]"


def _finite(interval: tuple[float, float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in interval]
