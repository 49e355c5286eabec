"""Meshes in files: their positions and fields, on points or in cells, and the same mesh with more fields."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.meshes.cells import CellGeometry, measure_cells
from emmi_jax.meshes.components import ArrayName, all_found, found_arrays, quoted
from emmi_jax.meshes.content import main_content
from emmi_jax.meshes.foam_to_vtk import is_foam_patch
from emmi_jax.meshes.lost import lost_by_reader, lost_digits
from emmi_jax.meshes.parts import has_parts, read_parts
from emmi_jax.meshes.parts_writing import WRITABLE_PARTS, write_parts
from emmi_jax.meshes.vtk import read_dataset, write_dataset
from emmi_jax.points import Array, PointSet, check_range

Location: TypeAlias = Literal["points", "cells"]
"""Place of an array: one row per point of the mesh, or one per cell."""


@dataclass(frozen=True)
class FieldSource:
    """Source of a field.

    Args:
        array: Name of the array in the file, or the names of those of its components.
        scale: Factor from the unit of the file to that of the field; it may also flip a sign.
        unit: The unit of the field, if it is known.
    """

    array: ArrayName
    scale: float = 1.0
    unit: str | None = None


@dataclass(frozen=True, eq=False)
class Mesh:
    """A mesh read from a file.

    Args:
        path: The file, for messages.
        dataset: A `pyvista.DataSet`.
        left_out: What the file has beside it, one line each.
        is_patch: Whether it consists of patches of OpenFOAM, whose faces point out of the fluid.
        patches: Names and numbers of cells of these patches, or of the parts of a file of several meshes, one after
            another; a name may repeat.

    Example:
        >>> mesh = read_mesh(Path("boundary_1.vtp"))  # doctest: +SKIP
        >>> points = mesh.points({"pressure": FieldSource("pMeanTrim")})  # doctest: +SKIP
    """

    path: Path
    dataset: Any
    left_out: tuple[str, ...] = ()
    is_patch: bool = False
    patches: tuple[tuple[str, int], ...] = ()

    def location_of(self, names: Iterable[ArrayName]) -> Location:
        """Returns where these arrays are; cells come first if they are on both.

        Raises:
            ValueError: An array is absent, or neither cells nor points have all of them; the message lists the arrays.
        """
        names = list(names)
        present: dict[Location, list[str]] = {
            "cells": list(self.dataset.cell_data.keys()),
            "points": list(self.dataset.point_data.keys()),
        }
        for location, there in present.items():
            if all_found(names, there) is not None:
                return location
        for name in names:
            if not any(found_arrays(name, there) for there in present.values()):
                raise ValueError(
                    f"{self.path}: no array {quoted(name)}; cells have {present['cells']}, points {present['points']}"
                )
        raise ValueError(
            f"{self.path}: neither cells {present['cells']} nor points {present['points']} have all {names}"
        )

    def position(self, location: Location) -> Array:
        """Returns the points or the cell centres, [N, 3] in the unit of the file, float32 or float64."""
        if location == "points":
            return _floats(self.dataset.points)
        return self._cells.centre.astype(_floats(self.dataset.points[:0]).dtype, copy=False)

    def points(
        self,
        sources: Mapping[str, FieldSource],
        *,
        location: Location | None = None,
        with_cell_sizes: bool = False,
        mask_nan: bool = False,
    ) -> PointSet:
        """Reads positions and fields; an array without a factor is not copied.

        Args:
            sources: The arrays by field.
            location: Where to read them; by default where they are, or on the points if there are none.
            with_cell_sizes: Whether to measure the cells too.
            mask_nan: Whether a field may have NaN at some points.

        Returns:
            Positions [N, 3] and fields [N, F], float32 or float64 as in the file.

        Raises:
            ValueError: An array is absent, of the wrong length, not finite or not numeric; or cell sizes are needed but
                the fields are on points.
        """
        if location is None:
            location = self.location_of(s.array for s in sources.values()) if sources else "points"
        position = self.position(location)
        fields = {name: self._field(source, location, len(position), mask_nan) for name, source in sources.items()}
        return PointSet(position, fields, self.cell_sizes(location) if with_cell_sizes else None)

    def cell_sizes(self, location: Location = "cells") -> Array:
        """Returns areas or volumes of the cells, [N], never negative; points have none, which is a ValueError."""
        if location != "cells":
            raise ValueError(f"{self.path}: its fields are on points, and points have no area or volume to weight them")
        return self._cells.size

    @cached_property
    def _cells(self) -> CellGeometry:
        try:
            return measure_cells(self.dataset)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def _field(self, source: FieldSource, location: Location, num_rows: int, mask_nan: bool) -> Array:
        data = self.dataset.cell_data if location == "cells" else self.dataset.point_data
        arrays = found_arrays(source.array, data.keys())
        if arrays is None:
            raise ValueError(
                f"{self.path}: no array {quoted(source.array)} on {location}, which have {list(data.keys())}"
            )
        columns = [self._array(name, np.asarray(data[name]), location, num_rows, mask_nan) for name in arrays]
        if len(columns) > 1 and any(column.shape[1] != 1 for column in columns):
            raise ValueError(f"{self.path}: expected one number a row in each of {', '.join(map(repr, arrays))}")
        values = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
        # A Python float keeps float32.
        return values if source.scale == 1.0 else values * float(source.scale)

    def _array(self, name: str, values: Any, location: Location, num_rows: int, mask_nan: bool) -> Array:
        """Returns an array as real numbers [N, F]."""
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{self.path}: array {name!r} holds {values.dtype}, expected real numbers")
        if len(values) != num_rows:
            raise ValueError(
                f"{self.path}: array {name!r} has {len(values)} rows, expected {num_rows}, one for each of the "
                f"{location}"
            )
        array = _floats(values).reshape(num_rows, -1)
        check_range(self.path, name, array, mask_nan=mask_nan)
        return array


def read_mesh(
    path: Path,
    arrays: Collection[ArrayName] | None = None,
    *,
    branch: str | None = None,
    selection: FoamSelection = DEFAULT_SELECTION,
) -> Mesh:
    """Reads a mesh from a file, or the parts of a branch from one of several meshes; see `read_dataset`, `read_parts`.

    Args:
        path: The file.
        arrays: The arrays to read from a file that has them and can leave out others; None for all.
        branch: The branch that the mesh is for, which chooses among parts.
        selection: The parts by name, and the time, of a file that has several.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The extension is unknown, the file is damaged, the mesh is empty or a coordinate is not finite.
        ImportError: pyvista is not installed.
    """
    if has_parts(path):
        parts = read_parts(path, branch, selection, arrays)
        joined = checked_mesh(path, parts.dataset, is_patch=parts.is_patch)
        return replace(joined, left_out=(*parts.left_out, *joined.left_out), patches=parts.patches)
    dataset = read_dataset(path, arrays)
    mesh = checked_mesh(path, dataset, is_patch=is_foam_patch(path))
    return replace(mesh, left_out=(*lost_by_reader(path, dataset), *mesh.left_out))


def checked_mesh(path: Path, dataset: Any, *, is_patch: bool = False) -> Mesh:
    """Returns a `pyvista.DataSet` as a mesh; see `Mesh` for `is_patch`.

    Raises:
        ValueError: It is empty, or a coordinate is not finite.
    """
    if not dataset.n_points:
        raise ValueError(f"{path}: the mesh is empty")
    check_range(path, "coordinates", np.asarray(dataset.points))
    content, left_out = main_content(dataset)
    return Mesh(path, content, (*left_out, *lost_digits(path, dataset)), is_patch)


def write_mesh(path: Path, mesh: Mesh, fields: Mapping[str, ArrayLike], *, location: Location) -> None:
    """Writes a mesh with more fields, atomically.

    Args:
        path: A `.vtp`, `.vtu` or `.vtk` file that can hold this kind of mesh, or one of `WRITABLE_PARTS`.
        mesh: The mesh; it is not changed.
        fields: Arrays [N] or [N, F]; they replace arrays of the mesh with the same names.
        location: Where the fields belong.

    Raises:
        ValueError: A field has the wrong length, or the extension cannot hold such a mesh.
        OSError: The file cannot be written.
    """
    dataset = mesh.dataset.copy(deep=False)
    data = dataset.cell_data if location == "cells" else dataset.point_data
    num_rows = dataset.n_cells if location == "cells" else dataset.n_points
    for name, values in fields.items():
        array = np.asarray(values)
        if array.ndim not in (1, 2) or len(array) != num_rows:
            raise ValueError(
                f"{path}: field {name!r} has shape {array.shape}, expected ({num_rows},) or ({num_rows}, F), one row "
                f"for each of the {location}"
            )
        data[name] = array[:, 0] if array.shape[1:] == (1,) else array
    if path.suffix.lower() in WRITABLE_PARTS:
        write_parts(path, dataset, mesh.patches)
    else:
        write_dataset(path, dataset)


def _floats(values: Any) -> Array:
    array = np.asarray(values)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
