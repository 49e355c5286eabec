"""Sine-cosine embedding of continuous positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from emmi_jax.ops.position_frequencies import axis_frequencies, octave_frequencies


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
    return _embed(positions, *axis_frequencies(dim, positions.shape[-1], max_wavelength))


def octave_embedding(condition: jax.Array, dim: int) -> jax.Array:
    """Embeds values in [-1, 1] as sines and cosines of frequencies from pi to 1024 pi, geometrically spaced.

    Args:
        condition: Array [..., n].
        dim: Number of channels C of the embedding.

    Returns:
        Array [..., C] float32, laid out as that of `sincos_embedding`.

    Raises:
        ValueError: `dim` is too small for the number of values.
    """
    return _embed(condition, *octave_frequencies(dim, condition.shape[-1]))


def _embed(positions: jax.Array, omega: np.ndarray, rest: int) -> jax.Array:
    angles = positions.astype(jnp.float32)[..., None] * omega.reshape((1,) * positions.ndim + omega.shape)
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    embedding = embedding.reshape(*positions.shape[:-1], 2 * positions.shape[-1] * len(omega))
    return jnp.pad(embedding, [(0, 0)] * (positions.ndim - 1) + [(0, rest)])
