#!/usr/bin/env bash
# pyvista 0.49.1 / vtk 9.7.2: `sample` gives points outside of the mesh the value 0, not NaN.
#
# Expected: NaN, an error or fewer points.
# Seen:     a field that is 300 everywhere is 0 at a point outside; only the array vtkValidPointMask tells.
# Hurts:    fields interpolated to points (between meshes, or onto a surface inside a coarse volume) train as zeros.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pyvista==0.49.1 vtk==9.7.2 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import pyvista as pv

volume = pv.ImageData(dimensions=(5, 5, 5))
volume.point_data["T"] = np.full(125, 300.0)
sampled = pv.PolyData(np.array([[2.0, 2.0, 2.0], [9.0, 9.0, 9.0]])).sample(volume)
seen = [float(value) for value in sampled["T"]]
print("pyvista", pv.__version__, "inside, outside:", seen, "valid:", sampled["vtkValidPointMask"].tolist())
sys.exit(seen != [300.0, 0.0])
PY
