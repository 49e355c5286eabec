"""How far a case is from the training cases: a distance of their encodings, and what of it is usual.

The distance has two parts, one along the directions in which the training cases differ, one across them: the squared
Mahalanobis distance there, and the squared length of the rest, each divided by what a new case of the same kind has on
average. Their weights need no choice, and the distance has derivatives.

Sources: Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks"
(NeurIPS), for distances of encodings; Yue and Qin 2001, "Reconstruction-based fault identification using a combined
index" (Ind. Eng. Chem. Res. 40), for the two parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.data.conformal import p_value

MIN_CASES = 8
"""Fewer training cases say nothing about which directions they differ in."""

_SHARE, _FOLDS = 0.95, 4
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What encodings [D] of cases are usual.

    Args:
        center: Mean [D] of the training cases.
        unit: What each number [D] is divided by.
        directions: Orthonormal directions [d, D] in which they differ.
        spread: Mean square along each direction [d] of a new case.
        rest: Mean squared length across them of a new case.
        known: Distances [n] of calibration cases.
    """

    center: NDArray[np.float64]
    unit: NDArray[np.float64]
    directions: NDArray[np.float64]
    spread: NDArray[np.float64]
    rest: float
    known: NDArray[np.float64]

    def distance(self, encoding: Any) -> Any:
        """Returns the distance of an encoding [D], a NumPy or a JAX array; that of a usual case is about 1."""
        offset = (encoding - self.center.astype(encoding.dtype)) / self.unit.astype(encoding.dtype)
        along = self.directions.astype(encoding.dtype) @ offset
        across = (offset @ offset - along @ along) / self.rest
        inside = (along**2 / self.spread.astype(encoding.dtype)).sum() / len(self.spread)
        return ((inside + across) / 2) ** 0.5

    def p_value(self, distance: float) -> float:
        """Returns the share of cases, the new one among them, that are as far as the new one."""
        return p_value(self.known, distance)

    @property
    def limit(self) -> float:
        """The median distance of the calibration cases."""
        return float(np.median(self.known))

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Returns everything as arrays, to store."""
        return {name: np.asarray(value, np.float64) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.float64]]) -> Familiarity:
        """Makes it of what `to_arrays` returns."""
        center, unit, directions, spread, rest, known = (arrays[name] for name in cls.__annotations__)
        return cls(center, unit, directions, spread, float(rest), known)


def fit_familiarity(train: ArrayLike, calibration: ArrayLike, *, num_conditions: int = 0) -> Familiarity:
    """Learns what encodings are usual.

    Args:
        train: Encodings [N, D] of the training cases.
        calibration: Encodings [n, D] of cases that the model was not trained on.
        num_conditions: How many of the numbers, the last ones, are conditions; these have the weight of all others.

    Raises:
        ValueError: There are fewer than `MIN_CASES` training cases, or an encoding is not finite.
    """
    encodings = np.asarray(train, np.float64)
    if len(encodings) < MIN_CASES or not np.isfinite(encodings).all():
        raise ValueError(f"expected finite encodings of at least {MIN_CASES} training cases, got {len(encodings)}")
    origin, unit = encodings.mean(axis=0), _unit(encodings, num_conditions)
    encodings = (encodings - origin) / unit
    number = _num_directions(encodings)
    center, directions = _directions(encodings, number)
    along, rest = [], []
    for fold in range(_FOLDS):  # what a case has that the directions were not fitted to
        is_left_out = np.arange(len(encodings)) % _FOLDS == fold
        fold_center, fold_directions = _directions(encodings[~is_left_out], number)
        offset = encodings[is_left_out] - fold_center
        rest.append(np.square(offset).sum(axis=1) - np.square(offset @ fold_directions.T).sum(axis=1))
        along.append(np.square((encodings[is_left_out] - center) @ directions.T))
    floor = _TINY * encodings.shape[1]
    found = Familiarity(
        origin,
        unit,
        directions,
        np.maximum(np.concatenate(along).mean(axis=0), floor),
        max(float(np.concatenate(rest).mean()), floor),
        np.zeros(0),
    )
    known = np.array([found.distance(encoding) for encoding in np.asarray(calibration, np.float64)])
    return replace(found, known=known)


def _unit(encodings: NDArray[np.float64], num_conditions: int) -> NDArray[np.float64]:
    num_values = encodings.shape[1] - num_conditions
    unit = np.empty(encodings.shape[1])
    unit[:num_values] = _deviation(encodings[:, :num_values])
    weight = np.sqrt(num_values / max(num_conditions, 1))
    unit[num_values:] = _deviation(encodings[:, num_values:]) / weight
    return unit


def _deviation(values: NDArray[np.float64]) -> float:
    """Returns the root mean square deviation of all columns; where they are constant, a millionth of their size."""
    if not values.size:
        return 1.0
    return float(np.sqrt(values.var(axis=0).mean())) or 1e-6 * (float(np.abs(values).mean()) or 1.0)


def _num_directions(encodings: NDArray[np.float64]) -> int:
    values = np.square(np.linalg.svd(encodings - encodings.mean(axis=0), compute_uv=False))
    enough = int(np.searchsorted(np.cumsum(values), _SHARE * values.sum())) + 1
    return max(1, min(enough, len(encodings) // 4))


def _directions(encodings: NDArray[np.float64], number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    center = encodings.mean(axis=0)
    return center, np.linalg.svd(encodings - center, full_matrices=False)[2][:number]
