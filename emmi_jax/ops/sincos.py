"""Frequencies of rotary and sine-cosine embeddings of continuous positions, and the sine-cosine embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def axis_frequencies(num_channels: int, num_axes: int, max_wavelength: float) -> tuple[np.ndarray, int]:
    """Divides channels evenly among axes and returns the angular frequencies of one axis.

    Args:
        num_channels: Number of channels D.
        num_axes: Number of position axes n.
        max_wavelength: Largest wavelength over 2 pi, in the unit of the positions.

    Returns:
        omega [w/2] float32, where w is the even number of channels per axis; and D - n·w, the number of channels left.

    Raises:
        ValueError: `max_wavelength` is not positive, or there are too few channels for one frequency per axis.
    """
    if not max_wavelength > 0:
        raise ValueError(f"max_wavelength must be positive, got {max_wavelength!r}")
    width = _channels_per_axis(num_channels, num_axes)
    # Positions reach 1000, where one rounding of omega moves an angle by 6e-5. So round as the reference does; NumPy's
    # power of float32 is an ulp off on some processors.
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    omega = np.float32(1) / (np.float64(np.float32(max_wavelength)) ** exponents.astype(np.float64)).astype(np.float32)
    return omega, num_channels - num_axes * width


def octave_frequencies(num_channels: int, num_axes: int) -> tuple[np.ndarray, int]:
    """Returns angular frequencies from pi to 1024 pi, and the rest, as `axis_frequencies` does.

    Raises:
        ValueError: There are too few channels for one frequency per axis.
    """
    width = _channels_per_axis(num_channels, num_axes)
    num, i = width // 2, np.arange(width // 2, dtype=np.float32)
    # Values move angles of up to 1024 pi, so round as the reference does: from both ends to the middle.
    step = np.float32(10 / max(num - 1, 1))
    octaves = np.where(i < num // 2, step * i, np.float32(10) - step * (num - 1 - i)) if num > 1 else i
    omega = np.float32(np.pi) * np.exp2(octaves.astype(np.float64)).astype(np.float32)
    return omega, num_channels - num_axes * width


def _channels_per_axis(num_channels: int, num_axes: int) -> int:
    width = num_channels // num_axes // 2 * 2 if num_axes > 0 else 0
    if width <= 0:
        raise ValueError(f"{num_channels} channels are too few for {num_axes} position axes; needed: {2 * num_axes}")
    return width


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
