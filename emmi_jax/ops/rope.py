"""Rotary position embedding for continuous positions over several axes."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from emmi_jax.ops.position_frequencies import axis_frequencies


class RopeFrequencies(NamedTuple):
    """Cosine and sine of the rotation angles, each [B, T, H/2] float32."""

    cos: jax.Array
    sin: jax.Array


def rope_frequencies(positions: jax.Array, head_dim: int, max_wavelength: float = 10_000) -> RopeFrequencies:
    """Computes the rotation of each token and channel pair from its position.

    Args:
        positions: Coordinates [B, T, n], scaled to about 0 … 1000.
        head_dim: Channels a head H, even.
        max_wavelength: Largest wavelength over 2 pi, in units of the positions.

    Returns:
        `RopeFrequencies`, axis after axis; channel pairs that are left over are not rotated.

    Raises:
        ValueError: `head_dim` is odd or too small for the number of axes.

    Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864), with the angles of the axes side by side.
    """
    chex.assert_rank(positions, 3)
    if head_dim % 2:
        raise ValueError(f"rotary embedding needs an even head_dim, got {head_dim}")
    omega, rest = axis_frequencies(head_dim, positions.shape[-1], max_wavelength)

    def rotate(coordinates: jax.Array) -> RopeFrequencies:
        angles = coordinates[..., None] * omega
        return RopeFrequencies(jnp.cos(angles), jnp.sin(angles))

    # XLA recomputes sine and cosine in every layer that uses them, unless they come from a loop.
    by_axis = jax.lax.map(rotate, jnp.moveaxis(positions.astype(jnp.float32), -1, 0))
    cos, sin = (jnp.moveaxis(a, 0, 2).reshape(*a.shape[1:3], len(a) * len(omega)) for a in by_axis)
    unrotated = ((0, 0), (0, 0), (0, rest // 2))
    return RopeFrequencies(jnp.pad(cos, unrotated, constant_values=1), jnp.pad(sin, unrotated))


def as_rope_frequencies(freqs: RopeFrequencies | jax.Array) -> RopeFrequencies:
    """Returns cosines and sines from either form of frequencies.

    Raises:
        ValueError: An array that is not complex was given.
    """
    if isinstance(freqs, tuple):
        return RopeFrequencies(*freqs)
    if not jnp.iscomplexobj(freqs):
        raise ValueError(f"freqs must be a RopeFrequencies(cos, sin) or a complex array, got dtype {freqs.dtype}")
    return RopeFrequencies(jnp.real(freqs), jnp.imag(freqs))


def apply_rope(x: jax.Array, freqs: RopeFrequencies | jax.Array) -> jax.Array:
    """Rotates channel pairs (2m, 2m+1) by the m-th angle of each token, in float32.

    Args:
        x: Queries or keys [B, T, N, H].
        freqs: `RopeFrequencies` of [B, T, H/2], or a complex array of that shape; a batch axis of 1 is broadcast.

    Returns:
        Array [B, T, N, H] of x's dtype.
    """
    freqs = as_rope_frequencies(freqs)
    chex.assert_rank([x, *freqs], [4, 3, 3])
    batch = x.shape[0] if freqs.cos.shape[0] != 1 else 1
    chex.assert_shape(list(freqs), (batch, x.shape[1], x.shape[3] // 2))
    cos, sin = freqs.cos[:, :, None], freqs.sin[:, :, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:3], x.shape[3] // 2, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)
