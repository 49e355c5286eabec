#!/usr/bin/env bash
# Tools: VTK 9.7.2 (vtkAppendFilter), through pyvista 0.49.1 (`pyvista.merge`).
# Expected: meshes that both have an array "p" are merged with it; or an error says that the two are of different types.
# Seen: where one "p" is float32 and the other float64, the merged mesh has no "p", and nothing is said.
# Hurts: whoever joins the zones or partitions of a case of which some were written in single precision.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 pyvista==0.49.1 vtk==9.7.2
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import pyvista
import vtk

found = {}
for types in ((np.float32, np.float32), (np.float32, np.float64)):
    parts = []
    for x, dtype in zip((0, 1), types):
        part = pyvista.ImageData(dimensions=(2, 2, 2), origin=(x, 0, 0)).cast_to_unstructured_grid()
        part.cell_data["p"] = np.ones(1, dtype)
        parts.append(part)
    found[types[1].__name__] = list(pyvista.merge(parts, merge_points=False).cell_data)
print("VTK", vtk.VTK_VERSION, "arrays of the merged mesh with a second part in", found)
raise SystemExit(found != {"float32": ["p"], "float64": []})
PYTHON
