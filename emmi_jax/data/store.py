"""A store of cases that training reads at disk speed.

`store.json` lists the cases. Each has a folder of arrays, and a `case.json` that is written last, so a case without it
was not finished. The rows of a case are permuted once: any run of rows is a random sample of the case.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import numpy as np

from emmi_jax.config import Sampling
from emmi_jax.data.cases import BranchShape, Case, Cases, branch_shapes
from emmi_jax.data.conditions import Conditions
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.sampling import RandomStream
from emmi_jax.data.statistics import DataMoments, measure, point_chunks
from emmi_jax.data.stored_case import (
    CASE_FILE,
    GEOMETRY,
    SPLIT_FILE,
    StoredCase,
    area_vector_array,
    cell_size_array,
    field_array,
    position_array,
    read_case,
    read_store_index,
)
from emmi_jax.files.atomic import JsonDict, sealed
from emmi_jax.files.zarr import CHUNK_ROWS, ArrayFolder, Read, read_rows
from emmi_jax.points import Array, PointSet

_WEIGHTED_ROWS = 16
_READERS = 16


class Store(Cases):
    """Cases in a store. Reading a part of one touches few chunks.

    Args:
        location: Path or URL of the store.

    Raises:
        ValueError: It is no store, it is not complete, or it is damaged; the message names the file.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._folder = ArrayFolder(location)
        head = read_store_index(self._folder)
        self.names: list[str] = head["cases"]
        self.sources: JsonDict = head["sources"]
        self.dtype: str = head["dtype"]
        with ThreadPoolExecutor(_READERS) as pool:
            cases = list(pool.map(partial(read_case, self._folder, self.dtype), self.names))
        if unfinished := [name for name, case in zip(self.names, cases, strict=True) if case is None]:
            raise ValueError(
                f"{location}: {len(unfinished)} of {len(cases)} cases are not in the store, {unfinished[0]!r} is the "
                "first: run emmi-jax prepare again"
            )
        self.cases = dict(zip(self.names, filter(None, cases), strict=True))
        self._open = cache(self._folder.open_array)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        """Another process opens the store anew."""
        return Store, (self.location,)

    @property
    def split(self) -> Any:
        """The content of the split file beside the cases; None if there was none."""
        return self._folder.read_json(SPLIT_FILE)

    def shapes(self, name: str) -> dict[str, BranchShape]:
        """Returns what a case consists of, by branch."""
        return dict(self.cases[name].shapes)

    def measure(self, name: str) -> DataMoments:
        """Returns the statistics of a case, which were measured when it was stored."""
        return self.cases[name].moments

    def fingerprint(self, name: str) -> str:
        """Returns the fingerprint of the files that a case was made of, and the type of its fields."""
        return f"{self.cases[name].source} {self.dtype}"

    def read(self, name: str) -> Case:
        """Reads a whole case."""
        case = self.cases[name]
        points = {branch: self._points(name, branch, 0, shape.num_points) for branch, shape in case.shapes.items()}
        vectors = {
            branch: self._rows(name, area_vector_array(branch), 0, case.shapes[branch].num_points)
            for branch in case.with_area_vectors
        }
        geometry = self._rows(name, GEOMETRY, 0, case.num_geometry_points) if case.num_geometry_points else None
        whole = {branch: read() for branch, read in points.items()}
        whole |= {branch: whole[branch]._replace(area_vector=read()) for branch, read in vectors.items()}
        return Case(whole, None if geometry is None else geometry(), side=case.side)

    def draw(self, name: str, rng: np.random.Generator, sampling: Sampling, num_points: int) -> Case:
        """Reads a run of rows of each branch to draw from.

        A run starts at any row with equal probability, and goes on at the first row after the last, so every point is
        in it with equal probability. It has one chunk more rows than are drawn, so that points do not always come
        together with the same others, and at least 16 times as many if they are weighted by cell size: cells that are
        larger than 16 times the mean are then drawn less often than their share.
        """
        case, reads = self.cases[name], {}
        factor = _WEIGHTED_ROWS if sampling.method == "weighted" else 1
        for branch, shape in case.shapes.items():
            if sampling.method == "weighted" and branch not in case.with_cell_sizes:
                raise ValueError(f"{self.location}: {name}: {branch} has no cell sizes to weight its points")
            num_rows = min(factor * num_points + CHUNK_ROWS, shape.num_points)
            reads[branch] = self._points(name, branch, int(rng.integers(shape.num_points)), num_rows)
        geometry = self._begin_geometry(name, rng, sampling.num_geometry_points)
        return Case({branch: read() for branch, read in reads.items()}, None if geometry is None else geometry())

    def _begin_geometry(self, name: str, rng: np.random.Generator, num_points: int) -> Read | None:
        case = self.cases[name]
        if not num_points or not (case.num_geometry_points or GEOMETRY_BRANCH in case.shapes):
            return None
        num_all, array = case.num_geometry_points, GEOMETRY
        if not num_all:
            num_all, array = case.shapes[GEOMETRY_BRANCH].num_points, position_array(GEOMETRY_BRANCH)
        return self._rows(name, array, int(rng.integers(num_all)), min(num_points + CHUNK_ROWS, num_all))

    def _points(self, name: str, branch: str, start: int, num_rows: int) -> Callable[[], PointSet]:
        """Begins to read rows of a branch; returns a function that returns them."""
        fields = self.cases[name].shapes[branch].fields
        position = self._rows(name, position_array(branch), start, num_rows)
        values = {field: self._rows(name, field_array(branch, field), start, num_rows) for field in fields}
        has_sizes = branch in self.cases[name].with_cell_sizes
        cell_size = self._rows(name, cell_size_array(branch), start, num_rows) if has_sizes else None
        return lambda: PointSet(
            position(), {field: read() for field, read in values.items()}, None if cell_size is None else cell_size()
        )

    def _rows(self, name: str, array: str, start: int, num_rows: int) -> Read:
        try:
            shape, dtype = self.cases[name].arrays(self.dtype)[array]
            path, zeros = f"{name}/{array}", self.cases[name].zero_chunks.get(array, ())
            filled = self._open(path, shape, dtype, fill=True) if zeros else None
            read = read_rows(self._open(path, shape, dtype), start, num_rows, zeros, filled)
        except ValueError as error:
            raise self._damage(name, array, error) from None

        def finish() -> Array:
            try:
                return read().astype(np.float32, copy=False)
            except ValueError as error:
                raise self._damage(name, array, error) from None

        return finish

    def _damage(self, name: str, array: str, error: ValueError) -> ValueError:
        return ValueError(
            f"{self.location}/{name}/{array}: the store is damaged: remove {name}/{CASE_FILE} there and prepare them "
            f"again: {str(error).splitlines()[0]}"
        )


def write_case(
    folder: ArrayFolder,
    name: str,
    case: Case,
    *,
    dtype: str,
    source: str,
    forces: KnownForces | None = None,
    conditions: Conditions = MappingProxyType({}),
) -> DataMoments:
    """Writes a case in place of an earlier one, and returns its statistics; an exception leaves none.

    Args:
        folder: The store.
        name: Name of the case, which the permutation of its rows depends on.
        case: The case.
        dtype: Type of the fields.
        source: Fingerprint of the files that it was made of.
        forces: What a solver wrote beside the case.
        conditions: The conditions of the case.

    Raises:
        ValueError: A field does not fit into the type.
    """
    moments = measure(point_chunks(case.points))
    _check_range(name, moments, dtype)
    stored = StoredCase(
        shapes=branch_shapes(case.points),
        with_cell_sizes=[branch for branch, part in case.points.items() if part.cell_size is not None],
        with_area_vectors=[branch for branch, part in case.points.items() if part.area_vector is not None],
        num_geometry_points=0 if case.geometry is None else len(case.geometry),
        moments=moments,
        source=source,
        forces=forces,
        side=case.side,
        conditions=conditions,
    )
    arrays, zeros = stored.arrays(dtype), dict[str, list[int]]()
    rng = np.random.default_rng([RandomStream.PERMUTATION, *name.encode()])
    folder.delete(name)
    try:
        for branch, part in case.points.items():
            order = rng.permutation(len(part.position))
            values_of = {position_array(branch): part.position}
            values_of |= {field_array(branch, field): values for field, values in part.fields.items()}
            if part.cell_size is not None:
                values_of[cell_size_array(branch)] = part.cell_size
            if part.area_vector is not None:
                values_of[area_vector_array(branch)] = part.area_vector
            for array, values in values_of.items():
                zeros[array] = folder.write_array(f"{name}/{array}", values, order, arrays[array][1])
        if case.geometry is not None:
            order = rng.permutation(len(case.geometry))
            zeros[GEOMETRY] = folder.write_array(f"{name}/{GEOMETRY}", case.geometry, order, "float32")
        stored = replace(stored, zero_chunks={array: chunks for array, chunks in zeros.items() if chunks})
        folder.write_json(f"{name}/{CASE_FILE}", sealed(stored.to_dict()))
    except BaseException:
        folder.delete(name)
        raise
    return moments


def _check_range(name: str, moments: DataMoments, dtype: str) -> None:
    for branch, of_branch in moments.fields.items():
        for field, (plain, _) in of_branch.items():
            if (largest := float(max(-plain.minimum.min(), plain.maximum.max()))) > float(np.finfo(dtype).max):
                raise ValueError(f"{name}: {branch}/{field} reaches {largest:g}, which is too large for {dtype}")
