"""Files of ParaView that name others: `.pvtu`, `.pvtp`, `.vtm`, `.vtpc`, `.pvd`.

VTK's readers of these go on where a file is missing, and keep partitions without their borders; so this reads the XML
alone, and each file that it names on its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from emmi_jax.meshes.components import ArrayName
from emmi_jax.meshes.foam_to_vtk import is_foam_patch
from emmi_jax.meshes.legacy import file_arrays
from emmi_jax.meshes.parts_file import Part, PartsFile, linked_file
from emmi_jax.meshes.vtk import ArrayNames, read_dataset

SUFFIXES = (".pvtu", ".pvtp", ".vtm", ".vtpc", ".pvd")
_KINDS = ("PUnstructuredGrid", "PPolyData", "vtkMultiBlockDataSet", "vtkPartitionedDataSetCollection", "Collection")
_LEAVES = (".vtp", ".vtu", ".vtk", ".stl", ".ply", ".obj")
_MOST_BYTES, _MOST_LINKS = 1 << 26, 100_000
_DEEPEST, _DEEPEST_BLOCK = 8, 32


class _Link(NamedTuple):
    name: str
    file: Path
    time: float | None
    nested: CollectionFile | None


class CollectionFile(PartsFile):
    """A file that names others; those may do so, too.

    Args:
        path: The file.
        depth: How many files lead to it.
        root: The first of those.
    """

    def __init__(self, path: Path, depth: int = 0, root: CollectionFile | None = None) -> None:
        super().__init__(path)
        self._depth, self._root, self._num_links = depth, root or self, 0

    @cached_property
    def _links(self) -> list[_Link]:
        if self.path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{self.path}: larger than {_MOST_BYTES >> 20} MiB, expected names of files")
        text = self.path.read_bytes()
        try:
            if b"<!" in text.replace(b"<!--", b""):
                raise ElementTree.ParseError("it has declarations")
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(f"{self.path}: not a {self.path.suffix} file, or a damaged one: {error}") from None
        tops = [child for child in root if child.tag in _KINDS]
        if root.tag != "VTKFile" or not tops:
            raise ValueError(f"{self.path}: not a {self.path.suffix} file: expected one of {', '.join(_KINDS)}")
        links = [link for top in tops for link in self._below(top, "")]
        if not links:
            raise ValueError(f"{self.path}: it names no file")
        return links

    def _below(self, element: ElementTree.Element, name: str, level: int = 0) -> Iterator[_Link]:
        if level > _DEEPEST_BLOCK:
            raise ValueError(f"{self.path}: blocks in blocks, expected at most {_DEEPEST_BLOCK} levels")
        for index, child in enumerate(element):
            own = child.get("name") or (child.get("part") if element.tag == "Collection" else None)
            if own is None and child.tag in ("Block", "Partitions"):
                own = f"block{child.get('index', index)}"
            below = "/".join(filter(None, (name, own)))
            if (file := child.get("file") or child.get("Source")) is not None:
                yield self._link(below, linked_file(self.path, file), self._time(child.get("timestep")))
            else:
                yield from self._below(child, below, level + 1)

    def _link(self, name: str, file: Path, time: float | None) -> _Link:
        self._root._num_links += 1
        if self._root._num_links > _MOST_LINKS:
            raise ValueError(f"{self._root.path}: it leads to more than {_MOST_LINKS:,} files")
        is_leaf = file.suffix.lower() not in SUFFIXES
        return _Link(name, file, time, None if is_leaf else CollectionFile(file, self._depth + 1, self._root))

    def _time(self, text: str | None) -> float | None:
        try:
            return None if text is None else float(text)
        except ValueError:
            raise ValueError(f"{self.path}: not a time: {text!r:.80}") from None

    def _at(self, time: float | None) -> list[_Link]:
        return [link for link in self._links if link.time is None or link.time == time]

    def _open(self, link: _Link) -> PartsFile | None:
        suffix = link.file.suffix.lower()
        if suffix in _LEAVES:
            return None
        if link.nested is None:
            raise ValueError(f"{self.path}: it names {link.file.name}, expected {', '.join((*_LEAVES, *SUFFIXES))}")
        if self._depth == _DEEPEST:
            raise ValueError(f"{self._root.path}: files in files, expected at most {_DEEPEST} levels")
        return link.nested

    def times(self) -> list[float]:
        """Returns the times that a `.pvd` file lists."""
        return sorted({link.time for link in self._links if link.time is not None})

    def files(self, time: float | None) -> list[Path]:
        """Returns the files that are read at a time."""
        files_of = []
        for link in self._at(time):
            nested = self._open(link)
            files_of += [link.file, *([] if nested is None else nested.files(nested.time(None)))]
        return files_of

    def array_names(self, time: float | None) -> ArrayNames:
        """Returns the names of the arrays of any part."""
        all_names = ArrayNames(set(), set())
        for link in self._at(time):
            nested = self._open(link)
            names = file_arrays(link.file) if nested is None else nested.array_names(nested.time(None))
            all_names.cells.update(names.cells)
            all_names.points.update(names.points)
        return all_names

    def read(self, time: float | None, arrays: Collection[ArrayName] | None) -> list[Part]:
        """Reads the parts; see `PartsFile`."""
        parts = []
        for link in self._at(time):
            if (nested := self._open(link)) is None:
                dataset = read_dataset(link.file, arrays)
                if dataset.n_points:
                    parts.append(Part(link.name, dataset, is_patch=is_foam_patch(link.file)))
                continue
            for part in nested.read(nested.time(None), arrays):
                parts.append(part._replace(name="/".join(filter(None, (link.name, part.name)))))
        return parts
