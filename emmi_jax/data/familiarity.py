"""Distance of a case from the training cases, by its traits and its encoding: whether it is beyond their ranges.

The distance is the larger of two. The first is taken from numbers that mean something by themselves, such as lengths
and conditions: how far the farthest of them is from the middle of the training cases' range, in halves of it. The
second is of what the model encodes: the squared Mahalanobis distance along the directions in which the training cases
differ, and the squared length across them, each divided by what a new case of the same kind has on average, in units of
the farthest training case. So both are at most about 1 inside. Their weights need no choice, and both have derivatives.

Sources: Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks"
(NeurIPS), for distances of encodings; Yue and Qin 2001, "Reconstruction-based fault identification using a combined
index" (Ind. Eng. Chem. Res. 40), for the two squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.data.conformal import p_value

MIN_CASES = 8
"""Fewer training cases say nothing about which directions they differ in."""

_SHARE, _FOLDS = 0.95, 4
_TINY = 1e-12


class Description(NamedTuple):
    """A case in numbers, NumPy or JAX arrays.

    Attributes:
        traits: Numbers [R] that mean something by themselves.
        encoding: What a model makes of the case, [D].
    """

    traits: Any
    encoding: Any


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Usual cases.

    Args:
        middle: Middle [R] of the range of each trait in the training cases.
        reach: Half of that range [R].
        center: Mean encoding [D] of the training cases.
        unit: What the encoding is divided by.
        directions: Orthonormal directions [d, D] in which the encodings differ.
        spread: Mean square along each direction [d] of a new case.
        rest: Mean squared length across them of a new case.
        farthest: Distance of the encoding of the farthest training case.
        known: Both distances [n, 2] of calibration cases.
    """

    middle: NDArray[np.float64]
    reach: NDArray[np.float64]
    center: NDArray[np.float64]
    unit: float
    directions: NDArray[np.float64]
    spread: NDArray[np.float64]
    rest: float
    farthest: float
    known: NDArray[np.float64]

    def distances(self, case: Description) -> tuple[Any, Any]:
        """Returns the distances by traits and by encoding."""
        dtype = case.traits.dtype
        outside = abs((case.traits - self.middle.astype(dtype)) / self.reach.astype(dtype))
        dtype = case.encoding.dtype
        offset = (case.encoding - self.center.astype(dtype)) / self.unit
        along = self.directions.astype(dtype) @ offset
        across = abs(offset @ offset - along @ along) / self.rest  # rounding may make it negative
        inside = (along**2 / self.spread.astype(dtype)).sum() / len(self.spread)
        return outside.max(initial=0), ((inside + across) / 2 + _TINY**2) ** 0.5 / self.farthest

    def distance(self, case: Description) -> float:
        """Returns the larger of both distances."""
        return float(np.max(self.distances(case)))

    def p_value(self, distance: float) -> float:
        """Returns the share of cases, the new one among them, that are as far as the new one."""
        return p_value(self.known.max(axis=1), distance)

    @property
    def limits(self) -> tuple[float, float]:
        """The median of each distance of the calibration cases, above 0."""
        of_traits, of_encodings = np.maximum(np.median(self.known, axis=0), _TINY)
        return float(of_traits), float(of_encodings)

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Returns everything as arrays, to store."""
        return {name: np.asarray(value, np.float64) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.float64]]) -> Familiarity:
        """Makes it of what `to_arrays` returns."""
        stored = {name: arrays[name] for name in cls.__annotations__}
        numbers = {name: float(stored[name]) for name in ("unit", "rest", "farthest")}
        return cls(**stored | numbers)  # type: ignore[arg-type]


def fit_familiarity(
    train: Sequence[Description], calibration: Sequence[Description], least_reach: ArrayLike = 0.0
) -> Familiarity:
    """Learns what cases are usual.

    Args:
        train: The training cases.
        calibration: Cases that the model was not trained on.
        least_reach: What half of the range of a trait counts as at least, [R] or for all: a length that is the same in
            all training cases may still be off by a share of the size.

    Raises:
        ValueError: There are fewer than `MIN_CASES` training cases, or a number is not finite.
    """
    traits = np.array([case.traits for case in train], np.float64)
    encodings = np.array([case.encoding for case in train], np.float64)
    if len(train) < MIN_CASES or not (np.isfinite(traits).all() and np.isfinite(encodings).all()):
        raise ValueError(f"expected finite encodings of at least {MIN_CASES} training cases, got {len(train)}")
    low, high = traits.min(axis=0), traits.max(axis=0)
    origin, unit = encodings.mean(axis=0), _deviation(encodings)
    encodings = (encodings - origin) / unit
    number = _num_directions(encodings)
    center, directions = _directions(encodings, number)
    along, rest = np.empty((len(encodings), number)), np.empty(len(encodings))
    for fold in range(_FOLDS):  # what a case has that the directions were not fitted to
        is_left_out = np.arange(len(encodings)) % _FOLDS == fold
        fold_center, fold_directions = _directions(encodings[~is_left_out], number)
        offset = encodings[is_left_out] - fold_center
        rest[is_left_out] = np.square(offset).sum(axis=1) - np.square(offset @ fold_directions.T).sum(axis=1)
        along[is_left_out] = np.square((encodings[is_left_out] - center) @ directions.T)
    floor = _TINY * encodings.shape[1]
    spread, across = np.maximum(along.mean(axis=0), floor), max(float(rest.mean()), floor)
    farthest = float(np.sqrt(((along / spread).mean(axis=1) + rest / across).max() / 2))
    familiarity = Familiarity(
        middle=(low + high) / 2,
        reach=np.maximum(np.maximum((high - low) / 2, least_reach), _TINY + 1e-6 * np.maximum(abs(low), abs(high))),
        center=origin,
        unit=unit,
        directions=directions,
        spread=spread,
        rest=across,
        farthest=max(farthest, 1.0),
        known=np.zeros((0, 2)),
    )
    known = [familiarity.distances(case) for case in calibration]
    return replace(familiarity, known=np.array(known, np.float64).reshape(-1, 2))


def _deviation(values: NDArray[np.float64]) -> float:
    """Returns the root mean square deviation of all columns, at least a millionth of their size: that is rounding."""
    return max(float(np.sqrt(values.var(axis=0).mean())), 1e-6 * float(np.abs(values).mean())) or 1.0


def _num_directions(encodings: NDArray[np.float64]) -> int:
    values = np.square(np.linalg.svd(encodings - encodings.mean(axis=0), compute_uv=False))
    enough = int(np.searchsorted(np.cumsum(values), _SHARE * values.sum())) + 1
    return max(1, min(enough, len(encodings) // 4))


def _directions(encodings: NDArray[np.float64], number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    center = encodings.mean(axis=0)
    return center, np.linalg.svd(encodings - center, full_matrices=False)[2][:number]
