"""Rotary position embedding for continuous positions over several axes."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from emmi_jax.ops.arrays import as_value_error, checked_array
from emmi_jax.ops.sincos import axis_frequencies


class RopeFrequencies(NamedTuple):
    """Cosine and sine of the rotation angles, each [B, T, H/2] float32."""

    cos: jax.Array
    sin: jax.Array


def rope_frequencies(positions: jax.Array, head_dim: int, max_wavelength: float = 10_000) -> RopeFrequencies:
    """Computes the rotation of every token and channel pair from the token's position.

    Args:
        positions: Coordinates [B, T, n], scaled to about 0 … 1000.
        head_dim: Channels per head H, even.
        max_wavelength: Largest wavelength over 2 pi, in the unit of the positions.

    Returns:
        `RopeFrequencies`, one axis after another; left-over channel pairs are not rotated.

    Raises:
        ValueError: `head_dim` is odd or too small for the number of axes, or positions have another rank.

    Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864), with the angles of all axes side by side.
    """
    with as_value_error("positions"):
        chex.assert_rank(positions, 3)
    if head_dim % 2:
        raise ValueError(f"rotary embedding needs an even head_dim, got {head_dim}")
    omega, rest = axis_frequencies(head_dim, positions.shape[-1], max_wavelength)

    def rotate(coordinates: jax.Array) -> RopeFrequencies:
        angles = coordinates[..., None] * omega[None, None]
        return RopeFrequencies(jnp.cos(angles), jnp.sin(angles))

    # Unless sine and cosine come from a loop, XLA recomputes them in every layer that uses them.
    by_axis = jax.lax.map(rotate, jnp.moveaxis(positions.astype(jnp.float32), -1, 0))
    cos, sin = (jnp.moveaxis(a, 0, 2).reshape(*a.shape[1:3], len(a) * len(omega)) for a in by_axis)
    unrotated = ((0, 0), (0, 0), (0, rest // 2))
    return RopeFrequencies(jnp.pad(cos, unrotated, constant_values=1), jnp.pad(sin, unrotated))


def as_rope_frequencies(freqs: RopeFrequencies | jax.Array) -> RopeFrequencies:
    """Returns the cosines and sines of either form of frequencies.

    Raises:
        ValueError: The array is not complex.
    """
    if isinstance(freqs, tuple):
        return RopeFrequencies(*freqs)
    checked_array("freqs", freqs)
    if not jnp.iscomplexobj(freqs):
        raise ValueError(f"freqs must be a RopeFrequencies(cos, sin) or a complex array, got dtype {freqs.dtype}")
    return RopeFrequencies(jnp.real(freqs), jnp.imag(freqs))


def apply_rope(x: jax.Array, freqs: RopeFrequencies | jax.Array) -> jax.Array:
    """Rotates channels (2m, 2m+1) by the m-th angle of each token, in float32.

    Args:
        x: Queries or keys [B, T, N, H].
        freqs: `RopeFrequencies` [B, T, H/2], or a complex array of that shape; a batch axis of 1 is broadcast.

    Returns:
        Array [B, T, N, H] of x's dtype.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    freqs = as_rope_frequencies(freqs)
    with as_value_error("x and freqs"):
        chex.assert_rank([x, *freqs], [4, 3, 3])
        batch = x.shape[0] if freqs.cos.shape[0] != 1 else 1
        chex.assert_shape(list(freqs), (batch, x.shape[1], x.shape[3] // 2))
    cos, sin = freqs.cos[:, :, None], freqs.sin[:, :, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:3], x.shape[3] // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
