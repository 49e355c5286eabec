"""Names of the arrays of legacy `.vtk` files, which have no table of contents: their headers are walked through."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from emmi_jax.meshes.vtk import ArrayNames, array_names, read_dataset

_SIZES = {"bit": 0, "char": 1, "unsigned_char": 1, "short": 2, "unsigned_short": 2, "int": 4, "unsigned_int": 4}
_SIZES |= {"long": 8, "unsigned_long": 8, "vtktypeint64": 8, "vtkidtype": 4, "float": 4, "double": 8}
_COLUMNS = {"VECTORS": 3, "NORMALS": 3, "TENSORS": 9, "TENSORS6": 6, "GLOBAL_IDS": 1, "PEDIGREE_IDS": 1}
_CELLS = ("VERTICES", "LINES", "POLYGONS", "TRIANGLE_STRIPS", "CELLS")
_NO_DATA = ("DATASET", "DIMENSIONS", "SPACING", "ASPECT_RATIO", "ORIGIN")


def file_arrays(path: Path) -> ArrayNames:
    """Returns the names of the arrays of a file with one mesh, of any kind; those of most are not read."""
    match path.suffix.lower():
        case ".vtp" | ".vtu":
            return array_names(path)
        case ".vtk":
            return legacy_array_names(path)
    return dataset_arrays(read_dataset(path))


def dataset_arrays(dataset: Any) -> ArrayNames:
    """Returns the names of the arrays of a `pyvista.DataSet`."""
    return ArrayNames(set(dataset.cell_data.keys()), set(dataset.point_data.keys()))


def legacy_array_names(path: Path) -> ArrayNames:
    """Returns the names of the arrays of a legacy file; the values of a binary one are skipped.

    Raises:
        ValueError: The file is damaged.
    """
    with path.open("rb") as file:
        version = file.readline(256)
        file.readline(256)
        if version.startswith(b"# vtk DataFile") and file.readline(256).strip().upper() == b"BINARY":
            try:
                return _walk(file, path.stat().st_size, is_old=version.split()[-1] < b"5")
            except (LookupError, ValueError):
                pass
    return dataset_arrays(read_dataset(path))


def _walk(file: IO[bytes], size: int, *, is_old: bool) -> ArrayNames:
    """Raises LookupError or ValueError for what is not known here."""
    names, section, rows = ArrayNames(set(), set()), set[str](), 0
    while file.tell() < size:
        words = file.readline(1000).decode("latin-1").split()
        match [words[0].upper(), *words[1:]] if words else []:
            case [] | ["METADATA", *_]:
                if words:
                    _skip_metadata(file)
            case [keyword, *_] if keyword in _NO_DATA:
                pass
            case ["POINTS", number, kind]:
                _skip(file, 3 * int(number) * _SIZES[kind.lower()])
            case [("X_COORDINATES" | "Y_COORDINATES" | "Z_COORDINATES"), number, kind]:
                _skip(file, int(number) * _SIZES[kind.lower()])
            case [keyword, number, corners] if keyword in _CELLS and is_old:
                _skip(file, 4 * int(corners))
            case [keyword, number, corners] if keyword in _CELLS:
                for count in (int(number), int(corners)):
                    _skip(file, count * _SIZES[_line(file)[-1].lower()])
            case ["CELL_TYPES", number]:
                _skip(file, 4 * int(number))
            case [("CELL_DATA" | "POINT_DATA") as keyword, number]:
                section, rows = names.cells if keyword == "CELL_DATA" else names.points, int(number)
            case ["SCALARS", name, kind, *columns]:
                section.add(unquote(name))
                _line(file)
                _skip(file, rows * int((columns or ["1"])[0]) * _SIZES[kind.lower()])
            case ["LOOKUP_TABLE", _, number]:
                _skip(file, 4 * int(number))
            case ["COLOR_SCALARS", name, columns]:
                section.add(unquote(name))
                _skip(file, rows * int(columns))
            case ["TEXTURE_COORDINATES", name, columns, kind]:
                section.add(unquote(name))
                _skip(file, rows * int(columns) * _SIZES[kind.lower()])
            case ["FIELD", _, number]:
                for _ in range(int(number)):
                    words = _line(file)
                    while words[0].upper() == "METADATA":
                        _skip_metadata(file)
                        words = _line(file)
                    section.add(unquote(words[0]))
                    _skip(file, int(words[1]) * int(words[2]) * _SIZES[words[3].lower()])
            case [keyword, name, kind]:
                section.add(unquote(name))
                _skip(file, rows * _COLUMNS[keyword] * _SIZES[kind.lower()])
            case _:
                raise LookupError(words[0])
    return names


def _line(file: IO[bytes]) -> list[str]:
    """Returns the words of the next line that has any."""
    while line := file.readline(1000):
        if words := line.decode("latin-1").split():
            return words
    raise LookupError("the end")


def _skip_metadata(file: IO[bytes]) -> None:
    while file.readline(10_000).strip():
        pass


def _skip(file: IO[bytes], num_bytes: int) -> None:
    file.seek(num_bytes, 1)
