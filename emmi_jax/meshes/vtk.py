"""VTK's readers and writers, with one-line errors instead of printed messages, and atomic writes."""

from __future__ import annotations

import html
import importlib
import mmap
import re
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from emmi_jax.files.atomic import atomic_path
from emmi_jax.meshes.components import ArrayName, all_found
from emmi_jax.meshes.damage import check_cells, check_file
from emmi_jax.meshes.elsewhere import try_xml
from emmi_jax.meshes.plain import rewritten

_READERS = {
    ".stl": ("vtkIOGeometry", "vtkSTLReader"),
    ".obj": ("vtkIOGeometry", "vtkOBJReader"),
    ".ply": ("vtkIOPLY", "vtkPLYReader"),
    ".vtp": ("vtkIOXML", "vtkXMLPolyDataReader"),
    ".vtu": ("vtkIOXML", "vtkXMLUnstructuredGridReader"),
    ".vtk": ("vtkIOLegacy", "vtkGenericDataObjectReader"),
}
_WRITERS = {
    ".vtp": ("vtkIOXML", "vtkXMLPolyDataWriter", "vtkPolyData"),
    ".vtu": ("vtkIOXML", "vtkXMLUnstructuredGridWriter", "vtkUnstructuredGrid"),
    ".vtk": ("vtkIOLegacy", "vtkGenericDataObjectWriter", "vtkDataSet"),
}
GHOSTS = "vtkGhostType"
"""The array that says which cells and points are hidden, or belong to another file."""

_IS_HARMLESS = re.compile("Ignoring point color")
"""A weight after the coordinates of an `.obj` file, which is no colour."""

_END_BYTES = 1 << 10
_TAGS = re.compile(rb"<(/?(?:CellData|PointData)|AppendedData|DataArray|Array)\b([^>]*)>")
_NAME = re.compile(rb"""\bName=(["'])(.*?)\1""")


def read_dataset(path: Path, arrays: Collection[ArrayName] | None = None) -> Any:
    """Reads a `.stl`, `.vtp`, `.vtu`, `.vtk`, `.ply` or `.obj` file.

    Args:
        path: The file.
        arrays: The arrays to read from a `.vtp` or `.vtu` file that has them; None for all.

    Returns:
        A `pyvista.DataSet`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The extension is unknown, or the file is damaged or in another format.
        ImportError: pyvista is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        if path.name.lower().endswith((".cas.h5", ".dat.h5")):
            raise ValueError(f"{path}: Fluent's HDF5 files are not read: export CGNS or EnSight")
        raise ValueError(f"{path}: the extension must be one of {', '.join(_READERS)}, got {suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    pyvista = import_pyvista()
    problem, content = None, rewritten(path)
    if content is None:
        check_file(path)
        output, problem = _read(path, arrays)
        content = None if problem is None else rewritten(path, has_failed=True)
    if content is not None:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, f"copy{suffix}")
            copy.write_bytes(content)
            try:
                check_file(copy)
            except ValueError as error:
                raise ValueError(str(error).replace(str(copy), str(path))) from None
            output, problem = _read(copy, arrays)
    if problem is not None:
        raise ValueError(f"{path}: not a {suffix} file, or a damaged one: {problem}")
    if output is None or not output.IsA("vtkDataSet"):
        raise ValueError(f"{path}: holds {'nothing' if output is None else output.GetClassName()}, expected a mesh")
    check_cells(path, output)
    if suffix == ".obj":
        _drop_misfits(output)
    return pyvista.wrap(output)


def _read(path: Path, arrays: Collection[ArrayName] | None) -> tuple[Any, str | None]:
    """Returns what VTK reads of a file, and what it says is wrong with it."""
    suffix = path.suffix.lower()
    if suffix in (".vtp", ".vtu"):
        try_xml(path, _READERS[suffix][1])
    with vtk_messages() as messages:
        reader = vtk_class(*_READERS[suffix])()
        reader.SetFileName(str(path))
        if suffix == ".vtk":
            _read_all_attributes(reader)
        if arrays is not None and suffix in (".vtp", ".vtu"):
            _select_arrays(reader, path, arrays)
        reader.Update()
        output = reader.GetOutput()
    return output, next((message for message in messages if not _IS_HARMLESS.match(message)), None)


def write_dataset(path: Path, dataset: Any) -> None:
    """Writes a `pyvista.DataSet` atomically.

    Args:
        path: A `.vtp` (surfaces), `.vtu` (unstructured grids) or `.vtk` file.
        dataset: The mesh with its arrays.

    Raises:
        ValueError: The extension cannot hold such a mesh.
        OSError: The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise ValueError(f"{path}: fields are written to {', '.join(_WRITERS)} files, got {suffix!r}")
    module, name, kind = _WRITERS[suffix]
    if not dataset.IsA(kind):
        raise ValueError(f"{path}: a {suffix} file holds a {kind}, and the mesh is a {dataset.GetClassName()}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    with atomic_path(path) as partial:
        with vtk_messages() as messages:
            writer = vtk_class(module, name)()
            writer.SetFileName(str(partial))
            writer.SetInputData(dataset if suffix == ".vtk" else _with_escaped_names(dataset))
            if suffix == ".vtk":
                writer.SetFileTypeToBinary()
            else:
                # Predictions hardly compress, so the fastest settings are best.
                writer.SetCompressorTypeToLZ4()
                writer.EncodeAppendedDataOff()
                writer.SetHeaderTypeToUInt64()
            done = writer.Write()
        if not done or messages or writer.GetErrorCode() or not partial.is_file():
            raise OSError(messages[0] if messages else "VTK gave no reason")


def _with_escaped_names(dataset: Any) -> Any:
    """Returns a copy with names of arrays as XML has them: VTK's writers put them into the file as they are."""
    copy = dataset.copy(deep=False)
    for data in (copy.GetPointData(), copy.GetCellData(), copy.GetFieldData()):
        for array in [data.GetAbstractArray(number) for number in range(data.GetNumberOfArrays())]:
            if (name := array.GetName()) != (escaped := html.escape(name)):
                renamed = array.NewInstance()
                renamed.ShallowCopy(array)
                renamed.SetName(escaped)
                data.RemoveArray(name)
                data.AddArray(renamed)
    return copy


def import_pyvista() -> Any:
    """Imports pyvista without deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pyvista")


@contextmanager
def vtk_messages() -> Iterator[list[str]]:
    """Collects VTK's errors and warnings, one line each, instead of printing them."""
    core = importlib.import_module("vtkmodules.vtkCommonCore")
    before, window = core.vtkOutputWindow.GetInstance(), core.vtkStringOutputWindow()
    verbosity = core.vtkLogger.GetCurrentVerbosityCutoff()
    messages: list[str] = []
    core.vtkOutputWindow.SetInstance(window)
    core.vtkLogger.SetStderrVerbosity(core.vtkLogger.VERBOSITY_OFF)
    try:
        yield messages
    finally:
        core.vtkLogger.SetStderrVerbosity(verbosity)
        core.vtkOutputWindow.SetInstance(before)
        # The text is bytes where VTK quotes a byte that is not UTF-8.
        text: str | bytes = window.GetOutput()
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        # "ERROR: In file.cxx, line 3\nvtkClass (0x1): what happened"
        messages += re.findall(
            r"^(?:ERROR|Warning|Generic Warning): In .*\n(?:\w+ \(0x\w+\): )?(.*)", text, re.MULTILINE
        )


class ArrayNames(NamedTuple):
    """Names of the arrays in a file, in cells and on points."""

    cells: set[str]
    points: set[str]


def array_names(path: Path) -> ArrayNames:
    """Returns the names of the arrays of a `.vtp` or `.vtu` file without reading them.

    VTK's own reader would parse the file for this, and once more to read it.

    Raises:
        ValueError: The file is of another kind, or its end is missing.
    """
    if not path.stat().st_size:
        raise ValueError(f"{path}: empty")
    names, section = ArrayNames(set(), set()), set[str]()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"<VTKFile", 0, _END_BYTES) < 0:
            raise ValueError(f"{path}: not a {path.suffix} file, or a damaged one: it has no <VTKFile>")
        if content.rfind(b"</VTKFile>", max(0, len(content) - _END_BYTES)) < 0:
            raise ValueError(f"{path}: not a {path.suffix} file, or a damaged one: its end is missing")
        for tag in _TAGS.finditer(content):
            match tag[1]:
                case b"AppendedData":
                    break
                case b"CellData" | b"PointData":
                    section = names.cells if tag[1] == b"CellData" else names.points
                case b"/CellData" | b"/PointData":
                    section = set()
                case _ if name := _NAME.search(tag[2]):
                    section.add(html.unescape(name[2].decode(errors="replace")))
    return names


def chosen_arrays(wanted: Collection[ArrayName], present: ArrayNames) -> ArrayNames:
    """Returns the arrays that are wanted, in cells if those have all; or all, if neither cells nor points do."""
    if (in_cells := all_found(wanted, present.cells)) is not None:
        return ArrayNames(in_cells, set())
    on_points = all_found(wanted, present.points)
    return present if on_points is None else ArrayNames(set(), on_points)


def _select_arrays(reader: Any, path: Path, wanted: Collection[ArrayName]) -> None:
    """Leaves out the arrays that are not wanted; see `chosen_arrays`."""
    kept = chosen_arrays(wanted, present := array_names(path))
    for selection, names, of_these in (
        (reader.GetCellDataArraySelection(), present.cells, kept.cells),
        (reader.GetPointDataArraySelection(), present.points, kept.points),
    ):
        for name in names - of_these - {GHOSTS}:
            selection.DisableArray(name)


def _read_all_attributes(reader: Any) -> None:
    """Reads all arrays of a legacy file; by default VTK reads the first of each kind."""
    for kind in ("Scalars", "Vectors", "Normals", "Tensors", "ColorScalars", "TCoords", "Fields"):
        getattr(reader, f"ReadAll{kind}On")()


def _drop_misfits(dataset: Any) -> None:
    """Drops arrays that have another number of rows: normals of an `.obj` file are not numbered as its points are."""
    for data, num_rows in (
        (dataset.GetPointData(), dataset.GetNumberOfPoints()),
        (dataset.GetCellData(), dataset.GetNumberOfCells()),
    ):
        for index in reversed(range(data.GetNumberOfArrays())):
            if data.GetAbstractArray(index).GetNumberOfTuples() != num_rows:
                data.RemoveArray(index)


def vtk_class(module: str, name: str) -> Any:
    """Returns a class of a module of VTK, imported now."""
    return getattr(importlib.import_module(f"vtkmodules.{module}"), name)
