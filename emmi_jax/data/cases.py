"""Cases by name, as a collection reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from emmi_jax.config import Sampling
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.data.report import SILENT, Report
from emmi_jax.data.statistics import DataMoments, measure, point_chunks
from emmi_jax.points import Array, PointSet

NUM_CASES_IN_MEMORY = 16


class Case(NamedTuple):
    """A case: points with fields by branch, and points [P, 3] of its geometry, if there are any.

    Attributes:
        geometry_features: What the model takes beside those positions, [P, C]; see `with_features`.
        left_out: What its meshes have that was not read, one line each.
        side: How the outward side of its surface was told, in words, if it has area vectors.
        condition: The values of the conditions that a run takes, by name in the units of the run.
        patches: The patches of its surface; see `Mesh`.
    """

    points: dict[str, PointSet]
    geometry: Array | None
    left_out: tuple[str, ...] = ()
    side: str = ""
    geometry_features: Array | None = None
    condition: Mapping[str, float] | None = None
    patches: tuple[tuple[str, int], ...] = ()


class ReadOptions(NamedTuple):
    """Parts of a case to read.

    Args:
        with_cell_sizes: Whether to measure the cells of the meshes; None: those of meshes that have sizes.
        with_area_vectors: Whether to measure the area vectors of a surface mesh of polygons with fields in its cells.
        sources: The arrays that hold the fields, unless a file beside the data names them; None for those of a
            published data set, or of OpenFOAM.
        inputs: Further arrays to read by branch, under their own names; of meshes, `normal` and `distance` are computed
            where there are none of this name.
        mask_nan: Whether a field may have NaN at some points.
    """

    with_cell_sizes: bool | None = False
    with_area_vectors: bool = False
    sources: Sources | None = None
    inputs: Mapping[str, Sequence[str]] = {}
    mask_nan: bool = False


DEFAULT_OPTIONS = ReadOptions()


class BranchShape(NamedTuple):
    """Number of points of a branch of a case, and of channels of each field."""

    num_points: int
    fields: Mapping[str, int]


class Cases(Protocol):
    """Reads cases by their names."""

    def shapes(self, name: str) -> dict[str, BranchShape]:
        """Returns what a case consists of, by branch."""

    def read(self, name: str) -> Case:
        """Reads a whole case."""

    def draw(self, name: str, rng: np.random.Generator, sampling: Sampling, num_points: int) -> Case:
        """Reads a part of a case to draw from: a random sample of at least `num_points` of each branch, if it has them.

        The part has enough points of the geometry for `sampling`, if the case has them.
        """

    def measure(self, name: str) -> DataMoments:
        """Returns the statistics of a case."""

    def measure_all(self, names: Sequence[str], report: Report = SILENT) -> dict[str, DataMoments]:
        """Returns the statistics of several cases."""
        return {name: self.measure(name) for name in names}

    def quick(self, names: Sequence[str]) -> list[str]:
        """Returns those of these cases whose statistics take seconds, all together."""
        return list(names)

    @property
    def statistics(self) -> str | None:
        """The statistics that the description of the data names: a file, or published ones; None for none."""
        return None

    def fingerprint(self, name: str) -> str:
        """Returns what changes if the content of a case does; copies of the data have the same."""


class WholeCases(Cases):
    """Cases that are read whole; the last 16 that were drawn from stay in memory.

    Args:
        load_case: Reads the case of a name.
        fingerprint: Returns its fingerprint.
    """

    def __init__(self, load_case: Callable[[str], Case], fingerprint: Callable[[str], str]) -> None:
        self._load, self._fingerprint = load_case, fingerprint
        self._kept = lru_cache(NUM_CASES_IN_MEMORY)(load_case)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process begins with no case in memory."""
        return WholeCases, (self._load, self._fingerprint)

    def read(self, name: str) -> Case:
        """Reads a case."""
        return self._load(name)

    def fingerprint(self, name: str) -> str:
        """Returns the fingerprint of a case."""
        return self._fingerprint(name)

    def shapes(self, name: str) -> dict[str, BranchShape]:
        """Returns what a case consists of, by branch."""
        return branch_shapes(self._kept(name).points)

    def draw(self, name: str, rng: np.random.Generator, sampling: Sampling, num_points: int) -> Case:
        """Returns the whole case."""
        return self._kept(name)

    def measure(self, name: str) -> DataMoments:
        """Returns the statistics of a case."""
        return measure(point_chunks(self._kept(name).points))


def branch_shapes(points: Mapping[str, PointSet]) -> dict[str, BranchShape]:
    """Returns the shapes of points by branch."""
    return {
        branch: BranchShape(len(part.position), {name: values.shape[-1] for name, values in part.fields.items()})
        for branch, part in points.items()
    }
