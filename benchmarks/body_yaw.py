"""Bodies in streams from several directions, by OpenFOAM: ``python -m benchmarks.body_yaw TOOLS OUT --bodies 0``.

TOOLS holds `body.py`, which draws bodies by number. A body is meshed once, coarsely and on both sides of its middle.
Then the stream turns towards y, and each direction starts from the flow of the last. OUT receives an OpenFOAM case for
each body and direction, such as `body_00_yaw_05.0`. Its inlet says the direction; the solver's `forces.json` is beside
it. Cases that are there are left.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

from benchmarks.solver_differences import bodies

SPEED, VISCOSITY = 30.0, 1.5e-5  # m/s, m²/s
ITERATIONS, FURTHER_ITERATIONS, AVERAGED = 150, 100, 20
"""Of the first direction, of each further one, and how many at their end the forces are means of."""

_BOX = ((-1.2, -1.2, 0.0), (3.0, 1.2, 1.2))
_CELLS = (42, 24, 12)
_PATCHES = {"inlet": "0473", "outlet": "1265", "ground": "0321", "top": "4567", "right": "0154", "left": "3762"}
"""Patches of the box by the corners of their face."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tools", type=Path, help="folder of body.py")
    parser.add_argument("out", type=Path, help="folder of the cases")
    parser.add_argument("--bodies", type=int, nargs="+", required=True, help="their numbers")
    parser.add_argument("--yaw", type=float, nargs="+", required=True, help="directions of the stream, in degrees")
    options = parser.parse_args()
    for number in options.bodies:
        simulate(options.tools, options.out, number, sorted(options.yaw))


def simulate(tools: Path, out: Path, number: int, yaws: list[float]) -> None:
    """Simulates a body under several directions of the stream [degrees], each from the flow of the one before."""
    started = None
    for yaw in yaws:
        case = out / f"body_{number:02d}_yaw_{yaw:04.1f}"
        if not (case / "forces.json").exists():
            shutil.rmtree(case, ignore_errors=True)
            began = time.monotonic()
            write_case(case, yaw, ITERATIONS if started is None else FURTHER_ITERATIONS)
            if started is None:
                mesh(tools, case, number)
            else:
                _copy_flow(started, case)
            _run(case, "simpleFoam")
            _run(case, "simpleFoam", "-postProcess", "-func", "wallShearStress", "-latestTime")
            forces = mean_forces(case)
            shutil.rmtree(case / "postProcessing")
            (case / "forces.json").write_text(json.dumps(forces, indent=1) + "\n")
            print(case.name, forces, f"{time.monotonic() - began:.0f} s", flush=True)
        started = case


def mesh(tools: Path, case: Path, number: int) -> None:
    """Meshes the body of a number in its case."""
    tool = bodies(tools)
    parameters = tool.draw(number)
    (case / "constant/triSurface").mkdir(parents=True)
    tool.write_stl(case / "constant/triSurface/body.stl", *tool.whole_body(parameters))
    length, width, height = (parameters[name] for name in ("length", "width", "height"))
    height += parameters["clearance"]
    wake = {"min": (-0.2, -width, -1), "max": (length + 0.8, width, height + 0.15)}
    near = {"min": (-0.06, -width / 2 - 0.06, -1), "max": (length + 0.2, width / 2 + 0.06, height + 0.05)}
    boxes = "".join(
        f"{name} {{type searchableBox; min {_vector(box['min'])}; max {_vector(box['max'])};}}\n"
        for name, box in (("wake", wake), ("near", near))
    )
    _put(case / "system/snappyHexMeshDict", _SNAPPY.replace("BOXES", boxes))
    _run(case, "blockMesh")
    _run(case, "snappyHexMesh", "-overwrite")


def mean_forces(case: Path) -> dict[str, float]:
    """Returns coefficients times area along x, y and z of the mesh, as means over the last iterations."""
    (file,) = (case / "postProcessing/forces").glob("*/coefficient*.dat")
    header = next(line for line in reversed(file.read_text().splitlines()) if line.startswith("# Time"))
    rows = np.loadtxt(file)[-AVERAGED:]
    by_name = {name: rows[:, header[1:].split().index(name)] for name in ("Cd", "Cs", "Cl")}
    found = {f"{name}A": round(float(values.mean()), 6) for name, values in by_name.items()}
    spread = round(float(np.ptp(by_name["Cd"])), 6)
    return found | {"speed": SPEED, "density": 1.0, "spread_CdA": spread}


def write_case(case: Path, yaw: float, iterations: int) -> None:
    """Writes what the solver needs but the mesh."""
    turn = math.radians(yaw)
    stream = _vector((SPEED * math.cos(turn), SPEED * math.sin(turn), 0.0))
    _put(case / "system/controlDict", _CONTROL.format(end=iterations, speed=SPEED))
    _put(case / "system/fvSchemes", _SCHEMES)
    _put(case / "system/fvSolution", _SOLUTION)
    low, high = _BOX
    corners = [
        (x, y, z)
        for z in (low[2], high[2])
        for x, y in ((low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1]))
    ]
    faces = "".join(
        f"{name} {{type {'wall' if name == 'ground' else 'patch'}; faces (({' '.join(face)}));}}\n"
        for name, face in _PATCHES.items()
    )
    _put(
        case / "system/blockMeshDict",
        f"scale 1; vertices ({' '.join(map(_vector, corners))});\n"
        f"blocks (hex (0 1 2 3 4 5 6 7) {_vector(_CELLS)} simpleGrading (1 1 1)); edges ();\n"
        f"boundary ({faces}); mergePatchPairs ();\n",
    )
    _put(case / "constant/transportProperties", f"transportModel Newtonian; nu {VISCOSITY};\n")
    _put(
        case / "constant/turbulenceProperties",
        "simulationType RAS; RAS {RASModel kOmegaSST; turbulence on; printCoeffs off;}\n",
    )
    k = 1.5 * (0.01 * SPEED) ** 2
    _put_field(case, "U", "[0 1 -1 0 0 0 0]", stream, body="noSlip", ground=None, open_side="freestreamVelocity")
    _put_field(case, "p", "[0 2 -2 0 0 0 0]", "0", body="zeroGradient", open_side="freestreamPressure")
    _put_field(case, "k", "[0 2 -2 0 0 0 0]", f"{k:g}", body="kqRWallFunction")
    _put_field(case, "omega", "[0 0 -1 0 0 0 0]", f"{k / (5 * VISCOSITY):g}", body="omegaWallFunction")
    _put_field(case, "nut", "[0 2 -1 0 0 0 0]", "0", body="nutkWallFunction", open_side="calculated")


def _put_field(
    case: Path,
    name: str,
    dimensions: str,
    value: str,
    *,
    body: str,
    ground: str | None = "",
    open_side: str = "inletOutlet",
) -> None:
    """Writes a field that starts uniform; `ground` is "" if it is as the body, and None if it moves with the stream."""
    fixed = f"type fixedValue; value uniform {value};"
    wall = f"type {body}; value uniform {value};"
    side = f"type {open_side}; freestreamValue uniform {value}; inletValue uniform {value}; value uniform {value};"
    inlet, outlet = {"p": ("type zeroGradient;", fixed), "nut": (side, side)}.get(
        name, (fixed, f"type inletOutlet; inletValue uniform {value}; value uniform {value};")
    )
    by_patch = {
        "inlet": inlet,
        "outlet": outlet,
        "ground": fixed if ground is None else wall,
        "body": wall,
        "top": "type slip;",
        "left": side,
        "right": side,
    }
    text = "".join(f"{patch} {{{entry}}}\n" for patch, entry in by_patch.items())
    kind = "volVectorField" if name == "U" else "volScalarField"
    _put(
        case / "0" / name,
        f"dimensions {dimensions}; internalField uniform {value};\nboundaryField {{\n{text}}}\n",
        kind,
    )


def _copy_flow(source: Path, case: Path) -> None:
    """Copies the mesh; the flow of the last time of `source` becomes the start, but for its boundary values."""
    shutil.copytree(source / "constant/polyMesh", case / "constant/polyMesh")
    last = max((folder for folder in source.iterdir() if folder.name.isdigit()), key=lambda folder: int(folder.name))
    for name in ("U", "p", "k", "omega", "nut"):
        there, here = (last / name).read_bytes(), (case / "0" / name).read_bytes()
        head, boundary = there[: there.index(b"boundaryField")], here[here.index(b"boundaryField") :]
        (case / "0" / name).write_bytes(head + boundary)


def _run(case: Path, *command: str) -> None:
    with open(case / "log", "a") as log:
        subprocess.run(command, cwd=case, stdout=log, stderr=log, check=True)


def _put(path: Path, text: str, kind: str = "dictionary") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"FoamFile {{version 2.0; format ascii; class {kind}; object {path.name};}}\n{text}")


def _vector(numbers: tuple[float, ...]) -> str:
    return f"({' '.join(f'{number:.9g}' for number in numbers)})"


_CONTROL = """application simpleFoam; startFrom startTime; startTime 0; stopAt endTime; endTime {end}; deltaT 1;
writeControl timeStep; writeInterval {end}; writeFormat binary; writePrecision 9; timePrecision 8; runTimeModifiable no;
functions {{
forces {{
type forceCoeffs; libs (forces); patches (body); rho rhoInf; rhoInf 1; CofR (0 0 0); lRef 1; Aref 1;
dragDir (1 0 0); liftDir (0 0 1); pitchAxis (0 1 0); magUInf {speed};
}}
}}
"""
_SCHEMES = """ddtSchemes {default steadyState;}
gradSchemes {default cellLimited Gauss linear 1;}
divSchemes {
default none; div(phi,U) bounded Gauss linearUpwind grad(U); "div\\(phi,(k|omega)\\)" bounded Gauss upwind;
div((nuEff*dev2(T(grad(U))))) Gauss linear;
}
laplacianSchemes {default Gauss linear limited 0.5;}
interpolationSchemes {default linear;}
snGradSchemes {default limited 0.5;}
wallDist {method meshWave;}
"""
_SOLUTION = """solvers {
p {solver GAMG; smoother GaussSeidel; tolerance 1e-7; relTol 0.05;}
"(U|k|omega)" {solver smoothSolver; smoother symGaussSeidel; tolerance 1e-8; relTol 0.1;}
}
SIMPLE {nNonOrthogonalCorrectors 0; consistent yes;}
relaxationFactors {fields {p 0.7;} equations {U 0.85; "(k|omega)" 0.7;}}
"""
_SNAPPY = """castellatedMesh true; snap true; addLayers false; mergeTolerance 1e-6;
geometry {
body.stl {type triSurfaceMesh; name body;}
BOXES}
castellatedMeshControls {
maxLocalCells 1000000; maxGlobalCells 1000000; minRefinementCells 5; nCellsBetweenLevels 2; resolveFeatureAngle 30;
allowFreeStandingZoneFaces false; features (); locationInMesh (-1.013 0.513 0.713);
refinementSurfaces {body {level (2 2); patchInfo {type wall;}}}
refinementRegions {wake {mode inside; levels ((1e15 1));} near {mode inside; levels ((1e15 2));}}
}
snapControls {
nSmoothPatch 3; tolerance 2; nSolveIter 40; nRelaxIter 5; nFeatureSnapIter 8;
implicitFeatureSnap true; explicitFeatureSnap false; multiRegionFeatureSnap false;
}
addLayersControls {
relativeSizes true; layers {} expansionRatio 1.2; finalLayerThickness 0.3; minThickness 0.1; nGrow 0; featureAngle 60;
nRelaxIter 3; nSmoothSurfaceNormals 1; nSmoothNormals 3; nSmoothThickness 10; maxFaceThicknessRatio 0.5;
maxThicknessToMedialRatio 0.3; minMedianAxisAngle 90; nBufferCellsNoExtrude 0; nLayerIter 20;
}
meshQualityControls {
maxNonOrtho 65; maxBoundarySkewness 20; maxInternalSkewness 4; maxConcave 80; minVol 1e-13; minTetQuality 1e-15;
minArea -1; minTwist 0.02; minDeterminant 0.001; minFaceWeight 0.05; minVolRatio 0.01; minTriangleTwist -1;
nSmoothScale 4; errorReduction 0.75;
}
"""

if __name__ == "__main__":
    main()
