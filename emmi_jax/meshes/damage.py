"""Checks of mesh files on whose damage VTK's readers crash the process, or read less than there was."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.plain import binary_stl_size, is_stl_text

Elements: TypeAlias = list[tuple[str, int, list[tuple[bool, tuple[str, ...], bool]]]]
"""Name, number and properties of each kind of row: whether one is a list, its types, whether it lists corners."""

_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
_TYPES |= {"double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
_TYPES |= {"float32": "f4", "float64": "f8"}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_CORNERS = ("vertex_indices", "vertex_index")
_MAX_LINE = 1 << 20
_XML_HEAD = 1 << 20
_MOST_COMPRESSION = 1100
_PIECE, _COUNT = re.compile(rb"<Piece\b[^>]*>"), re.compile(rb"""NumberOf\w+\s*=\s*["']\s*(\d+)""")
_LEGACY_CELLS = (b"VERTICES", b"LINES", b"POLYGONS", b"TRIANGLE_STRIPS", b"CELLS")


def check_file(path: Path) -> None:
    """Refuses a file that is truncated, claims more than it can hold, or has faces without points.

    Raises:
        ValueError: It is damaged.
    """
    match path.suffix.lower():
        case ".ply":
            _check_ply(path)
        case ".stl":
            _check_stl(path)
        case ".vtp" | ".vtu":
            _check_claims(path)
        case ".vtk":
            _check_legacy(path)


def check_cells(path: Path, dataset: Any) -> None:
    """Refuses a VTK data set with cells whose corners are no points of it.

    Raises:
        ValueError: There is one.
    """
    if dataset.IsA("vtkPolyData"):
        lists: tuple[Any, ...] = dataset.GetVerts(), dataset.GetLines(), dataset.GetPolys(), dataset.GetStrips()
    elif dataset.IsA("vtkUnstructuredGrid"):
        faces = dataset.GetPolyhedronFaces() if hasattr(dataset, "GetPolyhedronFaces") else None  # VTK 9.4
        lists = dataset.GetCells(), faces
        locations = None if faces is None else dataset.GetPolyhedronFaceLocations()
        if faces is not None and locations is not None and locations.GetNumberOfCells():
            low, high = _range(locations.GetConnectivityArray())
            if not locations.IsValid() or low < 0 or high >= faces.GetNumberOfCells():
                raise ValueError(f"{path}: damaged: its cells have faces {low} to {high}")
    else:
        return
    for cells in lists:
        if cells is None or not cells.GetNumberOfCells():
            continue
        corners = cells.GetConnectivityArray()
        low, high = _range(corners)
        num_points = dataset.GetNumberOfPoints()
        if not cells.IsValid() or low < 0 or high >= num_points:
            raise ValueError(f"{path}: damaged: its cells have corners {low} to {high} of {num_points} points")


def _range(array: Any) -> tuple[int, int]:
    """Returns the least and the largest value, or 0 and -1 of none; NumPy is twice as fast as VTK."""
    values = importlib.import_module("vtkmodules.util.numpy_support").vtk_to_numpy(array)
    return (int(values.min()), int(values.max())) if len(values) else (0, -1)


def _check_stl(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(1024)
    expected, num_bytes = binary_stl_size(head), path.stat().st_size
    if not is_stl_text(head) and num_bytes < expected:
        raise ValueError(f"{path}: not a .stl file, or a truncated one: {num_bytes} bytes, expected {expected}")


def _check_claims(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(_XML_HEAD)
    claimed = sum(int(number) for piece in _PIECE.findall(head) for number in _COUNT.findall(piece))
    if claimed > _MOST_COMPRESSION * path.stat().st_size:
        raise ValueError(f"{path}: not a {path.suffix} file, or a damaged one: it claims {claimed} points and cells")


def _check_legacy(path: Path) -> None:
    """Before version 5, a list of cells holds the number of corners of each before these."""
    with path.open("rb") as file:
        version, _, kind = file.readline(256), file.readline(256), file.readline(256).strip().upper()
        if not version.startswith(b"# vtk DataFile") or version.split()[-1] >= b"5":
            return
        size = path.stat().st_size
        while line := file.readline(_MAX_LINE):
            match line.split():
                case [keyword, number, length] if keyword.upper() in _LEGACY_CELLS and (number + length).isdigit():
                    fits = int(length) <= (size - file.tell()) // (4 if kind == b"BINARY" else 2) + 1
                    how = {"dtype": ">i4"} if kind == b"BINARY" else {"dtype": np.int64, "sep": " "}
                    numbers = np.fromfile(file, count=int(length), **how) if fits else np.empty(0, np.int64)
                    if len(numbers) != int(length) or not _is_list(numbers, int(number)):
                        words = line.decode("latin-1").strip()
                        raise ValueError(f"{path}: truncated or damaged: its list of cells is not {words!r}")


def _is_list(values: NDArray[Any], number: int) -> bool:
    """Returns whether values are so many lists, each behind its length."""
    if number and len(values) == number * (step := 1 + int(values[0])) and (values[::step] == step - 1).all():
        return True
    place = 0
    for _ in range(number):
        if place >= len(values) or values[place] < 0:
            return False
        place += 1 + int(values[place])
    return place == len(values)


def _check_ply(path: Path) -> None:
    with path.open("rb") as file:
        header: list[list[str]] = []
        while len(header) < 1000 and (line := file.readline(1000)):
            header.append(line.decode("latin-1").split())
            if header[-1] == ["end_header"]:
                break
        if not header or header[0] != ["ply"] or header[-1] != ["end_header"]:
            raise ValueError(f"{path}: not a .ply file, or a truncated one")
        order = next((_ORDERS.get(words[1]) for words in header if words[:1] == ["format"] and len(words) == 3), None)
        elements: Elements = []
        for words in header:
            match words:
                case ["element", name, number] if number.isdecimal():
                    elements.append((name, int(number), []))
                case ["property", "list", size, item, name] if elements and {size, item} <= {*_TYPES}:
                    elements[-1][2].append((True, (_TYPES[size], _TYPES[item]), name in _CORNERS))
                case ["property", kind, _] if elements and kind in _TYPES:
                    elements[-1][2].append((False, (_TYPES[kind],), False))
                case ["property" | "element", *_]:
                    raise ValueError(f"{path}: not a .ply file, or a damaged one: {' '.join(words)!r:.80}")
        num_points = next((count for name, count, _ in elements if name == "vertex"), 0)
        try:
            if order is None:
                _check_text(file, elements, num_points)
            else:
                _check_rows(np.memmap(path, np.uint8, "r"), file.tell(), order, elements, num_points)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}: truncated or damaged: {error!s:.80}") from None


def _check_text(file: IO[bytes], elements: Elements, num_points: int) -> None:
    for name, count, properties in elements:
        for row in range(count):
            if not (words := file.readline(_MAX_LINE).split()):
                raise ValueError(f"{name} {row} of {count} is missing")
            for is_list, _, of_corners in properties if name != "vertex" else ():
                number = int(words.pop(0)) if is_list else 0
                corners, words = words[:number], words[number if is_list else 1 :]
                if len(corners) < number or (of_corners and not all(0 <= int(c) < num_points for c in corners)):
                    raise ValueError(f"{name} {row} has no such corners")


def _check_rows(content: NDArray[np.uint8], place: int, order: str, elements: Elements, num_points: int) -> None:
    def take(dtype: Any, number: int) -> Any:
        nonlocal place
        taken = np.frombuffer(content, dtype, number, place)
        place += taken.nbytes
        return taken

    def check(name: str, corners: Any) -> None:
        if corners.size and not (corners.min() >= 0 and corners.max() < num_points):
            raise ValueError(f"a {name} has no such corners")

    for name, count, properties in elements:
        kinds = [[np.dtype(order + kind) for kind in of_row] for _, of_row, _ in properties]
        if not any(is_list for is_list, _, _ in properties):
            take(np.uint8, count * sum(kind.itemsize for (kind,) in kinds))
            continue
        if count and len(properties) == 1:  # mostly, all faces have as many corners
            ((of_number, of_item),), start = kinds, place
            number = int(take(of_number, 1)[0])
            row, place = np.dtype([("number", of_number), ("corners", of_item, (number,))]), start
            rows = take(row, min(count, (len(content) - start) // row.itemsize))
            if len(rows) == count and (rows["number"] == number).all():
                check(name, rows["corners"] if properties[0][2] else rows["corners"][:0])
                continue
            place = start
        for _ in range(count):
            for (is_list, _, of_corners), kind in zip(properties, kinds, strict=True):
                items = take(kind[-1], int(take(kind[0], 1)[0]) if is_list else 1)
                check(name, items if of_corners else items[:0])
