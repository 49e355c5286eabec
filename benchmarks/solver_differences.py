"""Simulates bodies on both sides of a test body: ``python -m benchmarks.solver_differences TOOLS DATA CASE...``.

TOOLS holds `body.py` and `simulate.py`, which made the bodies; OpenFOAM runs (k-omega SST, half a minute each on one
core). Each of the twelve parameters is moved by 0.15 of its range to either side, within the range. The drag areas go
into a JSON file after every simulation; those that it holds are not simulated again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

STEP = 0.15  # of a parameter's range
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


def simulated_drag_area(tools: Path, parameters: dict[str, float]) -> float:
    """Drag coefficient times area, in square metres, of the whole body by the solver that made the data."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "parameters.json")
        file.write_text(json.dumps(parameters))
        command = [sys.executable, str(tools / "simulate.py"), str(file), str(Path(folder, "case"))]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return 2 * float(json.loads(printed)["CdA_half"])


if __name__ == "__main__":
    main()
