"""Simulates bodies on both sides of a test body: ``python -m benchmarks.solver_differences TOOLS DATA CASE...``.

TOOLS holds `body.py` and `simulate.py`, which made the bodies; OpenFOAM runs (k-omega SST, half a minute each on one
core). Each of the twelve parameters is moved by 0.15 of its range to either side, within the range. The drag areas go
into a JSON file after every simulation; those that it holds are not simulated again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 0.15  # of a parameter's range
_GIVEN_SHAPE = """

def half_body(p, coarse=False):
    given = np.load({!r})
    return given["vertices"], given["triangles"]
"""
RESULTS = Path("benchmarks/results/solver_differences.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", type=Path, help="folder of body.py and simulate.py")
    parser.add_argument("data", type=Path, help="folder of the bodies' cases")
    parser.add_argument("cases", nargs="+", help="such as run_82")
    parser.add_argument("--json", type=Path, default=RESULTS, help="(%(default)s)")
    options = parser.parse_args()
    ranges = bodies(options.tools).RANGES
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    for case in options.cases:
        start = json.loads((options.data / case / "parameters.json").read_text())
        for name, (low, high) in ranges.items():
            sides = found.setdefault(case, {}).setdefault(name, [])
            for sign in (-1, 1)[len(sides) :]:
                value = min(max(start[name] + sign * STEP * (high - low), low), high)
                sides.append({"value": value, "CdA": simulated_drag_area(options.tools, {**start, name: value})})
                options.json.write_text(json.dumps(found, indent=1) + "\n")
                print(case, name, sides[-1], flush=True)


def bodies(tools: Path) -> Any:
    """The module that draws the bodies and knows the ranges of their parameters."""
    spec = importlib.util.spec_from_file_location("body", tools / "body.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{tools} has no body.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def simulated_drag_area(
    tools: Path,
    parameters: dict[str, float],
    half_body: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
) -> float:
    """Returns the drag coefficient times area, in square metres, of the whole body by the solver that made the data.

    Args:
        tools: Folder of `body.py` and `simulate.py`.
        parameters: The parameters of the body.
        half_body: Vertices and triangles to simulate instead of those that the parameters give.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "parameters.json")
        file.write_text(json.dumps(parameters))
        shutil.copy(tools / "simulate.py", folder)
        source = (tools / "body.py").read_text()
        if half_body is not None:
            np.savez(Path(folder, "half_body.npz"), vertices=half_body[0], triangles=half_body[1])
            source += _GIVEN_SHAPE.format(str(Path(folder, "half_body.npz")))
        Path(folder, "body.py").write_text(source)
        command = [sys.executable, str(Path(folder, "simulate.py")), str(file), str(Path(folder, "case"))]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return 2 * float(json.loads(printed)["CdA_half"])


if __name__ == "__main__":
    main()
