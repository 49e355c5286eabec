#!/usr/bin/env bash
# vtk 9.7.2 (pyvista 0.49.1) narrows points to float32 when it writes .ply and .stl, without a word; .vtp and .obj keep
# float64.
#
# Expected: the same points from each file, or a warning.
# Seen:     at 5e5 m (UTM easting) an offset of 3 mm is 0 after a round trip through .ply or .stl: steps are 31 mm.
# Hurts:    buildings and sites in geographic coordinates: areas, normals and forces of small faces are noise.
#           Subtract a local origin first, or keep .vtp.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyvista==0.49.1 vtk==9.7.2 2>/dev/null
"$work/venv/bin/python" - "$work" <<'PY'
import sys

import numpy as np
import pyvista as pv

points = 5e5 + np.array([[0.003, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
seen = {}
for ending in ("vtp", "obj", "ply", "stl"):
    pv.PolyData(points, np.array([3, 0, 1, 2])).save(f"{sys.argv[1]}/mesh.{ending}")
    seen[ending] = round(float(pv.read(f"{sys.argv[1]}/mesh.{ending}").points[0, 0] - 5e5), 4)
print("vtk", pv.vtk_version_info, "0.003 becomes", seen)
sys.exit(seen != {"vtp": 0.003, "obj": 0.003, "ply": 0.0, "stl": 0.0})
PY
