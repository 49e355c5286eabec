#!/usr/bin/env bash
# VTK 9.7.2's vtkCellSizeFilter (pyvista's compute_cell_sizes) gives wedges a negative volume, ordered as documented.
#
# Expected: +0.5. vtkWedge.h: the normal of the triangle (0, 1, 2) points outward, away from the triangle (3, 4, 5).
# Seen:     -0.5 (VTK 9.5.2 gives +0.5); the opposite order, whose first triangle points into the cell, gives +0.5.
# Hurts:    sums weighted by volume over prism layers: the cells next to the wall count negatively.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet vtk==9.7.2 pyvista==0.49.1 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import pyvista
import vtk


def volume(triangle):
    points = np.concatenate([np.insert(np.array(triangle, float), 2, z, axis=1) for z in (0, 1)])
    return float(pyvista.UnstructuredGrid([6, *range(6)], [13], points).compute_cell_sizes()["Volume"][0])


outward, inward = volume([[0, 0], [0, 1], [1, 0]]), volume([[0, 0], [1, 0], [0, 1]])
print("VTK", vtk.vtkVersion().GetVTKVersion(), "volume as documented", outward, "the other way", inward)
sys.exit(not np.allclose([outward, inward], [-0.5, 0.5]))
PY
