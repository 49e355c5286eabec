"""Fields that are the curl of what a network predicts."""

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
    """Computes the curl of vector fields that are known at tokens, by forward-mode derivatives along the three axes.

    Args:
        potential: Takes the positions to a tree of vectors [..., T, 3], each a function of the position of its own
            token alone, and to a tree of anything else.
        positions: A tree of positions [..., T, 3], floating.

    Returns:
        The curls in the tree of the vectors, [..., T, 3], in units of the vectors over those of the positions; and the
        other tree.
    """

    def along(axis: jax.Array) -> tuple[Tree, Tree]:
        # A token sees no other's position, so all are moved at once.
        tangents = jax.tree.map(lambda p: jnp.broadcast_to(axis.astype(p.dtype), p.shape), positions)
        _, derivatives, others = jax.jvp(potential, (positions,), (tangents,), has_aux=True)
        return derivatives, others

    derivatives, others = jax.vmap(along, out_axes=(0, None))(jnp.eye(3))

    def curl(d: jax.Array) -> jax.Array:
        pairs = [d[(i + 1) % 3, ..., (i + 2) % 3] - d[(i + 2) % 3, ..., (i + 1) % 3] for i in range(3)]
        return jnp.stack(pairs, axis=-1)

    return jax.tree.map(curl, derivatives), others
