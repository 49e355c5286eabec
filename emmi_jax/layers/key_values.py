"""Keys and values of a token group, in the sequence or in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emmi_jax.ops.rows import concat_tokens


class KeyValues(NamedTuple):
    """Keys and values of one token group: key and value [B, S, N, H], mask [B, S] bool (True = real) or None."""

    key: jax.Array
    value: jax.Array
    mask: jax.Array | None

    def to_entry(self) -> dict[str, jax.Array]:
        """Returns the group as an entry of the ``cache`` collection."""
        return {name: array for name, array in self._asdict().items() if array is not None}

    @classmethod
    def from_entry(cls, name: str, entry: object, q: jax.Array) -> KeyValues:
        """Returns the group of a cache entry, for queries [B, T, N, H].

        Raises:
            ValueError: The entry is malformed, or has the wrong shape or dtype; the message names it.
        """
        batch, _, num_heads, head_dim = q.shape
        if not isinstance(entry, Mapping) or not {"key", "value"} <= set(entry) <= {"key", "value", "mask"}:
            content = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
            raise ValueError(f"the cache entry of {name!r} must hold key, value and at most a mask, got {content!r}")
        group = cls(entry["key"], entry["value"], entry.get("mask"))
        size = group.key.shape[1] if group.key.ndim == 4 else -1
        for part, array in (("key", group.key), ("value", group.value)):
            if array.shape != (batch, size, num_heads, head_dim) or array.dtype != q.dtype:
                raise ValueError(
                    f"the cached {part} of {name!r} must be {q.dtype} of shape [{batch}, S, {num_heads}, {head_dim}], "
                    f"got {array.dtype} of shape {list(array.shape)}"
                )
        if group.mask is not None and (group.mask.shape != (batch, size) or group.mask.dtype != bool):
            raise ValueError(
                f"the cached mask of {name!r} must be bool of shape {[batch, size]}, "
                f"got {group.mask.dtype} of shape {list(group.mask.shape)}"
            )
        return group


def join_key_values(groups: Sequence[KeyValues]) -> KeyValues:
    """Joins groups along the tokens; a group without a mask is all real."""
    mask = None
    if any(group.mask is not None for group in groups):
        mask = concat_tokens(jnp.ones_like(g.key[..., 0, 0], bool) if g.mask is None else g.mask for g in groups)
    return KeyValues(concat_tokens(group.key for group in groups), concat_tokens(group.value for group in groups), mask)
