"""Numbers computed from predicted fields, as functions of sums over points, so that they can be streamed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.points import row_chunks

Fields: TypeAlias = Mapping[str, jax.Array]
Terms: TypeAlias = Mapping[str, jax.Array]
PointFunction: TypeAlias = Callable[[jax.Array, Fields, jax.Array | None, jax.Array | None], Any]
"""From positions [N, 3], fields [N, F] by name, normals [N, 3] and areas [N] to an array [N, ...] or a dict of such.

At the points of other branches than the surface, normals are None, and areas are the sizes of the cells, or None.
"""

NO_LOGARITHM = -1e30
"""Stands for the logarithm of 0, without NaN in derivatives."""


Box: TypeAlias = tuple[ArrayLike, ArrayLike]
"""Lowest and highest corner, [3] each."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the points of one branch.

    Args:
        branch: The branch.
        terms: Contribution of each point to each sum, by name; a pure function in JAX.
        logarithmic: Names of the sums whose terms are logarithms: the logarithm of the sum of exponentials is taken.
        about: A point [3] that the positions are relative to. They are float32: far from the origin, take one nearby.
        box: Only the points in it count; None means all.

    Raises:
        ValueError: A corner, or `about`, is not 3 finite numbers, or the box has a negative side.
    """

    branch: str
    terms: Callable[[jax.Array, Fields, jax.Array | None, jax.Array | None], Terms]
    logarithmic: frozenset[str] = frozenset()
    about: ArrayLike = (0.0, 0.0, 0.0)
    box: Box | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", vector("about", self.about))
        if self.box is None:
            return
        low, high = (vector("a corner of the box", corner) for corner in self.box)
        if not (low <= high).all():
            raise ValueError(f"the lowest corner of the box must come first, got {low.tolist()} … {high.tolist()}")
        object.__setattr__(self, "box", (low, high))

    def check_box(self, position: NDArray[Any]) -> None:
        """Refuses points [N, 3] none of which lies in the box."""
        if self.box is None:
            return
        low, high = self.box
        if not any(((rows >= low) & (rows <= high)).all(axis=1).any() for rows in row_chunks(position)):
            extent = f"{position.min(axis=0).tolist()} … {position.max(axis=0).tolist()}"
            raise ValueError(
                f"none of the {len(position)} points of {self.branch!r} lies in the box {_written(self.box)}; "
                f"they lie in {extent}"
            )

    def of_points(self, terms: Terms, is_real: jax.Array) -> Terms:
        """Adds up terms [N, ...] over the points that are real."""

        def total(name: str, values: jax.Array) -> jax.Array:
            mask = is_real.reshape(-1, *(1,) * (values.ndim - 1))
            if name in self.logarithmic:
                return jax.nn.logsumexp(jnp.where(mask, values, NO_LOGARITHM), axis=0)
            return jnp.where(mask, values, 0).sum(axis=0)

        return {name: total(name, values) for name, values in terms.items()}

    def of_chunks(self, sums: Terms) -> Terms:
        """Adds up the sums [chunks, ...] of all chunks."""
        return {
            name: jax.nn.logsumexp(values, axis=0) if name in self.logarithmic else values.sum(axis=0)
            for name, values in sums.items()
        }


@dataclass(frozen=True, eq=False)
class Functional:
    """A number computed from predicted fields: a function of sums over points.

    Functionals and numbers can be added, subtracted, multiplied and divided; `map` applies any other function.

    Args:
        sums: What is summed.
        value: From the sums, in the same order, to a scalar; differentiable.
    """

    sums: tuple[Sums, ...]
    value: Callable[[Sequence[Terms]], jax.Array]

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches whose fields it reads."""
        return tuple(dict.fromkeys(sums.branch for sums in self.sums))

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Functional:
        """Returns a function of this number, such as its squared distance from a target."""
        return Functional(self.sums, lambda totals: function(self.value(totals)))

    def __add__(self, other: Functional | float) -> Functional:
        return self._with(other, operator.add)

    def __sub__(self, other: Functional | float) -> Functional:
        return self._with(other, operator.sub)

    def __rsub__(self, other: float) -> Functional:
        return -1.0 * self + other

    def __mul__(self, other: Functional | float) -> Functional:
        return self._with(other, operator.mul)

    def __truediv__(self, other: Functional | float) -> Functional:
        return self._with(other, operator.truediv)

    def __rtruediv__(self, other: float) -> Functional:
        return other * self.map(lambda value: 1 / value)

    def __pow__(self, other: float) -> Functional:
        exponent = _number(other)
        return self.map(lambda value: value**exponent)

    def __neg__(self) -> Functional:
        return -1.0 * self

    __radd__, __rmul__ = __add__, __mul__
    __array_ufunc__ = None  # NumPy's numbers leave the operation to this class

    def _with(self, other: Functional | float, combine: Callable[[Any, Any], Any]) -> Functional:
        if not isinstance(other, Functional):
            constant = _number(other)
            return self.map(lambda value: combine(value, constant))
        number = len(self.sums)

        def value(totals: Sequence[Terms]) -> jax.Array:
            return combine(self.value(totals[:number]), other.value(totals[number:]))

        return Functional(self.sums + other.sums, value)

    def check_value(self, value: float) -> float:
        """Returns a value that is finite.

        Raises:
            ValueError: It is not; the message names the boxes.
        """
        if not np.isfinite(value):
            boxes = [f"{sums.branch} in {_written(sums.box)}" for sums in self.sums if sums.box is not None]
            over = f" over {', '.join(dict.fromkeys(boxes))}" if boxes else ""
            raise ValueError(f"the functional{over} is not finite: {value}")
        return value

    def check(self, config: AbUptConfig) -> None:
        """Refuses a model without the branches that are needed.

        Raises:
            ValueError: A branch is missing.
        """
        for branch in self.branches:
            if branch not in config.fields:
                raise ValueError(f"the functional reads the branch {branch!r}, the model has {list(config.branches)}")


def per_point(
    branch: str, function: PointFunction, *, about: ArrayLike = (0.0, 0.0, 0.0), box: Box | None = None
) -> Functional:
    """Returns the sum of your own function over the points of a branch.

    Args:
        branch: The branch.
        function: From positions [N, 3], fields [N, F] by name, normals [N, 3] and areas [N] to what each point
            contributes [N]; a pure function in JAX of each point alone. Away from the surface, normals are None, and
            areas are the sizes of the cells, or None. For a function of several sums, build a `Functional`.
        about: See `Sums`.
        box: See `Sums`.

    Example:
        >>> wetted_area = per_point("surface", lambda position, fields, normal, area: area)
    """
    sums = Sums(branch, lambda *point: {"sum": function(*point)}, about=about, box=box)
    return Functional((sums,), lambda totals: totals[0]["sum"])


def vector(name: str, value: ArrayLike) -> Any:
    """Returns 3 finite numbers as an array, or raises a ValueError that names them."""
    array = np.asarray(value, dtype=np.float64)
    if array.shape != (3,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be 3 finite numbers, got {array.tolist()}")
    return array


def unit(name: str, value: ArrayLike) -> Any:
    """Returns a direction as a unit vector [3]; one without length is a ValueError."""
    array = vector(name, value)
    if not array.any():
        raise ValueError(f"{name} must not be zero")
    return array / np.linalg.norm(array)


def _number(value: Any) -> float:
    array = value if isinstance(value, int | float | np.number | np.ndarray | jax.Array) else None
    if array is None or isinstance(value, bool) or np.ndim(array) or not np.isfinite(array):
        raise ValueError(
            f"functionals are combined with functionals and finite numbers, by +, -, *, / and powers; got {value!r:.80}"
        )
    return float(array)


def _written(box: Box) -> str:
    low, high = (np.asarray(corner).tolist() for corner in box)
    return f"{low} … {high}"
