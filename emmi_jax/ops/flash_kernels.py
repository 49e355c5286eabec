"""Tiles of attention as kernels for Pallas: forward, tangents, gradients, and gradients of a tangent.

With P = softmax(q kᵀ / sqrt(H)), out = P v, and derivatives dS of the logits along tangents dq, dk and dv:

- tangent: d_out = P ∘ (dS - mu) v + P dv, where mu = rowsum(P ∘ dS);
- gradient for a cotangent c: U = P ∘ (c vᵀ - c·out) is that of the logits;
- gradient of c·d_out: W = P ∘ ((dS - mu) ∘ (c vᵀ - c·out) + c dvᵀ - c·d_out) is that of the logits, U is that of dS,
  and P ∘ (dS - mu) that of c vᵀ. The Hessian of c·out applied to (dq, dk, dv) is the same.

A program owns a block of queries and reads all keys, or the other way round. Products take the dtype of q, sums are
float32, and no two programs share a sum, so that every run gives the same bits.

Source: Dao 2023, "FlashAttention-2" (arXiv 2307.08691), for the passes over tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

LOG2_E = math.log2(math.e)
NO_LOGIT = -1e30
"""A logit that does not count; finite, so that the difference of two of them is not NaN."""

Refs = Mapping[str, Any]
"""Arrays by name: ``q``, ``c`` (the cotangent), ``dq`` and ``out`` have rows of queries, ``k``, ``v``, ``dk`` and
``dv`` rows of keys, and ``lse``, ``dots`` (c·out), ``mu`` and ``second_dots`` (c·d_out) a number per query."""


class Tiles(NamedTuple):
    """The walk of a program over the tiles of its block.

    Args:
        own: Number of rows that the program owns.
        read: Number of rows that it reads at a time.
        owns_keys: Whether its own rows are keys.
        num_queries: Number of queries.
        num_keys: Number of keys, or a bound on what ``num_keys`` in the arrays says.
        is_padded: Whether some keys do not count.
        scale: Factor of the logits.
        first: The program's first row.
    """

    own: int
    read: int
    owns_keys: bool
    num_queries: int
    num_keys: int
    is_padded: bool
    scale: float
    first: Any = 0

    def rows(self, step: Array) -> Any:
        """The rows that a step reads."""
        return pl.ds(step * self.read, self.read)

    def num_steps(self, x: Refs) -> Array | int:
        """The number of steps until no row is left that counts."""
        if self.owns_keys:
            return pl.cdiv(self.num_queries, self.read)
        return (
            lax.div(self._end(x) + (self.read - 1), self.read) if "num_keys" in x else pl.cdiv(self.num_keys, self.read)
        )

    def where_real(self, x: Refs, step: Array, tile: Array, other: float) -> Array:
        """Replaces what belongs to keys that do not count."""
        if not self.is_padded:
            return tile
        if self.owns_keys:
            key = self.first + lax.broadcasted_iota(jnp.int32, tile.shape, 0)
        else:
            key = step * self.read + lax.broadcasted_iota(jnp.int32, tile.shape, 1)
        return jnp.where(key < self._end(x), tile, other)

    def weights(self, x: Refs, step: Array, products: Array, lse: Array) -> Array:
        """Softmax from products of queries and keys."""
        weights = jnp.exp2(products * (self.scale * LOG2_E) - lse * LOG2_E)
        return self.where_real(x, step, weights, 0.0)

    def _end(self, x: Refs) -> Array | int:
        return x["num_keys"][0] if "num_keys" in x else self.num_keys


def forward(x: Refs, y: Refs, tiles: Tiles) -> None:
    """Writes ``out`` and ``lse``."""
    q = x["q"][...]

    def body(step: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, top, total = state
        keys = tiles.rows(step)
        logits = dot(q, x["k"][keys, :].T) * (tiles.scale * LOG2_E)
        logits = tiles.where_real(x, step, logits, NO_LOGIT)
        new_top = jnp.maximum(top, logits.max(axis=1))
        weights, rescale = jnp.exp2(logits - new_top[:, None]), jnp.exp2(top - new_top)
        out = out * rescale[:, None] + dot(weights.astype(q.dtype), x["v"][keys, :])
        return out, new_top, total * rescale + weights.sum(axis=1)

    rows = jnp.zeros(q.shape[:1], jnp.float32)
    state = (jnp.zeros(q.shape, jnp.float32), rows + NO_LOGIT, rows)
    out, top, total = lax.fori_loop(0, tiles.num_steps(x), body, state)
    y["out"][...] = (out * jnp.where(total > 0.0, 1.0 / total, 0.0)[:, None]).astype(q.dtype)
    y["lse"][...] = (top + jnp.log2(total)) / LOG2_E


def tangents(x: Refs, y: Refs, tiles: Tiles) -> None:
    """Writes ``out``, the derivative of the output, and ``mu``, for each of several tangents."""
    q, lse = x["q"][...], x["lse"][...]
    num = y["out"].shape[0]
    dq = [x["dq"][a] for a in range(num)] if "dq" in x else []
    # Where few keys count, terms cancel, and so must their roundings: mu of the output is of what was multiplied.
    is_rounded = tiles.num_keys <= tiles.read

    def body(step: Array, state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        out, mu, rounded_mu = map(list, state)
        keys = tiles.rows(step)
        k, v = x["k"][keys, :], x["v"][keys, :]
        weights = tiles.weights(x, step, dot(q, k.T), lse[:, None])
        for a in range(num):
            terms = [dot(dq[a], k.T)] if dq else []
            terms += [dot(q, x["dk"][a, keys, :].T)] if "dk" in x else []
            if terms:
                d_weights = weights * (sum(terms[1:], terms[0]) * tiles.scale)
                mu[a] += d_weights.sum(axis=1)
                rounded = d_weights.astype(q.dtype)
                out[a] += dot(rounded, v)
                if is_rounded:
                    rounded_mu[a] += rounded.astype(jnp.float32).sum(axis=1)
            if "dv" in x:
                out[a] += dot(weights.astype(q.dtype), x["dv"][a, keys, :])
        return tuple(out), tuple(mu), tuple(rounded_mu)

    rows = (jnp.zeros(q.shape[:1], jnp.float32),) * num
    state = (jnp.zeros(q.shape, jnp.float32),) * num, rows, rows if is_rounded else ()
    out, mu, rounded_mu = lax.fori_loop(0, tiles.num_steps(x), body, state)
    for a in range(num):
        y["out"][a] = (
            out[a] - (rounded_mu if is_rounded else mu)[a][:, None] * x["out"][...].astype(jnp.float32)
        ).astype(q.dtype)
        y["mu"][a] = mu[a]


def query_gradients(x: Refs, y: Refs, tiles: Tiles) -> None:
    """Writes ``dq``, the gradient of the queries, for each of several cotangents."""
    q, lse = x["q"][...], x["lse"][...]
    num = y["dq"].shape[0]
    pairs = [(x["c"][a], x["dots"][a]) for a in range(num)]

    def body(step: Array, dq: Any) -> Any:
        keys = tiles.rows(step)
        k, v = x["k"][keys, :], x["v"][keys, :]
        weights = tiles.weights(x, step, dot(q, k.T), lse[:, None])
        d_logits = [weights * (dot(c, v.T) - dots[:, None]) for c, dots in pairs]
        return tuple(old + dot(d.astype(q.dtype), k) for old, d in zip(dq, d_logits, strict=True))

    state = (jnp.zeros(q.shape, jnp.float32),) * num
    for a, dq in enumerate(lax.fori_loop(0, tiles.num_steps(x), body, state)):
        y["dq"][a] = (dq * tiles.scale).astype(q.dtype)


def second_query_gradient(x: Refs, y: Refs, tiles: Tiles) -> None:
    """Writes ``dq``, the gradient of c·d_out with respect to the queries."""
    own = {name: x[name][...] for name in ("q", "c", "dq") if name in x}
    stats = {name: x[name][...][:, None] for name in ("lse", "dots", "mu", "second_dots")}
    dtype = own["q"].dtype

    def body(step: Array, dq: Array) -> Array:
        read = {name: x[name][tiles.rows(step), :] for name in ("k", "v", "dk", "dv") if name in x}
        weights = tiles.weights(x, step, dot(own["q"], read["k"].T), stats["lse"])
        products = {left + right: dot(own[left], read[right].T) for left, right in _pairs(x)}
        d_logits, d_moved, _ = _second_order(weights, products, stats, tiles.scale)
        dq += dot(d_logits.astype(dtype), read["k"])
        return dq + dot(d_moved.astype(dtype), read["dk"]) if "dk" in x else dq

    dq = lax.fori_loop(0, tiles.num_steps(x), body, jnp.zeros(own["q"].shape, jnp.float32))
    y["dq"][...] = (dq * tiles.scale).astype(dtype)


def key_gradients(x: Refs, y: Refs, tiles: Tiles) -> None:
    """Writes ``dk`` and ``dv``: the gradients of c·out, or of c·d_out if the arrays hold a tangent."""
    own = {name: x[name][...] for name in ("k", "v", "dk", "dv") if name in x}
    dtype = own["k"].dtype

    def body(step: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = state
        queries = tiles.rows(step)
        read = {name: x[name][queries, :] for name in ("q", "c", "dq") if name in x}
        stats = {name: x[name][queries][None, :] for name in ("lse", "dots", "mu", "second_dots") if name in x}
        weights = tiles.weights(x, step, dot(own["k"], read["q"].T), stats["lse"])
        if "mu" in x:
            products = {left + right: dot(own[right], read[left].T) for left, right in _pairs(x)}
            d_logits, d_moved, d_pulled = _second_order(weights, products, stats, tiles.scale)
            if "dq" in x:
                dk += dot(d_moved.astype(dtype), read["dq"])
        else:
            d_logits, d_pulled = weights * (dot(own["v"], read["c"].T) - stats["dots"]), weights
        return dk + dot(d_logits.astype(dtype), read["q"]), dv + dot(d_pulled.astype(dtype), read["c"])

    zeros = jnp.zeros(own["k"].shape, jnp.float32)
    dk, dv = lax.fori_loop(0, tiles.num_steps(x), body, (zeros, zeros))
    y["dk"][...], y["dv"][...] = (dk * tiles.scale).astype(dtype), dv.astype(dtype)


def _pairs(x: Refs) -> list[tuple[str, str]]:
    """The products of queries and keys that second derivatives take beside the logits."""
    pairs = (("dq", "k"), ("q", "dk"), ("c", "v"), ("c", "dv"))
    return [(left, right) for left, right in pairs if left in x and right in x]


def _second_order(weights: Array, products: Refs, stats: Refs, scale: float) -> tuple[Array, Array, Array]:
    """Returns W, U and P ∘ (dS - mu) of a tile; see the top of the file."""
    moved = sum((products[name] * scale for name in ("dqk", "qdk") if name in products), -stats["mu"])
    pulled = products["cv"] - stats["dots"]
    d_logits = moved * pulled - stats["second_dots"] + products.get("cdv", 0.0)
    return weights * d_logits, weights * pulled, weights * moved


def dot(a: Array, b: Array) -> Array:
    """Multiplies matrices with sums in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=precision)
