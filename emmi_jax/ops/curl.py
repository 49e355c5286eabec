"""Curls of what a network predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def curl_by_token(
    potential: Callable[[Tree], tuple[Tree, Tree]],
    positions: Tree,
) -> tuple[Tree, Tree]:
    """Computes the curl of vector fields at tokens from three forward-mode derivatives.

    Args:
        potential: Maps positions to a tree of vectors [..., T, 3], each of which depends on the position of its own
            token alone, and to a tree of anything else.
        positions: A tree of floating-point positions [..., T, 3].

    Returns:
        The curls [..., T, 3], a tree like that of the vectors, in the unit of the vectors over that of the positions;
        and the other tree.
    """

    def along(axis: jax.Array) -> tuple[Tree, Tree]:
        # No token sees the position of another, so all of them can move at once.
        tangents = jax.tree.map(lambda p: jnp.broadcast_to(axis.astype(p.dtype), p.shape), positions)
        _, derivatives, others = jax.jvp(potential, (positions,), (tangents,), has_aux=True)
        return derivatives, others

    derivatives, others = jax.vmap(along, out_axes=(0, None))(jnp.eye(3))

    def curl(d: jax.Array) -> jax.Array:
        pairs = [d[(i + 1) % 3, ..., (i + 2) % 3] - d[(i + 2) % 3, ..., (i + 1) % 3] for i in range(3)]
        return jnp.stack(pairs, axis=-1)

    return jax.tree.map(curl, derivatives), others
