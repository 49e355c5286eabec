"""Exact potential flow past triaxial ellipsoids, the built-in data of `emmi-jax train`.

Everything is NumPy in float64. In this file, positions are in the body frame and laid out as [3, N].

Sources: H. Lamb, Hydrodynamics (1932), section 114; L. M. Milne-Thomson, Theoretical Hydrodynamics (1968);
B. C. Carlson, "Numerical computation of real or complex elliptic integrals", Numer. Algorithms 10 (1995), for R_D.
"""

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import elliprd

Array: TypeAlias = NDArray[np.float64]

SEMI_AXIS_RANGE = (0.4, 1.2)
SHELL_SCALE = 4.0

# In units of sum(x_i^2 / a_i^2): accepts surface points that were stored in float32 and rotated.
_INSIDE_TOLERANCE = 1e-5
_ORTHOGONALITY_TOLERANCE = 1e-9
# The rounding error of sum(x_i^2 / (a_i^2 + lambda)) at its root is about 2.5 machine epsilons.
_ROOT_TOLERANCE = 8 * float(np.finfo(np.float64).eps)
_MAX_NEWTON_STEPS = 100


def confocal_parameter(body_position: Array, semi_axes: Array) -> Array:
    """Largest root lambda of `sum x_i^2 / (a_i^2 + lambda) = 1`, which is 0 on the ellipsoid and grows outwards.

    Newton's method on `G = 1 / sum(x_i^2 / (a_i^2 + lambda)) - 1`. G is a harmonic mean of linear functions of lambda,
    so it is increasing and concave: from the left, Newton approaches the root and never passes it; a sphere takes one
    step.

    Args:
        body_position: [3, N] in the body frame, outside the ellipsoid or on it.
        semi_axes: [3], in the unit of the position.

    Returns:
        lambda [N], not negative, in the squared unit of the position; the equation holds to within rounding.
    """
    squared_position = np.square(body_position)
    squared_axes = np.square(semi_axes)[:, None]
    lam: Array = squared_position.sum(axis=0) - squared_axes.max()
    lam = np.maximum(lam, (squared_position - squared_axes).max(axis=0)).clip(min=0.0)
    for _ in range(_MAX_NEWTON_STEPS):
        denominator = squared_axes + lam
        terms = squared_position / denominator
        total = terms.sum(axis=0)
        slope = (terms / denominator).sum(axis=0)
        # On the surface the step can be negative, by rounding and by the tolerance for points inside.
        lam = np.maximum(lam + total * (total - 1.0) / slope, 0.0)
        if np.all((np.abs(total - 1.0) <= _ROOT_TOLERANCE) | (lam == 0.0)):
            break
    return lam


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """An ellipsoid at the origin in a uniform stream of an ideal fluid.

    Methods that take positions need them on the surface or outside: they raise a ValueError if one is inside the body
    (by more than rounding) or not finite.

    Args:
        semi_axes: [3], positive; their unit is the unit of every position.
        rotation: [3, 3], body to world: `world = rotation @ body`.
        free_stream: [3], world frame, not zero; its unit is the unit of every velocity.

    Raises:
        ValueError: A shape is wrong, a value is not finite, a semi-axis is not positive, the rotation is not proper, or
            the free stream is zero.

    Example:
        >>> import numpy as np
        >>> sphere = Ellipsoid(semi_axes=np.ones(3), rotation=np.eye(3))
        >>> sphere.velocity([[0.0, 1.0, 0.0]]).round(6).tolist()
        [[1.5, 0.0, 0.0]]
    """

    semi_axes: Array
    rotation: Array
    free_stream: Array = field(default_factory=lambda: np.array([1.0, 0.0, 0.0]))

    def __post_init__(self) -> None:
        for name, shape in (("semi_axes", (3,)), ("rotation", (3, 3)), ("free_stream", (3,))):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, expected {shape}")
            if not np.all(np.isfinite(value)):
                raise ValueError(f"{name} is {value.tolist()}, expected finite values")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if np.any(self.semi_axes <= 0):
            raise ValueError(f"semi_axes is {self.semi_axes.tolist()}, expected three positive lengths")
        defect = np.abs(self.rotation.T @ self.rotation - np.eye(3)).max()
        if defect > _ORTHOGONALITY_TOLERANCE or np.linalg.det(self.rotation) < 0:
            raise ValueError(
                f"rotation is {self.rotation.tolist()}, expected an orthogonal matrix with determinant 1; "
                f"rotation.T @ rotation differs from the identity by {defect:.3g}"
            )
        if not np.any(self.free_stream):
            raise ValueError(f"free_stream is {self.free_stream.tolist()}, expected a velocity that is not zero")

    def velocity(self, position: ArrayLike) -> Array:
        """Velocity; its normal component vanishes on the surface.

        It is the gradient of the potential `sum_i U_i x_i (1 + alpha_i(lambda) / (2 - alpha_i(0)))` in the body frame.

        Args:
            position: [N, 3] in the world frame.

        Returns:
            [N, 3] in the world frame, in the unit of the free stream.
        """
        x, lam = self._locate(position)
        stream = (self.free_stream @ self.rotation)[:, None]
        remainder = self._two_minus_alpha_at_surface()
        # With these names grad lambda = 2 normal / |normal|^2 and d alpha_i / d lambda = -shrinkage / (a_i^2 + lambda).
        squared_axes = np.square(self.semi_axes)[:, None] + lam
        normal = x / squared_axes
        shrinkage = math.prod(self.semi_axes) / np.sqrt(squared_axes.prod(axis=0))
        through_lambda = -2.0 * shrinkage * (stream / remainder * normal).sum(axis=0) / np.square(normal).sum(axis=0)
        return self._to_world(stream * (1.0 + self._alpha(lam) / remainder) + through_lambda * normal)

    def pressure_coefficient(self, position: ArrayLike) -> Array:
        """Pressure coefficient by Bernoulli's equation, `1 - |u|^2 / |U|^2`: 1 at a stagnation point, 0 far away.

        Args:
            position: [N, 3] in the world frame.

        Returns:
            [N], without unit.
        """
        speed_squared = np.square(self.velocity(position)).sum(axis=1)
        coefficient: Array = 1.0 - speed_squared / np.square(self.free_stream).sum()
        return coefficient

    def surface_normal(self, position: ArrayLike) -> Array:
        """Outward unit normal; off the surface, that of the confocal ellipsoid through the position.

        Args:
            position: [N, 3] in the world frame.

        Returns:
            [N, 3] in the world frame.
        """
        x, lam = self._locate(position)
        normal = x / (np.square(self.semi_axes)[:, None] + lam)
        return self._to_world(normal / np.linalg.norm(normal, axis=0))

    def sample_surface(self, rng: np.random.Generator, num_points: int) -> Array:
        """Independent points on the surface, uniform in area.

        A direction s, uniform on the unit sphere, is mapped to `a_i s_i`, which stretches area by `abc |s / a|`, and
        kept with probability `min(a) |s / a|`. At least half are kept whatever the shape: along the shortest semi-axis
        j, `min(a) |s / a| >= |s_j|`, which is 1/2 on average.

        Args:
            rng: Source of randomness; the same state gives the same points.
            num_points: N.

        Returns:
            [N, 3] in the world frame.

        Raises:
            ValueError: `num_points` is negative.
        """
        _check_count("num_points", num_points)
        kept = np.empty((3, 0))
        while kept.shape[1] < num_points:
            direction = _unit_vectors(rng, 2 * (num_points - kept.shape[1]) + 16)
            probability = self.semi_axes.min() * np.linalg.norm(direction / self.semi_axes[:, None], axis=0)
            kept = np.concatenate([kept, direction[:, rng.random(len(probability)) < probability]], axis=1)
        return self._to_world(self.semi_axes[:, None] * kept[:, :num_points])

    def sample_volume(self, rng: np.random.Generator, num_points: int) -> Array:
        """Independent points in the shell between the body and its copy scaled by 4, dense near the body.

        A point is `t a_i s_i` with s uniform on the unit sphere and `t = 1 + 3 v^2`, v uniform in [0, 1). So t has the
        density `1 / (2 sqrt(3 (t - 1)))`, and points have the density `1 / (8 pi abc t^2 sqrt(3 (t - 1)))` per volume,
        where `t = sqrt(sum x_i^2 / a_i^2)` is between 1 and 4: half of the points have t < 1.75.

        Args:
            rng: Source of randomness; the same state gives the same points.
            num_points: N.

        Returns:
            [N, 3] in the world frame.

        Raises:
            ValueError: `num_points` is negative.
        """
        _check_count("num_points", num_points)
        direction = _unit_vectors(rng, num_points)
        scale = 1.0 + (SHELL_SCALE - 1.0) * np.square(rng.random(num_points))
        return self._to_world(scale * self.semi_axes[:, None] * direction)

    def _to_world(self, body: Array) -> Array:
        return np.ascontiguousarray((self.rotation @ body).T)

    def _locate(self, position: ArrayLike) -> tuple[Array, Array]:
        """Body-frame coordinates [3, N] and confocal parameter [N] of world positions [N, 3]."""
        world = np.asarray(position, dtype=np.float64)
        if world.ndim != 2 or world.shape[1] != 3:
            raise ValueError(f"position has shape {world.shape}, expected (N, 3)")
        num_bad = len(world) - np.count_nonzero(np.isfinite(world).all(axis=1))
        if num_bad:
            raise ValueError(f"{num_bad} of {len(world)} positions are not finite")
        x = self.rotation.T @ world.T
        level = np.square(x / self.semi_axes[:, None]).sum(axis=0)
        num_inside = np.count_nonzero(level < 1.0 - _INSIDE_TOLERANCE)
        if num_inside:
            raise ValueError(
                f"{num_inside} of {len(world)} positions are inside the ellipsoid: the smallest sum(x_i^2 / a_i^2) is "
                f"{level.min():.6g}, expected at least 1 (tolerance {_INSIDE_TOLERANCE:g})"
            )
        return x, confocal_parameter(x, self.semi_axes)

    def _alpha(self, lam: Array) -> Array:
        """alpha_i(lambda) = abc (2/3) R_D(a_j^2 + lambda, a_k^2 + lambda, a_i^2 + lambda), [3, N]."""
        a, b, c = np.square(self.semi_axes)[:, None] + lam
        integrals: Array = np.stack([elliprd(b, c, a), elliprd(c, a, b), elliprd(a, b, c)])
        return math.prod(self.semi_axes) * 2.0 / 3.0 * integrals

    def _two_minus_alpha_at_surface(self) -> Array:
        """2 - alpha_i(0), [3, 1]."""
        alpha = self._alpha(np.zeros(1))
        # The three alpha_i(0) sum to 2; the sum of the other two does not cancel for a thin disc, the difference would.
        return np.roll(alpha, 1, axis=0) + np.roll(alpha, 2, axis=0)


def random_ellipsoids(num: int, *, seed: int) -> list[Ellipsoid]:
    """Random ellipsoids in the stream (1, 0, 0): semi-axes log-uniform in [0.4, 1.2], uniformly random rotations.

    Args:
        num: How many; a larger `num` continues the same sequence.
        seed: The same seed gives the same ellipsoids.

    Returns:
        `num` ellipsoids.

    Raises:
        ValueError: `num` is negative.
    """
    _check_count("num", num)
    rng = np.random.default_rng(seed)
    low, high = map(math.log, SEMI_AXIS_RANGE)
    return [Ellipsoid(np.exp(rng.uniform(low, high, size=3)), _random_rotation(rng)) for _ in range(num)]


def _random_rotation(rng: np.random.Generator) -> Array:
    """A rotation [3, 3], uniform: QR with the signs of R undone (F. Mezzadri, Notices AMS 54 (2007))."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    orthogonal = q * np.sign(np.diagonal(r))
    rotation: Array = orthogonal * np.sign(np.linalg.det(orthogonal))
    return rotation


def _unit_vectors(rng: np.random.Generator, num: int) -> Array:
    """Uniform on the unit sphere, [3, num]."""
    vectors = rng.standard_normal((3, num))
    vectors /= np.linalg.norm(vectors, axis=0)
    return vectors


def _check_count(name: str, count: int) -> None:
    if count < 0:
        raise ValueError(f"{name} is {count}, expected 0 or more")
