#!/usr/bin/env bash
# VTK's reader of PLY files returns float32 coordinates for a file of doubles, half a metre off at 5.4 million metres
# (UTM coordinates), and leaves out properties of vertices that it does not know, such as a pressure, without a message.
# Seen with vtk 9.7.2. Exits with 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vtk==9.7.2
cd "$folder"
cat > triangle.ply <<'PLY'
ply
format ascii 1.0
element vertex 3
property double x
property double y
property double z
property double pressure
element face 1
property list uchar int vertex_indices
end_header
5400000.2 0 0 1
5400001.2 0 0 2
5400000.2 1 0 3
3 0 1 2
PLY
venv/bin/python - <<'PYTHON'
import vtk

reader = vtk.vtkPLYReader()
reader.SetFileName("triangle.ply")
reader.Update()
output = reader.GetOutput()
points, data = output.GetPoints(), output.GetPointData()
arrays = [data.GetArrayName(number) for number in range(data.GetNumberOfArrays())]
x = points.GetPoint(0)[0]
print("vtk", vtk.vtkVersion.GetVTKVersion())
print("type of the coordinates:", points.GetData().GetDataTypeAsString())
print("x of the first vertex:", x, "in the file: 5400000.2")
print("arrays of the points:", arrays)
assert points.GetData().GetDataTypeAsString() == "float"
assert x == 5400000.0
assert "pressure" not in arrays
PYTHON
