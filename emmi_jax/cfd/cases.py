"""What a data set hands to training: samples of points with fields, in physical units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emmi_jax.cfd.normalization import Normalizer
from emmi_jax.cfd.sampling import Method
from emmi_jax.layers.supernode_pooling import Geometry

Array: TypeAlias = NDArray[np.floating[Any]]
Fields: TypeAlias = dict[str, dict[str, Array]]
"""Values by branch and field, each [..., T, F]."""


class PointSet(NamedTuple):
    """Points of one branch: position [..., T, n] and the fields there, each [..., T, F].

    Those of a mesh may bring the areas or volumes of their cells [T] to be drawn by.
    """

    position: Array
    fields: dict[str, Array]
    cell_size: Array | None = None


class Sample(NamedTuple):
    """Points of one case, or of a batch of cases with a leading axis B; a pytree.

    Attributes:
        anchors: Points by branch that every other point attends to.
        queries: Points by branch that only attend; a branch may have none.
        geometry_position: Points [..., P, n] that describe the body, for models with a geometry branch.
        supernode_idx: Indices [..., M] into the geometry points.
    """

    anchors: dict[str, PointSet]
    queries: dict[str, PointSet]
    geometry_position: Array | None = None
    supernode_idx: NDArray[np.int32] | None = None

    def model_inputs(self) -> dict[str, Any]:
        """Returns the keyword arguments of `AnchoredBranchedUPT.__call__`."""
        queries = {branch: points.position for branch, points in self.queries.items()}
        inputs: dict[str, Any] = {
            "anchors": {branch: points.position for branch, points in self.anchors.items()},
            "queries": queries or None,
        }
        if self.geometry_position is not None and self.supernode_idx is not None:
            inputs["geometry"] = Geometry(self.geometry_position, self.supernode_idx)
        return inputs


class EvaluationCase(NamedTuple):
    """A case to measure errors on: at its queries, beside the predictions of baselines there."""

    sample: Sample
    baselines: dict[str, Fields]


@dataclass(frozen=True, kw_only=True)
class SampleSizes:
    """How many cases make a batch, how many points of each branch a case brings, and how they are drawn.

    Args:
        batch_size: Cases a batch B.
        num_anchors: Anchors a branch in training.
        num_queries: Queries a branch in training, beside the anchors.
        num_test_anchors: Anchors a branch after training.
        num_geometry_points: Points P of the geometry; 0 for a model without geometry branch.
        num_supernodes: Supernodes M among them in training.
        num_test_supernodes: Supernodes among them after training.
        sampling: How anchors, and queries in training, are drawn from the points: `uniform`, or `weighted` by the
            sizes of their cells, which is uniform in area or volume.
        supernode_sampling: How supernodes are drawn from the geometry points: `uniform` or `farthest` from one another.
    """

    batch_size: int
    num_anchors: int
    num_queries: int
    num_test_anchors: int
    num_geometry_points: int = 0
    num_supernodes: int = 0
    num_test_supernodes: int = 0
    sampling: Method = "uniform"
    supernode_sampling: Method = "uniform"


Predict: TypeAlias = Callable[[Sample], Fields]
"""From one case in physical units to the fields at its queries in physical units."""


class Dataset(Protocol):
    """Cases to train and to test on. Everything is in physical units and a pure function of the seeds."""

    @property
    def fields(self) -> Mapping[str, Mapping[str, int]]:
        """Number of channels by branch and field."""

    @property
    def normalizer(self) -> Normalizer:
        """Scales of positions and fields, from the training part alone."""

    @property
    def summary(self) -> str:
        """A line that says what the data are."""

    @property
    def fixed_case(self) -> Sample | None:
        """The anchors and geometry of all predictions, where the data are a single case."""

    def train_batch(self, seed: int, step: int) -> Sample:
        """Returns the batch of this step; nothing depends on the batches before."""

    def evaluation_cases(self) -> Iterator[EvaluationCase]:
        """Yields the test cases, each with the same shapes."""

    def draw(self, predict: Predict, directory: Path) -> list[Path]:
        """Draws predictions beside exact fields into PNG files and returns their paths."""


def stack_samples(samples: Sequence[Sample]) -> Sample:
    """Stacks cases of equal shapes into a batch along a new leading axis."""

    def stack(parts: Sequence[dict[str, PointSet]]) -> dict[str, PointSet]:
        return {
            branch: PointSet(
                np.stack([part[branch].position for part in parts]),
                {name: np.stack([part[branch].fields[name] for part in parts]) for name in parts[0][branch].fields},
            )
            for branch in parts[0]
        }

    geometry = [s.geometry_position for s in samples if s.geometry_position is not None]
    supernodes = [s.supernode_idx for s in samples if s.supernode_idx is not None]
    return Sample(
        stack([sample.anchors for sample in samples]),
        stack([sample.queries for sample in samples]),
        np.stack(geometry) if geometry else None,
        np.stack(supernodes) if supernodes else None,
    )


def split_points(points: PointSet, num_anchors: int) -> tuple[PointSet, PointSet]:
    """Splits points into the first `num_anchors`, and the rest."""
    return take_points(points, slice(num_anchors)), take_points(points, slice(num_anchors, None))


def take_points(points: PointSet, idx: slice | NDArray[np.integer[Any]]) -> PointSet:
    """Selects points of a case that has no batch axis."""
    return PointSet(
        points.position[idx],
        {name: values[idx] for name, values in points.fields.items()},
        None if points.cell_size is None else points.cell_size[idx],
    )


def normalize_sample(normalizer: Normalizer, sample: Sample) -> Sample:
    """Takes positions and fields of a case or a batch from physical to model units, float32."""

    def normalize(parts: dict[str, PointSet]) -> dict[str, PointSet]:
        return {
            branch: PointSet(
                normalizer.normalize_position(points.position),
                {name: normalizer.normalize_field(branch, name, values) for name, values in points.fields.items()},
            )
            for branch, points in parts.items()
        }

    geometry = sample.geometry_position
    return Sample(
        normalize(sample.anchors),
        normalize(sample.queries),
        None if geometry is None else normalizer.normalize_position(geometry),
        sample.supernode_idx,
    )
