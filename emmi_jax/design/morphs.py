"""Shapes as functions of a few parameters: lattices, radial basis functions, and your own maps.

A morph is any traceable, hashable function from parameters and positions [N, 3] to displacements [N, 3]. Each point
moves by itself, so vertices, geometry points and anchors are moved alike. Morphs are computed in float64: a surface may
be far from the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.design.surface import Surface, Vertices
from emmi_jax.ops.arrays import safe_norm

Parameters: TypeAlias = Any
"""A tree of float arrays."""
Morph: TypeAlias = Callable[[Parameters, jax.Array], jax.Array]
"""From parameters and positions [N, 3] to displacements [N, 3], in the unit of the positions."""

_CHUNK_ROWS = 2**16


@dataclass(frozen=True)
class Lattice:
    """Free-form deformation: a box of control points that drag what lies between them along.

    Its parameters are the displacements [I, J, K, 3] of the control points. A point in the box moves by their mean,
    weighted by Bernstein polynomials; a point outside does not move. Where a face of the box cuts the surface, keep its
    control points in place to keep the surface whole.

    Args:
        low: Lowest corner [3].
        high: Highest corner [3].
        shape: Control points along each axis, at least 2.

    Raises:
        ValueError: The box is empty, or an axis has fewer than 2 control points.

    Source: Sederberg and Parry 1986, "Free-form deformation of solid geometric models".
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        corners = [tuple(map(float, corner)) for corner in (self.low, self.high)]
        if any(len(c) != 3 for c in corners) or not all(a < b for a, b in zip(*corners, strict=True)):
            raise ValueError(f"the box must have three positive sides, got {self.low} … {self.high}")
        if len(self.shape) != 3 or min(self.shape) < 2:
            raise ValueError(f"shape must be three numbers of control points, each at least 2, got {self.shape}")
        object.__setattr__(self, "low", corners[0])
        object.__setattr__(self, "high", corners[1])

    @classmethod
    def around(cls, surface: Surface, shape: tuple[int, int, int], *, margin: float = 0.01) -> Lattice:
        """Returns a lattice around a surface, larger by a share of each side."""
        low, high = surface.vertices.min(axis=0), surface.vertices.max(axis=0)
        pad = margin * np.maximum(high - low, 1e-3 * (high - low).max())
        return cls(tuple(low - pad), tuple(high + pad), shape)

    def zeros(self) -> NDArray[np.float64]:
        """Returns the parameters that move nothing."""
        return np.zeros((*self.shape, 3))

    def __call__(self, parameters: jax.Array, position: jax.Array) -> jax.Array:
        """Returns the displacements [N, 3] of positions [N, 3]."""
        dtype = position.dtype
        low, high = jnp.asarray(self.low, dtype), jnp.asarray(self.high, dtype)
        share = (position - low) / (high - low)
        is_inside = ((share >= 0) & (share <= 1)).all(axis=-1, keepdims=True)
        x, y, z = (_bernstein(share[:, axis], number) for axis, number in enumerate(self.shape))
        moved = jnp.einsum("ni,nj,nk,ijkc->nc", x, y, z, parameters.astype(dtype), precision="highest")
        return jnp.where(is_inside, moved, 0)


@dataclass(frozen=True, eq=False)
class RadialBasis:
    """Displacements of picked points, spread smoothly to what lies around them.

    Its parameters are the displacements [M, 3] of the picked points, which they get exactly. Farther than the radius
    from all of them nothing moves.

    Args:
        centers: The picked points [M, 3].
        radius: How far a point reaches, in the unit of the positions.

    Raises:
        ValueError: The radius is not positive, two points coincide, or the shape is wrong.

    Source: Wendland 1995, "Piecewise polynomial, positive definite and compactly supported radial functions".
    """

    centers: ArrayLike
    radius: float

    def __post_init__(self) -> None:
        centers = np.asarray(self.centers, np.float64)
        if centers.ndim != 2 or centers.shape[1] != 3 or not np.isfinite(centers).all():
            raise ValueError(f"centers must be finite numbers of shape [M, 3], got shape {list(centers.shape)}")
        if not 0 < self.radius < np.inf:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if len(np.unique(centers, axis=0)) < len(centers):
            raise ValueError(f"two of the {len(centers)} centers coincide")
        kernel = np.asarray(_wendland(np, np.linalg.norm(centers[:, None] - centers, axis=-1) / self.radius))
        object.__setattr__(self, "centers", centers)
        object.__setattr__(self, "_inverse", np.linalg.inv(kernel))

    def zeros(self) -> NDArray[np.float64]:
        """Returns the parameters that move nothing."""
        return np.zeros_like(np.asarray(self.centers))

    def __call__(self, parameters: jax.Array, position: jax.Array) -> jax.Array:
        """Returns the displacements [N, 3] of positions [N, 3]."""
        dtype, inverse = position.dtype, getattr(self, "_inverse")  # noqa: B009 - set on a frozen dataclass
        # The inverse of a kernel of close points would lose all digits in float32; shares of the points do not.
        with jax.enable_x64(True):
            distance = safe_norm(position.astype(np.float64)[:, None] - np.asarray(self.centers))
            kernel = _wendland(jnp, distance / self.radius)
            shares = jnp.matmul(kernel, inverse, precision="highest").astype(dtype)
        return jnp.matmul(shares, parameters.astype(dtype), precision="highest")


def displacements(morph: Morph, parameters: Parameters, position: Vertices) -> Vertices:
    """Returns the displacements [N, 3] of positions [N, 3], computed in chunks."""
    with jax.enable_x64(True):
        parameters = _doubles(parameters)
        chunks = [np.asarray(_displace(morph, parameters, rows))[:number] for rows, number, _ in _chunks(position)]
    return np.concatenate(chunks).astype(np.float64)


def displacements_along(morph: Morph, parameters: Parameters, direction: Parameters, position: Vertices) -> Vertices:
    """Returns the derivative [N, 3] of the displacements along a direction of the parameters."""
    with jax.enable_x64(True):
        parameters, direction = _doubles(parameters), _doubles(direction)
        chunks = [
            np.asarray(_displace_along(morph, parameters, direction, rows))[:number]
            for rows, number, _ in _chunks(position)
        ]
    return np.concatenate(chunks).astype(np.float64)


def parameter_gradient(morph: Morph, parameters: Parameters, position: Vertices, gradient: Vertices) -> Parameters:
    """Takes a gradient with respect to moved positions [N, 3] back to the parameters."""
    return _total(partial(_pull, morph), parameters, position, gradient)


def parameter_gradient_along(
    morph: Morph, parameters: Parameters, direction: Parameters, position: Vertices, gradient: Vertices
) -> Parameters:
    """Returns the derivative of `parameter_gradient` along a direction of the parameters, for the same gradient.

    It is 0 where displacements are linear in the parameters.
    """
    along = _doubles(direction)
    return _total(partial(_pull_along, morph, along), parameters, position, gradient)


def _total(
    pull: Callable[..., Parameters], parameters: Parameters, position: Vertices, gradient: Vertices
) -> Parameters:
    """Adds up what the chunks say about the parameters."""
    total: Any = jax.tree.map(lambda leaf: np.zeros(np.shape(leaf)), parameters)
    with jax.enable_x64(True):
        parameters = _doubles(parameters)
        for rows, number, start in _chunks(position):
            weights = np.zeros_like(rows)
            weights[:number] = gradient[start : start + number]
            total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, pull(parameters, rows, weights))
    return total


def _doubles(tree: Parameters) -> Parameters:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def _chunks(position: Vertices) -> Iterator[tuple[NDArray[Any], int, int]]:
    """Yields rows of one shape, how many are real, and where they start."""
    size = min(_CHUNK_ROWS, max(len(position), 1))
    for start in range(0, max(len(position), 1), size):
        rows = np.zeros((size, 3))
        taken = position[start : start + size]
        rows[: len(taken)] = taken
        yield rows, len(taken), start


@partial(jax.jit, static_argnums=0)
def _displace(morph: Morph, parameters: Parameters, position: jax.Array) -> jax.Array:
    return _checked(morph(parameters, position), position)


@partial(jax.jit, static_argnums=0)
def _displace_along(morph: Morph, parameters: Parameters, direction: Parameters, position: jax.Array) -> jax.Array:
    return jax.jvp(lambda p: _checked(morph(p, position), position), (parameters,), (direction,))[1]


@partial(jax.jit, static_argnums=0)
def _pull(morph: Morph, parameters: Parameters, position: jax.Array, gradient: jax.Array) -> Parameters:
    moved, pull = jax.vjp(lambda p: _checked(morph(p, position), position), parameters)
    return pull(gradient.astype(moved.dtype))[0]


@partial(jax.jit, static_argnums=0)
def _pull_along(
    morph: Morph, direction: Parameters, parameters: Parameters, position: jax.Array, gradient: jax.Array
) -> Parameters:
    return jax.jvp(lambda p: _pull(morph, p, position, gradient), (parameters,), (direction,))[1]


def _checked(moved: jax.Array, position: jax.Array) -> jax.Array:
    if moved.shape != position.shape:
        raise ValueError(f"a morph must return displacements of shape {position.shape}, got {moved.shape}")
    return moved


def _bernstein(share: jax.Array, number: int) -> jax.Array:
    """Returns the Bernstein polynomials [N, number] at shares [N] between 0 and 1."""
    degree = number - 1
    share = jnp.clip(share, 0, 1)
    powers: Sequence[jax.Array] = [
        comb(degree, i) * _power(share, i) * _power(1 - share, degree - i) for i in range(number)
    ]
    return jnp.stack(powers, axis=-1)


def _power(base: jax.Array, exponent: int) -> jax.Array:
    return jnp.ones_like(base) if exponent == 0 else base**exponent


def _wendland(xp: Any, ratio: Any) -> Any:
    """Returns (1 - r)⁴ (4 r + 1), and 0 from 1 on; twice differentiable."""
    left = xp.maximum(1 - ratio, 0)
    return left**4 * (4 * ratio + 1)
