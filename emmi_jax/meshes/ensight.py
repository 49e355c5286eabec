"""EnSight Gold: the case file, and its parts and variables in ASCII, C or Fortran binary, read with NumPy.

VTK's readers fill what a truncated variable lacks without a word, or crash on it. Numbers are float32 in the format.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.components import ArrayName, all_found
from emmi_jax.meshes.ensight_blocks import read_block
from emmi_jax.meshes.ensight_files import EnsightData, open_data
from emmi_jax.meshes.parts_file import Part, PartsFile, linked_file
from emmi_jax.meshes.vtk import ArrayNames, import_pyvista

SHAPES = {
    "point": (1, 1),
    "bar2": (3, 2),
    "bar3": (21, 3),
    "tria3": (5, 3),
    "tria6": (22, 6),
    "quad4": (9, 4),
    "quad8": (23, 8),
    "tetra4": (10, 4),
    "tetra10": (24, 10),
    "pyramid5": (14, 5),
    "pyramid13": (27, 13),
    "penta6": (13, 6),
    "penta15": (26, 15),
    "hexa8": (12, 8),
    "hexa20": (25, 20),
}
"""Type of VTK and number of corners by type of element; `nsided` and `nfaced` have their own lists."""

POLYGON, POLYHEDRON = 7, 42
_FLAT = (5, 7, 9)
_COMPONENTS = {"scalar": 1, "vector": 3, "tensor symm": 6, "tensor asym": 9}
_SECTION = re.compile(r"[A-Z][A-Z_ ]*")
_VARIABLE = re.compile(r"(scalar|vector|tensor symm|tensor asym|tensor) per (node|element):\s*(.*)", re.IGNORECASE)


class _Place(NamedTuple):
    """Name of a file, perhaps with asterisks for a number; its time set; whether it has all steps of this."""

    pattern: str
    time_set: int | None
    has_steps: bool


class _Variable(NamedTuple):
    name: str
    num_components: int
    is_nodal: bool
    place: _Place


class _TimeSet(NamedTuple):
    values: list[float]
    numbers: list[int]


class _Elements(NamedTuple):
    """Elements of one type; ghosts are those of another processor. Cells are in the form of VTK."""

    kind: str
    number: int
    is_ghost: bool
    cells: NDArray[np.int64]
    vtk_type: int


class EnsightCase(PartsFile):
    """A `.case` file."""

    @cached_property
    def _sections(self) -> dict[str, list[str]]:
        sections, section = dict[str, list[str]](), ""
        for line in self.path.read_text(errors="replace").splitlines():
            line = line.split("#")[0].strip()
            if _SECTION.fullmatch(line):
                section = line
            elif line:
                sections.setdefault(section, []).append(line)
        kind = " ".join(sections.get("FORMAT", [])).lower()
        if not re.search(r"type:\s*ensight\s+gold", kind):
            raise ValueError(f"{self.path}: expected 'type: ensight gold' under FORMAT, got {kind!r:.80}")
        return sections

    @cached_property
    def _time_sets(self) -> dict[int, _TimeSet]:
        words, time_sets = re.split(r"time set:", " ".join(self._sections.get("TIME", []))), dict[int, _TimeSet]()
        for text in words[1:]:
            try:
                number = int(text.split()[0])
                values = [float(word) for word in _after(text, "time values:")]
                listed = [int(word) for word in _after(text, "filename numbers:")]
                start, step = (_after(text, f"filename {key}:") for key in ("start number", "increment"))
                count = int(_after(text, "number of steps:")[0])
                made = [int(start[0]) + int(step[0] if step else 1) * i for i in range(len(values))] if start else []
            except (ValueError, IndexError):
                raise ValueError(f"{self.path}: not a time set: {text.strip()!r:.80}") from None
            if len(values) != count or len(numbers := listed or made or list(range(len(values)))) != count:
                raise ValueError(f"{self.path}: time set {number} has {len(values)} values, expected {count}")
            time_sets[number] = _TimeSet(values, numbers)
        return time_sets

    @cached_property
    def _model(self) -> _Place:
        lines = [line for line in self._sections.get("GEOMETRY", []) if line.lower().startswith("model:")]
        words = [word for line in lines[:1] for word in _words(line.partition(":")[2])]
        words = [word for word in words if word not in ("", "change_coords_only", "cstep")]
        if not words:
            raise ValueError(f"{self.path}: it names no model under GEOMETRY")
        return self._place([int(word) for word in words[:-1] if word.isdigit()], words[-1])

    @cached_property
    def _variables(self) -> list[_Variable]:
        variables = []
        for line in self._sections.get("VARIABLE", []):
            if (match := _VARIABLE.match(line)) is None:
                continue
            numbers, (*head, file) = [], _words(match[3])
            while len(head) > 1 and head[0].isdigit():
                numbers.append(int(head.pop(0)))
            components = _COMPONENTS[{"tensor": "tensor symm"}.get(kind := match[1].lower(), kind)]
            is_nodal = match[2].lower() == "node"
            variables.append(_Variable(" ".join(head), components, is_nodal, self._place(numbers, file)))
        return variables

    def _place(self, numbers: list[int], pattern: str) -> _Place:
        """Returns the file that a line names; of two numbers before it, the second is that of a file set."""
        if (has_steps := len(numbers) > 1) and "*" in pattern:
            raise ValueError(f"{self.path}: several files with several time steps each are not read: {pattern!r}")
        return _Place(pattern, numbers[0] if numbers else None, has_steps)

    def times(self) -> list[float]:
        """Returns the values of all time sets."""
        return sorted({value for of_set in self._time_sets.values() for value in of_set.values})

    def files(self, time: float | None) -> list[Path]:
        """Returns the geometry and the variables of a time."""
        places = (self._model, *(variable.place for variable in self._variables))
        return list(dict.fromkeys(self._file(place, time)[0] for place in places))

    def array_names(self, time: float | None) -> ArrayNames:
        """Returns the names of the variables."""
        names = [{v.name for v in self._variables if v.is_nodal == is_nodal} for is_nodal in (False, True)]
        return ArrayNames(*names)

    def read(self, time: float | None, arrays: Collection[ArrayName] | None) -> list[Part]:
        """Reads the parts; see `PartsFile`."""
        file, step = self._file(self._model, time)
        data = open_data(file, None, step)
        lines, geometries = [data.word(), data.word()], dict[int, _Geometry]()
        has_ids = [_has_ids(data, kind) for kind in ("node", "element")]
        if data.peek() == "extents":
            data.word()
            data.floats(6, num_rows=3)
        while (number := data.part()) is not None:
            geometries[number] = _Geometry(data, *has_ids)
        names = {variable.name for variable in self._variables}
        wanted = names if arrays is None else all_found(arrays, names) or set()
        for variable in self._variables:
            if variable.name in wanted:
                file, step = self._file(variable.place, time)
                _add(variable, open_data(file, data, step), geometries)
        is_patch = any("OpenFOAM" in line for line in lines)
        return [Part(part.name, part.dataset(), is_patch=is_patch) for part in geometries.values()]

    def _file(self, place: _Place, time: float | None) -> tuple[Path, int | None]:
        """Returns a file at a time, and its step there if it has several."""
        pattern, time_set, has_steps = place
        if "*" not in pattern and not has_steps:
            return linked_file(self.path, pattern), None
        of_set = self._time_sets.get(1 if time_set is None else time_set)
        if of_set is None or not of_set.values:
            raise ValueError(f"{self.path}: {pattern!r} needs time set {time_set or 1}, which is missing")
        step = ([i for i, value in enumerate(of_set.values) if time is None or value <= time] or [0])[-1]
        if has_steps:
            return linked_file(self.path, pattern), step
        stars = re.search(r"\*+", pattern)
        number = f"{of_set.numbers[step]:0{len(stars[0]) if stars else 1}d}"
        return linked_file(self.path, re.sub(r"\*+", number, pattern)), None


class _Geometry:
    """A part: its points, its elements in the order of the file, and its arrays."""

    def __init__(self, data: EnsightData, has_node_ids: bool, has_element_ids: bool) -> None:
        self.name = data.word()
        self._arrays: dict[bool, dict[str, NDArray[np.float32]]] = {True: {}, False: {}}
        self._elements: list[_Elements] = []
        self._nodes, *flags = (data.element() or "nothing").split()
        if self._nodes == "block":
            self._points, corners, vtk_type = read_block(data, flags)
            self._num_points, (number, width) = len(self._points), corners.shape
            data.ints(self._num_points * has_node_ids)
            data.ints(number * has_element_ids)
            cells = np.insert(corners, 0, width, axis=1).reshape(-1)
            self._elements.append(_Elements("block", number, False, cells, vtk_type))
            return
        if self._nodes != "coordinates":
            raise ValueError(f"{data.path}: part {self.name!r} has {self._nodes!r}, expected 'coordinates' or 'block'")
        self._num_points = data.count()
        data.ints(self._num_points * has_node_ids)
        self._points = data.floats(data.total([3 * self._num_points])).reshape(3, -1).T
        while (kind := data.element()) is not None:
            number = data.count()
            data.ints(number * has_element_ids)
            self._elements.append(self._read_elements(data, kind, number))

    def _read_elements(self, data: EnsightData, kind: str, number: int) -> _Elements:
        shape = kind.removeprefix("g_")
        if shape == "nsided":
            sizes = data.ints(number)
            corners = self._corners(data, data.ints(data.total(sizes), num_rows=number))
            cells, vtk_type = _with_sizes(corners, sizes), POLYGON
        elif shape == "nfaced":
            faces = data.ints(number)
            sizes = data.ints(data.total(faces))
            corners = self._corners(data, data.ints(data.total(sizes), num_rows=len(sizes)))
            cells, vtk_type = _streams(corners, sizes, faces), POLYHEDRON
        elif shape in SHAPES:
            vtk_type, width = SHAPES[shape]
            corners = self._corners(data, data.ints(data.total([number * width]), num_rows=number))
            cells = np.insert(corners.reshape(number, width), 0, width, axis=1).reshape(-1)
        else:
            raise ValueError(f"{data.path}: part {self.name!r} has {kind!r:.80}, expected a type of element")
        return _Elements(kind, number, kind != shape, cells, vtk_type)

    def _corners(self, data: EnsightData, corners: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(corners) and not 1 <= corners.min() <= corners.max() <= self._num_points:
            problem = f"part {self.name!r} has corners {corners.min()} to {corners.max()} of {self._num_points} points"
            raise data.damage(problem)
        return corners - 1

    def add(self, variable: _Variable, data: EnsightData) -> None:
        """Reads the values of a variable, component after component in the file."""
        by_element = {element.kind: element.number for element in self._elements}
        counts = {self._nodes: self._num_points} if variable.is_nodal else by_element
        rows = dict[str, NDArray[np.float32]]()
        while (head := data.element()) is not None:
            kind, *flags = head.split()
            if kind not in counts or kind in rows or flags not in ([], ["undef"]):
                raise ValueError(f"{data.path}: part {self.name!r} has values of {head!r:.80}, expected {list(counts)}")
            undefined = data.floats(1)[0] if flags else np.nan
            values = data.floats(data.total([variable.num_components * counts[kind]]))
            values = values.reshape(variable.num_components, -1).T
            rows[kind] = np.where(values == undefined, np.float32(np.nan), values) if flags else values
        if absent := [kind for kind, number in counts.items() if number and kind not in rows]:
            raise ValueError(f"{data.path}: part {self.name!r} has no values of {', '.join(absent)}")
        kept = [rows[kind] for kind, number in counts.items() if number and not kind.startswith("g_")]
        array = np.concatenate(kept) if kept else np.empty((0, variable.num_components), np.float32)
        self._arrays[variable.is_nodal][variable.name] = array[:, 0] if variable.num_components == 1 else array

    def dataset(self) -> Any:
        """Returns a `pyvista.PolyData` of polygons, or an `UnstructuredGrid`, without elements of other processors."""
        pyvista = import_pyvista()
        elements = [e for e in self._elements if not e.is_ghost and e.number]
        types = np.repeat([e.vtk_type for e in elements], [e.number for e in elements]).astype(np.uint8)
        cells = np.concatenate([e.cells for e in elements]) if elements else np.empty(0, np.int64)
        points, made = np.ascontiguousarray(self._points), None
        if elements and all(e.vtk_type in _FLAT for e in elements):
            made = pyvista.PolyData(points, faces=cells)
        else:
            made = pyvista.UnstructuredGrid(cells, types, points)
        for is_nodal, data in ((True, made.point_data), (False, made.cell_data)):
            for name, values in self._arrays[is_nodal].items():
                data[name] = values
        return made


def _add(variable: _Variable, data: EnsightData, parts: Mapping[int, _Geometry]) -> None:
    data.word()
    while (number := data.part()) is not None:
        if number not in parts:
            raise ValueError(f"{data.path}: it has values of part {number}, which is not in the geometry")
        parts[number].add(variable, data)


def _has_ids(data: EnsightData, kind: str) -> bool:
    line = (data.element() or "").lower().split()
    if line[:2] != [kind, "id"] or line[2:] not in (["off"], ["given"], ["assign"], ["ignore"]):
        raise ValueError(f"{data.path}: expected '{kind} id off', given, assign or ignore, got {' '.join(line)!r:.80}")
    return line[2] in ("given", "ignore")


def _after(text: str, key: str) -> list[str]:
    """Returns the words between a key and the next one."""
    rest = text.partition(key)[2]
    return (
        re.split(r"[a-z]{2}", rest)[0].split() if key.endswith(("values:", "numbers:")) and rest else rest.split()[:1]
    )


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text, posix=True)
    except ValueError:
        words = text.split()
    return words or [""]


def _with_sizes(corners: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.insert(corners, np.cumsum(sizes) - sizes, sizes)


def _streams(corners: NDArray[np.int64], sizes: NDArray[np.int64], faces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the face streams of polyhedra, each behind its length and its number of faces."""
    flat = _with_sizes(corners, sizes)
    ends = np.concatenate([[0], np.cumsum(sizes + 1)])[np.concatenate([[0], np.cumsum(faces)])]
    pairs = np.stack([np.diff(ends) + 1, faces], axis=1).reshape(-1)
    return np.insert(flat, np.repeat(ends[:-1], 2), pairs)
