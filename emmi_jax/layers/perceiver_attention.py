"""Cross-attention from one set of tokens to another."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from emmi_jax.config import AttentionConfig
from emmi_jax.layers.dropout import Flag, drop, with_dropout
from emmi_jax.layers.inputs import check_rope, check_tokens, silence_padding
from emmi_jax.layers.key_values import KeyValues
from emmi_jax.layers.linear import input_projection, output_projection
from emmi_jax.layers.norms import head_norm
from emmi_jax.layers.patterns import attend_to
from emmi_jax.ops.attention import check_mask
from emmi_jax.ops.rope import RopeFrequencies, apply_rope
from emmi_jax.ops.sharding import gather_key_mask, gather_shards


class PerceiverAttention(nn.Module):
    """Multi-head attention from queries to other tokens.

    Args:
        config: Configuration of the layer; its dropout also acts after the output projection.
        kv_dim: Channels of the other tokens; None means those of the queries.

    Source: Jaegle et al. 2021, "Perceiver" (arXiv 2103.03206).
    """

    config: AttentionConfig
    kv_dim: int | None = None

    @nn.compact
    def __call__(
        self,
        q: jax.Array,
        kv: jax.Array | None,
        q_freqs: RopeFrequencies | jax.Array | None = None,
        k_freqs: RopeFrequencies | jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        deterministic: Flag = True,
    ) -> jax.Array:
        """Attends from q to kv.

        With ``mutable=["cache"]`` the rotated keys, the values and a mask of keys are stored in the ``cache``
        collection; a later call with kv=None reads them.

        Args:
            q: Queries [B, T, C].
            kv: Tokens to attend to [B, S, kv_dim], or None for the cached ones.
            q_freqs: Rotations of the queries [B, T, H/2]; given if and only if the configuration says `use_rope`.
            k_freqs: Rotations of the other tokens [B, S, H/2], likewise; None for cached tokens.
            mask: Boolean, True = attend; each axis is that of [B, N, T, S] or 1. Only a mask of keys, [B, 1, 1, S], is
                stored. A token that no query attends to may be NaN.
            deterministic: Whether dropout is off; if not, an rng named ``dropout`` is needed.

        Returns:
            Array [B, T, C].

        Raises:
            ValueError: A shape is wrong, rotations are missing or superfluous, or the cache does not fit.
        """
        config = self.config
        check_tokens("q", q, config.dim)
        q_freqs = check_rope(config, "q_freqs", q_freqs, q)
        queries = input_projection(config, 1, "q")(q).reshape(*q.shape[:2], config.num_heads, config.head_dim)
        if config.qk_norm:
            queries = head_norm(config, "q_norm")(queries)
        if q_freqs is not None:
            queries = apply_rope(queries, q_freqs)
        if kv is None:
            keys = self._cached(queries, k_freqs)
        else:
            keys, mask = (
                self._project(queries, kv, k_freqs, mask),
                gather_key_mask(mask, kv.shape[1], config.token_axis),
            )
        if keys.mask is not None:
            key_mask = keys.mask[:, None, None, :]
            mask = key_mask if mask is None else mask & key_mask
        rate = config.dropout
        y = with_dropout(self, rate, deterministic, partial(attend_to, config, queries, keys, mask))
        y = output_projection(config, "proj")(y.reshape(*y.shape[:2], config.dim))
        return with_dropout(self, rate, deterministic, lambda key: drop(y, rate, key))

    def _project(
        self,
        queries: jax.Array,
        kv: jax.Array,
        k_freqs: RopeFrequencies | jax.Array | None,
        mask: jax.Array | None,
    ) -> KeyValues:
        """Returns the keys and values of kv, with their mask if it is a mask of keys, and stores them."""
        config = self.config
        check_tokens("kv", kv, config.dim if self.kv_dim is None else self.kv_dim)
        k_freqs, key_mask = check_rope(config, "k_freqs", k_freqs, kv), None
        if mask is not None:
            check_mask(mask, kv.shape[0], config.num_heads, queries.shape[1], kv.shape[1])
            kv, k_freqs = silence_padding(mask.any(axis=(1, 2)), kv, k_freqs)
            if mask.shape[1:3] == (1, 1):
                key_mask = jnp.broadcast_to(mask[:, 0, 0], kv.shape[:2])
        k, v = jnp.split(input_projection(config, 2, "kv")(kv), 2, axis=-1)
        k, v = (a.reshape(*kv.shape[:2], config.num_heads, config.head_dim) for a in (k, v))
        if config.qk_norm:
            k = head_norm(config, "k_norm")(k)
        if k_freqs is not None:
            k = apply_rope(k, k_freqs)
        keys = gather_shards(KeyValues(k, v, key_mask), config.token_axis, axis=1)
        if self.is_mutable_collection("cache") and not self.is_initializing():
            self.put_variable("cache", "kv", keys.to_entry())
        return keys

    def _cached(self, queries: jax.Array, k_freqs: RopeFrequencies | jax.Array | None) -> KeyValues:
        if k_freqs is not None:
            raise ValueError("k_freqs are given but kv is None: cached keys are already rotated")
        if not self.has_variable("cache", "kv"):
            raise ValueError("kv is None but the cache has no entry 'kv'")
        return KeyValues.from_entry("kv", self.get_variable("cache", "kv"), queries)
