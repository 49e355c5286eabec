#!/usr/bin/env bash
# VTK's reader of legacy .vtk files reads the first SCALARS and the first VECTORS of a file and leaves out the others,
# without a message, unless ReadAllScalarsOn() and ReadAllVectorsOn() are called. The file format allows several.
# Seen with vtk 9.7.2. Expected by users: the four arrays of the file. Exits with 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vtk==9.7.2
cd "$folder"
cat > square.vtk <<'VTK'
# vtk DataFile Version 3.0
a square with two scalars and two vectors
ASCII
DATASET POLYDATA
POINTS 4 double
0 0 0  1 0 0  1 1 0  0 1 0
POLYGONS 1 5
4 0 1 2 3
POINT_DATA 4
SCALARS pressure double 1
LOOKUP_TABLE default
1 2 3 4
SCALARS density double 1
LOOKUP_TABLE default
5 6 7 8
VECTORS velocity double
1 0 0  1 0 0  1 0 0  1 0 0
VECTORS shear double
0 1 0  0 1 0  0 1 0  0 1 0
VTK
venv/bin/python - <<'PYTHON'
import vtk


def names(read_all):
    reader = vtk.vtkGenericDataObjectReader()
    reader.SetFileName("square.vtk")
    if read_all:
        reader.ReadAllScalarsOn()
        reader.ReadAllVectorsOn()
    reader.Update()
    data = reader.GetOutput().GetPointData()
    return [data.GetArrayName(number) for number in range(data.GetNumberOfArrays())]


print("vtk", vtk.vtkVersion.GetVTKVersion())
default, everything = names(False), names(True)
print("by default:", default)
print("with ReadAll…On:", everything)
assert default == ["pressure", "velocity"], default
assert sorted(everything) == ["density", "pressure", "shear", "velocity"], everything
PYTHON
