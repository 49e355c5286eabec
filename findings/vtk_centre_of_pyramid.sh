#!/usr/bin/env bash
# VTK 9.7.2's cell centres (vtkCellCenters, pyvista's cell_centers) are not centroids of pyramids and uneven hexahedra.
#
# Expected: the centroid. A pyramid with base [0, 1]² and apex (0.8, 0.5, 1) has it at 3/4 base centre + 1/4 apex =
#           (0.575, 0.5, 0.25). The hexahedron [-1, 1]² x [0, 1] whose top is scaled to a half, a frustum, has it at
#           z = (1 + 2/2 + 3/4) / (4 (1 + 1/2 + 1/4)) = 11/28.
# Seen:     the point in the middle of the parameters: (0.48, 0.42, 0.2), and z = 0.5.
# Hurts:    positions of fields in cells: pyramids and graded or snapped hexahedra are off by a tenth of a cell.
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

square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)


def centre(kind, points):
    points = np.array(points, float)
    return pyvista.UnstructuredGrid([len(points), *range(len(points))], [kind], points).cell_centers().points[0]


pyramid = centre(14, [*np.insert(square, 2, 0, axis=1), [0.8, 0.5, 1]])
frustum = centre(12, [*np.insert(2 * square - 1, 2, 0, axis=1), *np.insert(square - 0.5, 2, 1, axis=1)])
off = [np.linalg.norm(pyramid - [0.575, 0.5, 0.25]), np.linalg.norm(frustum - [0, 0, 11 / 28])]
print("VTK", vtk.vtkVersion().GetVTKVersion(), "pyramid", pyramid, "frustum", frustum, "off by", np.round(off, 3))
sys.exit(not min(off) > 0.01)
PY
