"""Checks of a layer's inputs, and protection from padded tokens that are not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig
from emmi_jax.ops.arrays import check_array, checked_array
from emmi_jax.ops.rope import RopeFrequencies, as_rope_frequencies


def check_tokens(name: str, x: jax.Array, channels: int) -> None:
    """Checks that x is [B, T, channels].

    Raises:
        ValueError: It is not; the message starts with `name`.
    """
    checked_array(name, x)
    if x.ndim != 3 or x.shape[2] != channels:
        raise ValueError(f"{name} must have the shape [batch, tokens, {channels}], got {list(x.shape)}")


def check_rope(
    config: AttentionConfig, name: str, freqs: RopeFrequencies | jax.Array | None, x: jax.Array
) -> RopeFrequencies | None:
    """Returns the rotations of the tokens x [B, T, C] as cosines and sines, or None without rotation.

    Raises:
        ValueError: They are missing or superfluous, or have the wrong shape; the message names the argument.
    """
    if config.use_rope != (freqs is not None):
        state = "missing" if freqs is None else "given"
        raise ValueError(f"the configuration has use_rope={config.use_rope} but {name} is {state}")
    if freqs is None:
        return None
    freqs = as_rope_frequencies(freqs)
    batch, num_tokens, _ = x.shape
    for part in freqs:
        if part.ndim != 3 or part.shape[0] not in (1, batch) or part.shape[1:] != (num_tokens, config.head_dim // 2):
            expected = f"[{batch} or 1, {num_tokens}, {config.head_dim // 2}]"
            raise ValueError(f"{name} must have the shape {expected}, got {list(part.shape)}")
    return freqs


def check_padding_mask(mask: jax.Array | None, x: jax.Array) -> None:
    """Checks that a mask is None or fits the tokens x [B, T, C].

    Raises:
        ValueError: It is not bool or has another shape than [B, T].
    """
    if mask is not None:
        check_array("key_padding_mask", mask, "bool", x.shape[:2])


def silence_padding(
    is_real: jax.Array, x: jax.Array, freqs: RopeFrequencies | None = None
) -> tuple[jax.Array, RopeFrequencies | None]:
    """Zeroes padded tokens that are not finite, because zero times NaN in a gradient would be NaN.

    Args:
        is_real: Booleans [B or 1, T or 1].
        x: Tokens [B, T, C].
        freqs: Rotations of the tokens.

    Returns:
        Tokens and rotations; finite ones are as they were.
    """

    def silence(a: jax.Array) -> jax.Array:
        keep = is_real | jnp.isfinite(a).all(axis=-1)
        return jnp.where(keep[..., None], a, jnp.zeros_like(a))

    return silence(x), freqs and RopeFrequencies(*map(silence, freqs))
