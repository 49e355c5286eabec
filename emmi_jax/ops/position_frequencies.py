"""The split of channels over position axes that rotary and sine-cosine embeddings share."""

from __future__ import annotations

import numpy as np


def axis_frequencies(num_channels: int, num_axes: int, max_wavelength: float) -> tuple[np.ndarray, int]:
    """Splits channels evenly over axes and returns the angular frequencies of one axis.

    Args:
        num_channels: Width D to fill.
        num_axes: Number of position axes n.
        max_wavelength: Largest wavelength (in units of the positions) over 2 pi.

    Returns:
        omega [w/2], float32, with w the even number of channels an axis gets; and D - n·w, the number left over.

    Raises:
        ValueError: `max_wavelength` is not positive, or the width is too small to give every axis one frequency.
    """
    if not max_wavelength > 0:
        raise ValueError(f"max_wavelength must be positive, got {max_wavelength!r}")
    width = num_channels // num_axes // 2 * 2 if num_axes > 0 else 0
    if width <= 0:
        raise ValueError(f"{num_channels} channels are too few for {num_axes} position axes; needed: {2 * num_axes}")
    # Positions reach 1000, where one rounding of omega moves an angle by 6e-5: so these are the reference's steps.
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    omega = np.float32(1) / np.float32(max_wavelength) ** exponents
    return omega, num_channels - num_axes * width
