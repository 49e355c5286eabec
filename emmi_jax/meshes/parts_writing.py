"""Meshes of several parts in files: the parts and their pieces stay what they were."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from emmi_jax.files.atomic import atomic_path, make_folder
from emmi_jax.files.silence import quiet_stderr
from emmi_jax.meshes.ensight_writing import write_ensight
from emmi_jax.meshes.parts import split
from emmi_jax.meshes.vtk import vtk_class, vtk_messages, write_dataset

WRITABLE_PARTS = (".vtm", ".vtpc", ".pvtu", ".pvtp", ".case", ".vtkhdf")
_NAMES = {"Int64": "i8", "Int32": "i4", "Int16": "i2", "Int8": "i1", "Float32": "f4", "Float64": "f8"}
_NAMES |= {"UInt64": "u8", "UInt32": "u4", "UInt16": "u2", "UInt8": "u1"}
_OF_KIND = {np.dtype(kind): name for name, kind in _NAMES.items()}


def write_parts(path: Path, dataset: Any, patches: Sequence[tuple[str, int]]) -> None:
    """Writes a mesh of parts atomically; the files of the parts go to a folder of their own beside it.

    Args:
        path: A file with one of the extensions `WRITABLE_PARTS`.
        dataset: A `pyvista.DataSet`.
        patches: Names and numbers of cells of its pieces; none for a mesh of one part.

    Raises:
        ValueError: The extension cannot hold it.
        OSError: A file cannot be written, or another process writes this mesh.
    """
    parts = list(split(dataset, patches)) if patches else [("", [dataset])]
    suffix = path.suffix.lower()
    if suffix == ".vtkhdf":
        _write_hdf(path, parts)
        return
    with _new_folder(path) as (partial, folder):
        if suffix == ".case":
            write_ensight(partial, folder, parts)
            return
        numbered = [
            (name, list(_write_leaves(folder, f"{i:02d}_{name}", part))) for i, (name, part) in enumerate(parts)
        ]
        partial.write_text(_XML[suffix](numbered, parts), encoding="utf-8")


@contextmanager
def _new_folder(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yields a path that becomes `path` at the end, and a new folder for its parts; that before is removed then.

    Names of files differ, and so do those of their folders, which EnSight can hold.
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)
    if stem != path.name:
        stem += f"-{zlib.crc32(os.fsencode(path.name)):08x}"
    with atomic_path(path) as partial:
        content = path.read_bytes() if path.is_file() else b""
        earlier = re.findall(rf"{re.escape(stem)}\.parts\d+", content.decode(errors="replace"))
        folders = (path.with_name(f"{stem}.parts{number}") for number in count(1))
        folder = next(folder for folder in folders if not folder.exists())
        make_folder(folder)
        try:
            yield partial, folder
        except BaseException:
            rmtree(folder, ignore_errors=True)
            raise
    for name in set(earlier):
        rmtree(path.with_name(name), ignore_errors=True)


def _write_leaves(folder: Path, name: str, datasets: Iterable[Any]) -> Iterator[str]:
    """Writes the pieces of a part, and yields their paths from the folder above."""
    stem = re.sub(r"[^\w.-]+", "_", name).strip("_")
    for number, dataset in enumerate(datasets):
        suffix = "vtp" if dataset.IsA("vtkPolyData") else "vtu"
        file = folder / f"{stem}_{number}.{suffix}"
        write_dataset(file, dataset)
        yield f"{folder.name}/{file.name}"


Numbered = list[tuple[str, list[str]]]
"""Name and files of each part."""


def _multi_block(parts: Numbered, _: object) -> str:
    lines = []
    for index, (name, files) in enumerate(parts):
        attributes = f'index="{index}" name={quoteattr(name or f"part{index}")}'
        if len(files) == 1:
            lines.append(f"<DataSet {attributes} file={quoteattr(files[0])}/>")
        else:
            below = [f'<DataSet index="{i}" file={quoteattr(file)}/>' for i, file in enumerate(files)]
            lines += [f"<Block {attributes}>", *below, "</Block>"]
    return _document("vtkMultiBlockDataSet", lines)


def _collection(parts: Numbered, _: object) -> str:
    lines = []
    for index, (name, files) in enumerate(parts):
        below = [f'<DataSet index="{i}" file={quoteattr(file)}/>' for i, file in enumerate(files)]
        name = name or f"part{index}"
        lines += [f'<Partitions index="{index}" name={quoteattr(name)}>', *below, "</Partitions>"]
    return _document("vtkPartitionedDataSetCollection", lines)


def _pieces(parts: Numbered, datasets: Sequence[tuple[str, list[Any]]]) -> str:
    first = datasets[0][1][0]
    lines = []
    for kind, data in (("PPointData", first.point_data), ("PCellData", first.cell_data)):
        lines += [f"<{kind}>", *(_array(name, np.asarray(data[name])) for name in data.keys()), f"</{kind}>"]  # noqa: SIM118
    lines += ["<PPoints>", _array("Points", np.asarray(first.points)), "</PPoints>"]
    lines += [f"<Piece Source={quoteattr(file)}/>" for _, files in parts for file in files]
    return _document("PPolyData" if first.IsA("vtkPolyData") else "PUnstructuredGrid", lines, ' GhostLevel="0"')


def _array(name: str, values: Any) -> str:
    components = 1 if values.ndim == 1 else values.shape[1]
    kind = _OF_KIND.get(values.dtype, "String")
    return f'<PDataArray type="{kind}" Name={quoteattr(name)} NumberOfComponents="{components}"/>'


def _document(kind: str, lines: Iterable[str], attributes: str = "") -> str:
    head = f'<?xml version="1.0"?>\n<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian">'
    return "\n".join([head, f"<{kind}{attributes}>", *lines, f"</{kind}>", "</VTKFile>", ""])


_XML = {".vtm": _multi_block, ".vtpc": _collection, ".pvtu": _pieces, ".pvtp": _pieces}


def _write_hdf(path: Path, parts: Sequence[tuple[str, list[Any]]]) -> None:
    model = "vtkCommonDataModel"
    collection, named = vtk_class(model, "vtkPartitionedDataSetCollection")(), len(parts) > 1
    for index, (name, pieces) in enumerate(parts):
        for number, piece in enumerate(pieces):
            collection.SetPartition(index, number, piece)
        collection.GetMetaData(index).Set(vtk_class(model, "vtkCompositeDataSet").NAME(), name or f"part{index}")
    with atomic_path(path) as partial, TemporaryDirectory(dir=partial.parent) as folder:
        made = Path(folder, path.name)  # the partial file is locked, which HDF5 refuses
        with quiet_stderr(), vtk_messages() as messages:
            writer = vtk_class("vtkIOHDF", "vtkHDFWriter")()
            writer.SetFileName(str(made))
            single = parts[0][1][0] if len(parts[0][1]) == 1 else collection.GetPartitionedDataSet(0)
            writer.SetInputData(collection if named else single)
            done = writer.Write()
        if not done or messages or not made.is_file():
            raise OSError(messages[0] if messages else "VTK gave no reason")
        made.replace(partial)
