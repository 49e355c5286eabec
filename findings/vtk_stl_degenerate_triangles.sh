#!/usr/bin/env bash
# VTK's reader of STL files leaves out triangles without area, without a message, so that it returns fewer cells than
# the file has facets and rows of other files no longer match. MergingOff() keeps them.
# Seen with vtk 9.7.2. Exits with 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check vtk==9.7.2
cd "$folder"
venv/bin/python - <<'PYTHON'
import vtk

FACETS = [[(0, 0, 0), (1, 0, 0), (1, 1, 0)], [(0, 0, 0), (0, 0, 0), (1, 1, 0)], [(0, 0, 0), (1, 1, 0), (0, 1, 0)]]
with open("square.stl", "w") as file:
    file.write("solid square\n")
    for corners in FACETS:
        file.write("facet normal 0 0 1\nouter loop\n")
        file.writelines(f"vertex {x} {y} {z}\n" for x, y, z in corners)
        file.write("endloop\nendfacet\n")
    file.write("endsolid square\n")


def num_cells(merging):
    reader = vtk.vtkSTLReader()
    reader.SetFileName("square.stl")
    reader.SetMerging(merging)
    reader.Update()
    return reader.GetOutput().GetNumberOfCells()


print("vtk", vtk.vtkVersion.GetVTKVersion())
found = {"facets": len(FACETS), "cells by default": num_cells(True), "cells without merging": num_cells(False)}
print(found)
assert list(found.values()) == [3, 2, 3], found
PYTHON
