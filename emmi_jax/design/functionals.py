"""Numbers computed from predicted fields, as functions of sums over points, so that they can be streamed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from emmi_jax.config import AbUptConfig

Fields: TypeAlias = Mapping[str, jax.Array]
Terms: TypeAlias = Mapping[str, jax.Array]
PointFunction: TypeAlias = Callable[[jax.Array, Fields, jax.Array | None, jax.Array | None], Any]
"""From positions [N, 3], fields [N, F] by name, normals [N, 3] and areas [N] to an array [N, ...] or a dict of such.

At the points of other branches than the surface, normals are None, and areas are the sizes of the cells, or None.
"""

NO_LOGARITHM = -1e30
"""Stands for the logarithm of 0, without NaN in derivatives."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the points of one branch.

    Args:
        branch: The branch.
        terms: Contribution of each point to each sum, by name; a pure function in JAX.
        logarithmic: Names of the sums whose terms are logarithms: the logarithm of the sum of exponentials is taken.
    """

    branch: str
    terms: Callable[[jax.Array, Fields, jax.Array | None, jax.Array | None], Terms]
    logarithmic: frozenset[str] = frozenset()

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

    Functionals can be added, subtracted, and multiplied by numbers; `map` applies any other function.

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

    def __add__(self, other: Functional) -> Functional:
        return self._joined(other, operator.add)

    def __sub__(self, other: Functional) -> Functional:
        return self._joined(other, operator.sub)

    def __mul__(self, factor: float) -> Functional:
        return self.map(lambda value: value * factor)

    __rmul__ = __mul__

    def __neg__(self) -> Functional:
        return -1.0 * self

    def _joined(self, other: Functional, combine: Callable[[Any, Any], Any]) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        number = len(self.sums)

        def value(totals: Sequence[Terms]) -> jax.Array:
            return combine(self.value(totals[:number]), other.value(totals[number:]))

        return Functional(self.sums + other.sums, value)

    def check(self, config: AbUptConfig) -> None:
        """Refuses a model without the branches that are needed.

        Raises:
            ValueError: A branch is missing.
        """
        for branch in self.branches:
            if branch not in config.fields:
                raise ValueError(f"the functional reads the branch {branch!r}, the model has {list(config.branches)}")


def per_point(branch: str, function: PointFunction) -> Functional:
    """Returns the sum of your own function over the points of a branch.

    Args:
        branch: The branch.
        function: From positions [N, 3], fields [N, F] by name, normals [N, 3] and areas [N] to what each point
            contributes [N]; a pure function in JAX of each point alone. Away from the surface, normals are None, and
            areas are the sizes of the cells, or None. For a function of several sums, build a `Functional`.

    Example:
        >>> wetted_area = per_point("surface", lambda position, fields, normal, area: area)
    """
    return Functional((Sums(branch, lambda *point: {"sum": function(*point)}),), lambda totals: totals[0]["sum"])


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
