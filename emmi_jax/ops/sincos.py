"""Sine-cosine embedding of continuous positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emmi_jax.ops.position_frequencies import axis_frequencies


def sincos_embedding(positions: jax.Array, dim: int, max_wavelength: float = 10_000) -> jax.Array:
    """Embeds positions as sines and cosines of geometrically spaced frequencies.

    Args:
        positions: Coordinates [..., n], scaled to about 0 … 1000.
        dim: Number of channels C of the embedding.
        max_wavelength: Largest wavelength over 2 pi, in the unit of the positions.

    Returns:
        Array [..., C] float32: sines and then cosines of one axis after another, then zeros in the left-over channels.

    Raises:
        ValueError: `dim` is too small for the number of axes.

    Source: Vaswani et al. 2017, "Attention is all you need", section 3.5, applied to each axis.
    """
    omega, rest = axis_frequencies(dim, positions.shape[-1], max_wavelength)
    angles = positions.astype(jnp.float32)[..., None] * omega
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    embedding = embedding.reshape(*positions.shape[:-1], 2 * positions.shape[-1] * len(omega))
    return jnp.pad(embedding, [(0, 0)] * (positions.ndim - 1) + [(0, rest)])
