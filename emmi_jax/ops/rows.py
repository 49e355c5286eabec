"""Token ranges of arrays [B, T, ...]: taken, cut apart and joined."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp


def take(x: jax.Array, rows: Sequence[slice]) -> jax.Array:
    """Returns these token ranges one after the other; without a copy where they follow each other in x."""
    if not rows:
        return x[:, :0]
    if all(before.stop == after.start for before, after in itertools.pairwise(rows)):
        return x[:, rows[0].start : rows[-1].stop]
    return join(x[:, r] for r in rows)


def cut(x: jax.Array, sizes: Mapping[str, int]) -> dict[str, jax.Array]:
    """Cuts x into groups of these sizes; its gradient is one concatenation, where that of slices is a sum of pads."""
    return dict(zip(sizes, jax.lax.split(x, list(sizes.values()), axis=1), strict=True)) if sizes else {}


def join(parts: Iterable[jax.Array]) -> jax.Array:
    """Returns the parts one after the other."""
    parts = list(parts)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
