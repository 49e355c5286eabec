"""Count, extremes, mean and standard deviation of data that need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Moments:
    """Statistics of each of F channels, in float64.

    Args:
        count: Number of finite rows, those that the other statistics are of.
        num_not_finite: Number of rows with a NaN or infinite value.
        minimum: Smallest values [F].
        maximum: Largest values [F].
        mean: Means [F].
        squares: Sums [F] of squared deviations from the mean.
    """

    count: int
    num_not_finite: int
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, values: ArrayLike) -> Moments:
        """Measures values [N] or [N, F]."""
        rows = np.asarray(values)
        rows = rows.reshape(len(rows), -1) if rows.size else rows.reshape(0, *rows.shape[1:] or (1,))
        num_all = len(rows)
        # NumPy reduces along rows of memory many times as fast as across them.
        x = np.array(rows.T, np.float64, order="C")
        if num_all and not np.isfinite([x.min(axis=1), x.max(axis=1)]).all():
            x = x[:, np.isfinite(x).all(axis=0)]
        if not x.shape[1]:
            zero, infinite = np.zeros(len(x)), np.full(len(x), np.inf)
            return cls(
                count=0, num_not_finite=num_all, minimum=infinite, maximum=-infinite, mean=zero, squares=zero.copy()
            )
        mean, minimum, maximum = x.mean(axis=1), x.min(axis=1), x.max(axis=1)
        x -= mean[:, None]
        return cls(
            count=x.shape[1],
            num_not_finite=num_all - x.shape[1],
            minimum=minimum,
            maximum=maximum,
            mean=mean,
            squares=np.einsum("fn,fn->f", x, x),
        )

    @classmethod
    def of_chunks(cls, chunks: Iterable[ArrayLike]) -> Moments:
        """Measures data that arrive in chunks, [n_i] or [n_i, F], in one pass.

        Raises:
            ValueError: There is no chunk, or the numbers of channels differ.
        """
        parts = (cls.of(chunk) for chunk in chunks)
        first = next(parts, None)
        if first is None:
            raise ValueError("cannot measure statistics: there are no chunks")
        return reduce(cls.merge, parts, first)

    def merge(self, other: Moments) -> Moments:
        """Returns the statistics of both sets of data together.

        Source: T. F. Chan, G. H. Golub, R. J. LeVeque, Am. Stat. 37 (1983).
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(f"cannot merge data of {len(self.mean)} and of {len(other.mean)} channels")
        num_not_finite = self.num_not_finite + other.num_not_finite
        if not (self.count and other.count):
            return replace(self if self.count else other, num_not_finite=num_not_finite)
        count, difference = self.count + other.count, other.mean - self.mean
        return Moments(
            count=count,
            num_not_finite=num_not_finite,
            minimum=np.minimum(self.minimum, other.minimum),
            maximum=np.maximum(self.maximum, other.maximum),
            mean=self.mean + difference * (other.count / count),
            squares=self.squares + other.squares + np.square(difference) * (self.count * other.count / count),
        )

    def divided(self, factor: float) -> Moments:
        """Returns the statistics of the values over a positive factor."""
        parts = {name: getattr(self, name) / factor for name in ("minimum", "maximum", "mean")}
        return replace(self, **parts, squares=self.squares / factor**2)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values as JSON has them."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Moments:
        """Inverts `to_dict`.

        Raises:
            ValueError: These are not the statistics of finite values.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise ValueError(f"expected {', '.join(names)}, got {values!r:.80}")
        counts, arrays = names[:2], names[2:]
        if not all(type(values[name]) is int and values[name] >= 0 for name in counts):
            raise ValueError(f"expected numbers of rows, got {[values[name] for name in counts]}")
        if not all(isinstance(values[name], list) for name in arrays):
            raise ValueError(f"expected lists of numbers, got {values!r:.80}")
        parsed = {name: np.array(values[name], np.float64) for name in arrays}
        if len({array.shape for array in parsed.values()}) > 1 or not all(
            array.ndim == 1 and np.isfinite(array).all() for array in parsed.values()
        ):
            raise ValueError(f"expected as many finite numbers of each kind, got {values!r:.80}")
        return cls(**{**values, **parsed})

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviations [F] with divisor N; exactly 0 for a constant channel, despite rounding."""
        std: NDArray[np.float64] = np.sqrt(self.squares / max(self.count, 1))
        return np.where(self.minimum == self.maximum, 0.0, std)
