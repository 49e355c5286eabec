"""VTK's readers and writers, with one-line errors instead of printed messages, and atomic writes."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emmi_jax.files.atomic import whole_file

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
_PLY_SIZES = {"char": 1, "uchar": 1, "short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
_PLY_SIZES |= {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8}


def read_dataset(path: Path, arrays: Collection[str] | None = None) -> Any:
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
        raise ValueError(f"{path}: the extension must be one of {', '.join(_READERS)}, got {suffix!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    pyvista = import_pyvista()
    if suffix == ".ply":
        _check_ply(path)
    with vtk_messages() as messages:
        reader = _vtk_class(*_READERS[suffix])()
        reader.SetFileName(str(path))
        if arrays is not None and suffix in (".vtp", ".vtu"):
            _select_arrays(reader, arrays)
        reader.Update()
        output = reader.GetOutput()
    if messages:
        raise ValueError(f"{path}: not a {suffix} file, or a damaged one: {messages[0]}")
    if output is None or not output.IsA("vtkDataSet"):
        raise ValueError(f"{path}: holds {'nothing' if output is None else output.GetClassName()}, expected a mesh")
    return pyvista.wrap(output)


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
    with whole_file(path) as partial:
        with vtk_messages() as messages:
            writer = _vtk_class(module, name)()
            writer.SetFileName(str(partial))
            writer.SetInputData(dataset)
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
        # "ERROR: In file.cxx, line 3\nvtkClass (0x1): what happened"
        messages += re.findall(
            r"^(?:ERROR|Warning|Generic Warning): In .*\n(?:\w+ \(0x\w+\): )?(.*)", window.GetOutput(), re.MULTILINE
        )


def array_names(path: Path) -> set[str]:
    """Returns the names of the arrays of a `.vtp` or `.vtu` file, of which only the header is read.

    Raises:
        ValueError: The header is damaged, or the end of the file is missing.
    """
    import_pyvista()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 256))
        is_whole = b"</VTKFile>" in file.read()
    with vtk_messages() as messages:
        reader = _vtk_class(*_READERS[path.suffix.lower()])()
        reader.SetFileName(str(path))
        if is_whole:
            reader.UpdateInformation()
            selections = reader.GetCellDataArraySelection(), reader.GetPointDataArraySelection()
            found = {s.GetArrayName(i) for s in selections for i in range(s.GetNumberOfArrays())}
    if messages or not is_whole:
        reason = messages[0] if messages else "its end is missing"
        raise ValueError(f"{path}: not a {path.suffix} file, or a damaged one: {reason}")
    return found


def _select_arrays(reader: Any, wanted: Collection[str]) -> None:
    """Leaves out the arrays that are not wanted, and those on points if cells have all; if any is absent, none."""
    reader.UpdateInformation()
    cells, points = reader.GetCellDataArraySelection(), reader.GetPointDataArraySelection()
    in_cells, on_points = (
        {selection.GetArrayName(i) for i in range(selection.GetNumberOfArrays())} for selection in (cells, points)
    )
    if set(wanted) <= in_cells:
        points.DisableAllArrays()
    elif not set(wanted) <= on_points:
        return
    for selection, names in ((cells, in_cells), (points, on_points)):
        for name in names - set(wanted):
            selection.DisableArray(name)


def _vtk_class(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"vtkmodules.{module}"), name)


def _check_ply(path: Path) -> None:
    """Refuses a truncated `.ply` file, on which VTK's reader crashes the process."""
    with path.open("rb") as file:
        header: list[list[str]] = []
        while len(header) < 1000 and (line := file.readline(1000)):
            header.append(line.decode("latin-1").split())
            if header[-1] == ["end_header"]:
                break
        if not header or header[0] != ["ply"] or header[-1] != ["end_header"]:
            raise ValueError(f"{path}: not a .ply file, or a truncated one")
        is_text = ["format", "ascii", "1.0"] in header
        found = sum(1 for _ in file) if is_text else path.stat().st_size - file.tell()
    count, least = 0, 0
    for words in header:
        match words:
            case ["element", _, number] if number.isdigit():
                count = int(number)
                least += count if is_text else 0
            case ["property", "list", size, item, _] if not is_text:
                least += count * (_PLY_SIZES.get(size, 1) + 3 * _PLY_SIZES.get(item, 1))
            case ["property", size, _] if not is_text:
                least += count * _PLY_SIZES.get(size, 1)
    if found < least:
        raise ValueError(f"{path}: truncated: {found} {'lines' if is_text else 'bytes'} of data, expected {least}")
