#!/usr/bin/env bash
# VTK's XML writers (vtk 9.5.2) put names of arrays into the file as they are: with & or < in one, nobody can read it.
#
# Expected: the name is escaped, as XML asks (p&amp;T), or the writer fails; what was written is read back.
# Seen:     Write() returns 1 and no error code is set, but the file is not well-formed XML: VTK's own reader and any
#           other XML parser stop there. A name with > alone is read back.
# Hurts:    solvers and scripts that name fields p&T or y+<1; hours of results are saved with status 0 and are lost.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet 'vtk==9.5.2' 'numpy==2.2.6'
"$scratch/venv/bin/python" - "$scratch/points.vtp" <<'PYTHON'
import sys
from xml.parsers import expat

from vtkmodules.vtkCommonCore import vtkFloatArray, vtkPoints, vtkVersion
from vtkmodules.vtkCommonDataModel import vtkPolyData
from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

path, readable = sys.argv[1], {}
for name in ("p T", "a>b", "p&T", "y+<1"):
    values = vtkFloatArray()
    values.SetName(name)
    values.InsertNextValue(3.0)
    points = vtkPoints()
    points.InsertNextPoint(0, 0, 0)
    data = vtkPolyData()
    data.SetPoints(points)
    data.GetPointData().AddArray(values)
    writer = vtkXMLPolyDataWriter()
    writer.SetFileName(path)
    writer.SetDataModeToAscii()
    writer.SetInputData(data)
    assert writer.Write() == 1 and writer.GetErrorCode() == 0
    try:
        expat.ParserCreate().Parse(open(path, "rb").read(), True)
        readable[name] = True
    except expat.ExpatError as error:
        readable[name] = False
        print(f"{name!r}: written without an error, and {error}")
print(f"VTK {vtkVersion.GetVTKVersion()}: {readable}")
assert readable == {"p T": True, "a>b": True, "p&T": False, "y+<1": False}
PYTHON
