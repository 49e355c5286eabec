"""Tiles of the logits: cut, read and written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Masks = tuple[Array, ...]
At = tuple[Array, Array, Array]
"""Place of a block of tokens within every share: batch entry, head, block."""


class Shares(NamedTuple):
    """The number of equal shares of batch, heads and queries that devices can divide up; one of each on one device.

    Loops run within a share, and each step treats all shares at once: a loop over shares would run on every device.
    """

    batch: int
    heads: int
    queries: int


class Place(NamedTuple):
    """Places of the tiles of one step within their shares: batch entry, head, block of queries, block of keys."""

    b: Array
    n: Array
    i: Array
    j: Array


class Tiling(NamedTuple):
    """Tiling of the logits of each head.

    Arrays [B, T, N, H] are cut into shares [B', B, T', T, N', N, H], where a prime marks the number of shares. Their
    tiles are [B', N', T', block, H], those of logits [B', N', T', block_q, block_k]. An axis of one share is left out,
    since it would cost copies. Every share of queries needs all keys, whose tiles have 1 for T'.
    """

    shares: Shares
    block_q: int
    num_q: int
    block_k: int
    num_k: int
    is_large: bool
    dropout_rate: float
    precision: lax.PrecisionLike

    def for_derivatives(self) -> Tiling:
        """Halves large tiles, of which derivatives hold more at a time; not those that dropout is drawn for."""
        if self.dropout_rate or self.block_q % 2 or not self.is_large:
            return self
        return self._replace(block_q=self.block_q // 2, num_q=self.num_q * 2)

    @property
    def several(self) -> tuple[int, ...]:
        """The leading axes of a tile."""
        return tuple(count for count in self.shares if count != 1)

    def dot(self, a: Array, b: Array) -> Array:
        """Multiplies matrices tile by tile; an axis of length 1 is broadcast."""
        return jnp.matmul(a, b, precision=self.precision)

    def cut(self, x: Array, *, is_key: bool = False) -> Array:
        """Cuts queries, or what there is for each of them, or keys or values, into shares."""
        return _cut(x, self._counts(is_key))

    def join(self, x: Array, *, is_key: bool = False) -> Array:
        """Undoes `cut`."""
        sizes, shape = list(x.shape), []
        for count in (*self._counts(is_key), 1):
            shape += [sizes.pop(0) * (1 if count == 1 else sizes.pop(0))]
        return x.reshape(shape)

    def read(self, x: Array, at: At, *, is_key: bool = False) -> Array:
        """Reads one block of tokens of one head in every share, as float32."""
        batch, queries, heads = counts = self._counts(is_key)
        block = self.block_k if is_key else self.block_q
        starts, sizes = _window(counts, (at[0], at[2] * block, at[1], 0), (1, block, 1, x.shape[-1]))
        rows = lax.dynamic_slice(x, starts, sizes).reshape(batch, queries, block, heads, x.shape[-1])
        return jnp.moveaxis(rows, 3, 1).squeeze(self._single).astype(jnp.float32)

    def write(self, x: Array, rows: Array, at: At, *, is_key: bool = False) -> Array:
        """Undoes `read`; XLA updates the carry of a loop in place."""
        block, channels = rows.shape[-2:]
        starts, sizes = _window(self._counts(is_key), (at[0], at[2] * block, at[1], 0), (1, block, 1, channels))
        rows = jnp.moveaxis(jnp.expand_dims(rows, self._single), 1, 3)
        return lax.dynamic_update_slice(x, rows.reshape(sizes).astype(x.dtype), starts)

    def mask(self, place: Place, masks: Masks) -> Array | None:
        """The tile of masks [B, N, T, S], any axis of which may be 1; None without masks."""
        starts = (place.b, place.n, place.i * self.block_q, place.j * self.block_k)
        sizes = (1, 1, self.block_q, self.block_k)
        tile = None
        for mask in masks:
            whole = [size == 1 for size in mask.shape]
            counts = [1 if w else count for w, count in zip(whole, (*self.shares, 1), strict=True)]
            mask_starts = [0 if w else start for w, start in zip(whole, starts, strict=True)]
            mask_sizes = [1 if w else size for w, size in zip(whole, sizes, strict=True)]
            part = lax.dynamic_slice(_cut(mask, counts), *_window(counts, mask_starts, mask_sizes))
            part = part.reshape(*counts[:3], *mask_sizes[2:]).squeeze(self._single)
            tile = part if tile is None else tile & part
        return tile

    def keep(self, place: Place, rng: Array | None) -> Array | None:
        """Returns the weights of a tile that dropout keeps, by its place alone; None without dropout."""
        if rng is None:
            return None
        for index in place:
            rng = jax.random.fold_in(rng, index)
        return jax.random.bernoulli(rng, 1.0 - self.dropout_rate, (*self.several, self.block_q, self.block_k))

    def drop(self, keep: Array | None, tile: Array) -> Array:
        """Drops weights, and scales up those that `keep` keeps."""
        return tile if keep is None else jnp.where(keep, tile / (1.0 - self.dropout_rate), 0.0)

    @property
    def _single(self) -> tuple[int, ...]:
        return tuple(axis for axis, count in enumerate(self.shares) if count == 1)

    def _counts(self, is_key: bool) -> tuple[int, int, int]:
        return self.shares.batch, 1 if is_key else self.shares.queries, self.shares.heads


def transpose(x: Array) -> Array:
    """Transposes every tile."""
    return jnp.swapaxes(x, -1, -2)


def _cut(x: Array, counts: Sequence[int]) -> Array:
    """Cuts the leading axes into shares."""
    shape: list[int] = []
    for size, count in zip(x.shape, counts, strict=False):
        shape += [size] if count == 1 else [count, size // count]
    return x.reshape(*shape, *x.shape[len(counts) :])


def _window(counts: Sequence[int], starts: Sequence[Any], sizes: Sequence[int]) -> tuple[list[Any], list[int]]:
    """Returns where a slice of cut axes starts and how long it is: all of the shares, and of each the same."""
    all_starts: list[Any] = []
    all_sizes: list[int] = []
    for count, start, size in itertools.zip_longest(counts, starts, sizes, fillvalue=1):
        is_cut = count != 1
        all_starts += [0] * is_cut + [start]
        all_sizes += [count] * is_cut + [size]
    return all_starts, all_sizes
