"""Sensitivities and optimised shapes of bodies beside a solver: ``python -m benchmarks.body_design TOOLS DATA RUN...``.

Needs what `benchmarks.solver_differences` wrote. For each body there: the derivative of the drag area with respect to
the twelve parameters, by the chain rule through a map that moves every point of the body as its parameters change, as
a mean over the runs and over draws of anchors; beside it the solver's differences. Then each body is optimised within
the ranges of its parameters, or by a lattice, with and without the penalty on what is unlike the training cases, and
the result is simulated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks import measure
from benchmarks.solver_differences import RESULTS, bodies, simulated_drag_area
from emmi_jax.data.familiarity import Familiarity
from emmi_jax.design import (
    Lattice,
    MorphedCase,
    Optimization,
    drag,
    keep_clearance,
    keep_volume,
    optimize,
    read_surface,
)
from emmi_jax.design.familiar import keep_familiar
from emmi_jax.design.morphs import Morph, displacements
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.meshes.mesh import read_mesh
from emmi_jax.runs.calibration import read_familiarity
from emmi_jax.runs.load import load_run

SPEED = 30.0
REACH = 0.3
"""How far a parameter may go from where it was, as a share of its range."""

LATTICE_REACH = 0.02
"""How far a point may go with the lattice, in metres."""
SOLVER_NOISE = 0.01
"""Changes of the drag area by a smaller share may be those of the mesh that the solver made."""
HOOD = 0.05
FIXED = ("length", "width", "height", "clearance")
"""What optimisation leaves: a smaller body has less drag."""

Shape = Mapping[str, Any]
Ranges = Mapping[str, tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", type=Path, help="folder of body.py and simulate.py")
    parser.add_argument("data", type=Path, help="folder of the bodies' cases")
    parser.add_argument("runs", type=Path, nargs="+", help="runs on the bodies; optimised on the first")
    parser.add_argument("--differences", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--bodies", nargs="+", help="some of the bodies there; default: all")
    parser.add_argument(
        "--draws", type=int, default=4, help="draws of anchors to average over; 0 for no derivatives (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=0, help="steps of optimisation; 0 for none (%(default)s)")
    parser.add_argument("--lattice", action="store_true", help="optimise by a lattice, whatever shape comes out")
    parser.add_argument(
        "--familiar", action="store_true", help="optimise by a lattice both without and with the penalty"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/body_design.json"), help="(%(default)s)")
    options = parser.parse_args()
    ranges: Ranges = bodies(options.tools).RANGES
    surrogates, designs = [load_run(run) for run in options.runs], list[dict[str, Any]]()
    differences = json.loads(options.differences.read_text())
    chosen = {case: differences[case] for case in options.bodies or differences}
    if options.draws:
        measure.report(
            "derivatives of the drag area beside the solver's", _derivatives(options, surrogates, chosen), options.json
        )
    for case in chosen if options.steps else ():
        for is_familiar in (False, True) if options.familiar else (False,):
            designs.append(_design(options, surrogates[0], case, ranges, is_familiar=is_familiar))
            measure.report("optimised bodies", designs, options.json.with_stem(f"{options.json.stem}_optimised"))


def _derivatives(
    options: argparse.Namespace, surrogates: Sequence[Surrogate], differences: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns how far derivatives agree with the solver's differences, for each body and all together."""
    ranges: Ranges = bodies(options.tools).RANGES
    rows, pairs = [], []
    for case, found in differences.items():
        found = {name: sides for name, sides in found.items() if len(sides) == 2}
        parameters = json.loads((options.data / case / "parameters.json").read_text())
        morph = BodyMorph(parameters, ranges, list(ranges))
        gradients = [
            body_case(surrogate, options.data / case, morph, seed).gradient(np.zeros(len(ranges)))[1]
            for surrogate in surrogates
            for seed in range(options.draws)
        ]
        by_name = dict(zip(ranges, np.mean(gradients, axis=0), strict=True))
        names = [name for name in found if _is_smooth(name, found[name], parameters)]
        solver = np.array([_slope(found[name], ranges[name]) for name in names])
        predicted = np.array([by_name[name] for name in names])
        is_clear = np.array([_change(found[name]) > SOLVER_NOISE for name in names])
        pairs.append((solver, predicted, is_clear))
        rows.append({"body": case, **_agreement(*pairs[-1])})
        for name, *both in zip(names, solver, predicted, strict=True):
            print(f"{case} {name:10} solver {both[0]:8.5f} predicted {both[1]:8.5f}", flush=True)
    return [*rows, {"body": "all", **_agreement(*map(np.concatenate, zip(*pairs, strict=True)))}]


def _slope(sides: list[dict[str, float]], extent: tuple[float, float]) -> float:
    """Returns the change of the drag area per range of the parameter."""
    low, high = sides
    return (high["CdA"] - low["CdA"]) / (high["value"] - low["value"]) * (extent[1] - extent[0])


def _change(sides: list[dict[str, float]]) -> float:
    """Returns how much the drag area changes between both sides, as a share."""
    low, high = (side["CdA"] for side in sides)
    return abs(high - low) / ((high + low) / 2)


def _is_smooth(name: str, sides: list[dict[str, float]], parameters: Shape) -> bool:
    """Returns whether the drag area has a derivative: a hood shorter than `HOOD` is none, so there it jumps."""
    if name == "hood_drop":
        return bool(parameters["hood"] > HOOD)
    return name != "hood" or min(side["value"] for side in sides) > HOOD


def _agreement(
    solver: NDArray[np.float64], predicted: NDArray[np.float64], is_clear: NDArray[np.bool_]
) -> dict[str, float]:
    cosine = solver @ predicted / np.linalg.norm(solver) / np.linalg.norm(predicted)
    same_sign = np.sign(solver) == np.sign(predicted)
    return {
        "parameters": len(solver),
        "same_sign": float(np.mean(same_sign)),
        "clear": int(is_clear.sum()),
        "same_sign_of_clear": float(np.mean(same_sign[is_clear])),
        "rank_correlation": float(spearmanr(solver, predicted).statistic),
        "angle_deg": float(np.degrees(np.arccos(cosine))),
    }


def body_case(surrogate: Surrogate, folder: Path, morph: Morph, seed: int = 0) -> MorphedCase:
    """Returns the drag area of a morphed body."""
    number = folder.name.removeprefix("run_")
    volume = read_mesh(folder / f"volume_{number}.vtu").position("cells")
    return MorphedCase(
        surrogate,
        read_surface(folder / f"boundary_{number}.vtp"),
        drag(speed=SPEED, area=1.0),
        morph,
        read_surface(folder / f"body_{number}.stl"),
        {"points": {"volume": volume}, "seed": seed},
    )


@dataclass(frozen=True, eq=False)
class BodyMorph:
    """Moves the points of a body as its parameters change, by shares [P] of their ranges, within the ranges.

    Sections keep their place in nose, middle and tail; in a section, one rounded rectangle is mapped to another.

    Args:
        start: The parameters of the body.
        ranges: Lowest and highest value of every parameter.
        names: The parameters that change.
    """

    start: Shape
    ranges: Ranges
    names: Sequence[str]

    def parameters(self, change: Any) -> dict[str, Any]:
        """Returns the parameters of the moved body."""
        moved = dict(self.start)
        for share, name in zip(change, self.names, strict=True):
            low, high = self.ranges[name]
            moved[name] = jnp.clip(self.start[name] + share * (high - low), low, high)
        return moved

    def __call__(self, change: jax.Array, position: jax.Array) -> jax.Array:
        moved, (x, y, z) = self.parameters(change), position.T
        new_x = _along(x, self.start, moved)
        before, after = _section(self.start, x), _section(moved, new_x)
        new_y = jnp.sign(y) * _stretched(jnp.abs(y), (0.0, before.flat, before.half), (0.0, after.flat, after.half))
        heights = [
            (0.0, of.bottom, of.bottom + of.edge, of.top - of.edge, of.top)  # from the ground
            for of in (before, after)
        ]
        return jnp.stack([new_x, new_y, _stretched(z, *heights)], axis=1) - position


class _Section(NamedTuple):
    """Half width of a section and of its flat part, its lowest and highest z, and the radius of its edges, [N] each."""

    half: jax.Array
    flat: jax.Array
    bottom: jax.Array
    top: jax.Array
    edge: jax.Array


def _section(body: Shape, x: jax.Array) -> _Section:
    """Returns the sections at x [N], as `body.py` draws them."""
    length, tail, nose = body["length"], body["tail"], body["nose"]
    share = jnp.clip(1 - x / nose, 0, 1)
    inset = nose * (1 - jnp.sqrt(jnp.maximum(1 - share**2, 1e-9)))
    behind = jnp.clip((x - (length - tail)) / tail, 0, 1) * tail
    rounded = behind - 0.02 * (1 - jnp.exp(-behind / 0.02))
    slant, diffuser, boat = (jnp.tan(jnp.radians(body[name])) * rounded for name in ("slant", "diffuser", "boat"))
    half = body["width"] / 2 - inset - boat
    bottom = body["clearance"] + jnp.minimum(inset, 0.35 * body["height"]) + diffuser
    screen = jnp.clip((x - body["hood"]) / 0.12, 0, 1)
    drop = jnp.where(body["hood"] > HOOD, body["hood_drop"], 0.0) * (1 - screen**2 * (3 - 2 * screen))
    top = jnp.maximum(body["clearance"] + body["height"] - inset - slant - drop, bottom + 0.06)
    edge = jnp.minimum(body["edge"], 0.45 * jnp.minimum(half, top - bottom))
    return _Section(half, half - edge, bottom, top, edge)


def _along(x: jax.Array, before: Shape, after: Shape) -> jax.Array:
    knots = [(0.0, p["nose"], p["length"] - p["tail"], p["length"]) for p in (before, after)]
    return _stretched(x, *knots)


def _stretched(values: jax.Array, before: Sequence[Any], after: Sequence[Any]) -> jax.Array:
    """Maps values piecewise linearly, knots to knots; beyond the last knots they are shifted."""
    out = values + (after[0] - before[0])
    for i in range(len(before)):
        is_last = i == len(before) - 1
        slope = 1.0 if is_last else (after[i + 1] - after[i]) / (before[i + 1] - before[i])
        out = jnp.where(values > before[i], after[i] + (values - before[i]) * slope, out)
    return out


def _design(
    options: argparse.Namespace, surrogate: Surrogate, case: str, ranges: Ranges, *, is_familiar: bool
) -> dict[str, Any]:
    """Optimises a body, and simulates the result."""
    folder = options.data / case
    start = json.loads((folder / "parameters.json").read_text())
    familiarity = read_familiarity(options.runs[0], surrogate) if is_familiar else None
    if options.lattice:
        found, parameters, half_body = _by_lattice(options, surrogate, folder, start, familiarity)
    else:
        found, parameters, half_body = _by_parameters(options, surrogate, folder, start, ranges)
    before = json.loads((folder / "forces.json").read_text())["CdA"]
    predicted = found.before.mean(), found.after.mean()
    after = simulated_drag_area(options.tools, parameters, half_body)
    row = {
        "body": case,
        "keep_familiar": is_familiar,
        "moved": found.history[-1].displacement,
        "predicted_before": float(predicted[0]),
        "predicted_after": float(predicted[1]),
        "simulated_before": before,
        "simulated_after": after,
        "predicted_%": 100 * float(predicted[1] / predicted[0] - 1),
        "simulated_%": 100 * (after / before - 1),
    }
    print(row, parameters, flush=True)
    return row


def _by_parameters(
    options: argparse.Namespace, surrogate: Surrogate, folder: Path, start: dict[str, float], ranges: Ranges
) -> tuple[Optimization, dict[str, float], None]:
    """Optimises all parameters but the sizes, within reach."""
    reach = {
        name: (max(low, start[name] - REACH * (high - low)), min(high, start[name] + REACH * (high - low)))
        for name, (low, high) in ranges.items()
    }
    morph = BodyMorph(start, reach, [name for name in ranges if name not in FIXED])
    rate = optax.cosine_decay_schedule(3 / options.steps, options.steps, alpha=0.1)
    found = optimize(
        body_case(surrogate, folder, morph),
        np.zeros(len(morph.names)),
        max_displacement=0.2,
        steps=options.steps,
        transformation=optax.adam(rate),
    )
    return found, {name: float(value) for name, value in morph.parameters(found.parameters).items()}, None


def _by_lattice(
    options: argparse.Namespace,
    surrogate: Surrogate,
    folder: Path,
    start: dict[str, float],
    familiarity: Familiarity | None,
) -> tuple[Optimization, dict[str, float], tuple[Any, Any]]:
    """Optimises as `emmi-jax optimize --keep volume --keep clearance --symmetry y` does, perhaps `--keep familiar`."""
    surface = read_surface(folder / f"boundary_{folder.name.removeprefix('run_')}.vtp")
    lattice = Lattice.around(surface, (6, 4, 4))
    found = optimize(
        body_case(surrogate, folder, lattice),
        lattice.zeros(),
        max_displacement=LATTICE_REACH,
        steps=options.steps,
        penalties=[keep_volume(), keep_clearance()],
        case_penalties=[] if familiarity is None else [keep_familiar(familiarity)],
        symmetry="y",
    )
    vertices, triangles = bodies(options.tools).half_body(start)
    return found, start, (vertices + displacements(lattice, found.parameters, vertices), triangles)


if __name__ == "__main__":
    main()
