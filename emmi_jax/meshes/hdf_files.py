"""HDF5 files of meshes: VTKHDF and CGNS, read by VTK's readers."""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from emmi_jax.files.silence import quiet_stderr
from emmi_jax.meshes.components import ArrayName
from emmi_jax.meshes.content import used_points
from emmi_jax.meshes.damage import check_cells
from emmi_jax.meshes.elsewhere import run_elsewhere
from emmi_jax.meshes.hdf_links import other_files
from emmi_jax.meshes.parts_file import Part, PartsFile
from emmi_jax.meshes.vtk import GHOSTS, ArrayNames, chosen_arrays, import_pyvista, vtk_class, vtk_messages

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OLD = (0, 1)


class HdfFile(PartsFile):
    """A file that one of VTK's readers reads."""

    reader: ClassVar[tuple[str, str]]

    def times(self) -> list[float]:
        """Returns the times of the file."""
        self._try(None)
        return self.times_here()

    def times_here(self) -> list[float]:
        """Returns the times, read in this process, which ends where VTK's reader crashes."""
        with self._opened() as reader:
            return self._times(reader)

    def files(self, time: float | None) -> list[Path]:
        """Returns no other file: links to others are refused."""
        return []

    def array_names(self, time: float | None) -> ArrayNames:
        """Returns the names of the arrays of any part."""
        self._try(None)
        with self._opened() as reader:
            return ArrayNames(_names(reader, "Cell"), _names(reader, "Point"))

    def read(self, time: float | None, arrays: Collection[ArrayName] | None) -> list[Part]:
        """Reads the parts; see `PartsFile`."""
        self._try(None if [time] == self.times()[-1:] else time)
        return self.read_here(time, arrays)

    def _try(self, time: float | None) -> None:
        """Reads everything at a time, None for the latest, in another process first."""
        status = self.path.stat()
        _try_elsewhere(self.path, time, status.st_size, status.st_mtime_ns)

    def read_here(self, time: float | None, arrays: Collection[ArrayName] | None) -> list[Part]:
        """Reads the parts in this process, which ends where VTK's reader crashes."""
        with self._opened() as reader:
            there = ArrayNames(_names(reader, "Cell"), _names(reader, "Point"))
            kept = there if arrays is None else chosen_arrays(arrays, there)
            for kind, names, wanted in (("Cell", there.cells, kept.cells), ("Point", there.points, kept.points)):
                for name in names:
                    self._choose(reader, kind, name, name in wanted or name == GHOSTS)
            if time is None:
                reader.Update()
            else:
                reader.UpdateTimeStep(time)
            output = reader.GetOutputDataObject(0)
        parts = list(self._parts(output, ""))
        if not parts:
            raise ValueError(f"{self.path}: the mesh is empty")
        return parts

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        check_hdf(self.path)
        with quiet_stderr(), vtk_messages() as messages:
            reader = vtk_class(*self.reader)()
            reader.SetFileName(str(self.path))
            reader.UpdateInformation()
            self._set_up(reader)
            yield reader
        if messages:
            raise ValueError(f"{self.path}: not a {self.path.suffix} file, or a damaged one: {messages[0]}")

    def _set_up(self, reader: Any) -> None:
        """Chooses what the reader reads beside arrays."""

    def _choose(self, reader: Any, kind: str, name: str, is_wanted: bool) -> None:
        """Says whether the reader reads an array of cells or points."""
        getattr(reader, f"Set{kind}ArrayStatus")(name, int(is_wanted))

    def _times(self, reader: Any) -> list[float]:
        pipeline = vtk_class("vtkCommonExecutionModel", "vtkStreamingDemandDrivenPipeline")
        steps = reader.GetOutputInformation(0).Get(pipeline.TIME_STEPS())
        return sorted({float(time) for time in steps or ()})

    def _parts(self, data: Any, name: str) -> Iterator[Part]:
        """Yields the meshes below a data object; the pieces of one have the same name."""
        if data is None:
            return
        if data.IsA("vtkDataSet"):
            if data.GetNumberOfPoints():
                check_cells(self.path, data)
                self._check_lengths(data)
                yield Part(name, used_points(import_pyvista().wrap(data)))
            return
        is_pieces = data.IsA("vtkPartitionedDataSet")
        number = data.GetNumberOfPartitions() if is_pieces else self._number(data)
        for index in range(number):
            if is_pieces:
                yield from self._parts(data.GetPartition(index), name)
                continue
            below = self._below(data, index)
            own = self._name(data, index)
            yield from self._parts(below, f"{name}/{own}" if name else own)

    def _number(self, data: Any) -> int:
        is_blocks = data.IsA("vtkMultiBlockDataSet")
        return int(data.GetNumberOfBlocks() if is_blocks else data.GetNumberOfPartitionedDataSets())

    def _below(self, data: Any, index: int) -> Any:
        is_blocks = data.IsA("vtkMultiBlockDataSet")
        return data.GetBlock(index) if is_blocks else data.GetPartitionedDataSet(index)

    def _name(self, data: Any, index: int) -> str:
        composite = vtk_class("vtkCommonDataModel", "vtkCompositeDataSet")
        name = data.GetMetaData(index).Get(composite.NAME()) if data.HasMetaData(index) else None
        return str(name or f"block{index}")

    def _check_lengths(self, data: Any) -> None:
        for values, number in (
            (data.GetCellData(), data.GetNumberOfCells()),
            (data.GetPointData(), data.GetNumberOfPoints()),
        ):
            for index in range(values.GetNumberOfArrays()):
                array = values.GetAbstractArray(index)
                if array.GetNumberOfTuples() != number:
                    raise ValueError(
                        f"{self.path}: array {array.GetName()!r} has {array.GetNumberOfTuples()} rows, not {number}"
                    )


class VtkHdfFile(HdfFile):
    """A VTKHDF file: one mesh or several, in pieces or not, at one time or several."""

    reader = ("vtkIOHDF", "vtkHDFReader")

    def _set_up(self, reader: Any) -> None:
        if hasattr(reader, "SetMergeParts"):  # before VTK 9.6
            reader.SetMergeParts(False)

    def _choose(self, reader: Any, kind: str, name: str, is_wanted: bool) -> None:
        getattr(reader, f"Get{kind}DataArraySelection")().SetArraySetting(name, int(is_wanted))


class CgnsFile(HdfFile):
    """A CGNS file: all bases, zones and solutions; sections of faces are surfaces."""

    reader = ("vtkIOCGNSReader", "vtkCGNSReader")

    def _set_up(self, reader: Any) -> None:
        reader.EnableAllBases()
        if hasattr(reader, "SetLoadSurfacePatch"):  # VTK 9.4
            reader.SetLoadSurfacePatch(True)


def check_hdf(path: Path) -> None:
    """Refuses a file that is no HDF5, is truncated, or takes anything from other files.

    Raises:
        ValueError: It is, or has.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(96)
        if not head.startswith(_SIGNATURE):
            raise ValueError(f"{path}: not a {path.suffix} file: it is no HDF5")
        is_old = head[8] in _OLD
        width = head[13 if is_old else 9]
        place = (24 + 4 * head[8] if is_old else 12) + 2 * width
        if width not in (2, 4, 8) or (claimed := int.from_bytes(head[place : place + width], "little")) > size:
            raise ValueError(f"{path}: truncated or damaged: {size:,} bytes, expected more")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for what in other_files(content, claimed, width):
                raise ValueError(f"{path}: {what}, expected everything in one file")


@cache
def _try_elsewhere(path: Path, time: float | None, size: int, modified: int) -> None:
    """Reads a file in another process first: a few wrong bytes in it make VTK's readers crash, or run on for ever.

    Raises:
        ValueError: That process did not end by itself.
    """
    check_hdf(path)
    run_elsewhere(path, "from emmi_jax.meshes.parts import try_file; try_file(*arguments)", str(path.absolute()), time)


def _names(reader: Any, kind: str) -> set[str]:
    return {getattr(reader, f"Get{kind}ArrayName")(i) for i in range(getattr(reader, f"GetNumberOf{kind}Arrays")())}
