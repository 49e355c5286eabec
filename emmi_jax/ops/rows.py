"""Token ranges of arrays [B, T, ...]: taken, cut apart and joined, also where tokens are sharded over explicit axes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from emmi_jax.ops.sharding import partition_automatically, resized_spec


def take_tokens(x: jax.Array, rows: Sequence[slice]) -> jax.Array:
    """Returns these token ranges one after the other; without a copy where they follow each other in x."""
    if not rows:
        return x[:, :0]
    if all(before.stop == after.start for before, after in itertools.pairwise(rows)):
        return _reshaped(lambda x: x[:, rows[0].start : rows[-1].stop], rows[-1].stop - rows[0].start, x)
    return concat_tokens(take_tokens(x, [r]) for r in rows)


def split_tokens(x: jax.Array, sizes: Mapping[str, int]) -> dict[str, jax.Array]:
    """Cuts x into groups of these sizes; its gradient is one concatenation, where that of slices is a sum of pads."""
    if resized_spec(x, 1, 1) is not None:
        stops = list(itertools.accumulate(sizes.values()))
        return {
            name: take_tokens(x, [slice(stop - size, stop)])
            for (name, size), stop in zip(sizes.items(), stops, strict=True)
        }
    return dict(zip(sizes, jax.lax.split(x, list(sizes.values()), axis=1), strict=True)) if sizes else {}


def concat_tokens(parts: Iterable[jax.Array], like: jax.Array | None = None) -> jax.Array:
    """Returns the parts one after the other; their tokens are sharded as those of `like`, or of a part."""
    parts = list(parts)
    if len(parts) == 1 and like is None:
        return parts[0]
    if like is None:
        like = next((part for part in parts if resized_spec(part, 1, 1) is not None), parts[0])
    size = sum(part.shape[1] for part in parts)
    spec = resized_spec(like, 1, size, ndim=parts[0].ndim)
    if spec is None:
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
    return partition_automatically(lambda *parts: jnp.concatenate(parts, axis=1), spec, *parts)(*parts)


def _reshaped(function: Callable[[jax.Array], jax.Array], size: int, x: jax.Array) -> jax.Array:
    spec = resized_spec(x, 1, size)
    return function(x) if spec is None else partition_automatically(function, spec, x)(x)
