"""FlashAttention-4 from the package fa4-jax: the output and its gradients, as calls that know of no derivative."""

from __future__ import annotations

import functools
import importlib.util
import platform
import sys
from typing import Any

import jax.numpy as jnp
from jax import Array

MAX_HEAD_DIM = 256


@functools.cache
def fa4_limit() -> str | None:
    """Returns why the package cannot be used here, or None."""
    if sys.version_info < (3, 12):
        return f"needs the package fa4-jax, which needs Python 3.12 (this is {platform.python_version()})"
    if importlib.util.find_spec("fa4_jax") is None:
        return "needs the package fa4-jax: pip install 'emmi-jax[flash]'"
    try:
        import fa4_jax.kernels  # noqa: F401
    except Exception as error:  # whatever its compiler, bindings and version checks raise
        return f"needs the package fa4-jax, whose import fails ({type(error).__name__}: {error})"
    return None


def forward(q: Array, k: Array, v: Array, num_keys: Array | None) -> tuple[Array, Array]:
    """Computes attention [B, T, N, H], and the logarithms of the sums of exp(logits), float32 [B, N, T].

    Args:
        q: Queries [B, T, N, H].
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        num_keys: Number of keys [B] that count, the first ones; None means all.
    """
    backend, config = _backend(q, num_keys)
    if num_keys is None:
        out, lse = backend.fwd_lse(config, q, k, v, ())
        return out, lse
    out, lse = backend.fwd_lse(config, *map(_packed, (q, k, v)), (), _lengths(q, k, num_keys))
    return out.reshape(q.shape), jnp.swapaxes(lse.reshape(q.shape[2], *q.shape[:2]), 0, 1)


def gradients(
    q: Array, k: Array, v: Array, num_keys: Array | None, out: Array, lse: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """Computes the gradients of q, k and v from what `forward` returned and the cotangent of the output."""
    backend, config = _backend(q, num_keys)
    if num_keys is None:
        dq, dk, dv = backend.vjp(config, q, k, v, out, lse, cotangent, None, ())
        return dq, dk, dv
    lse = jnp.swapaxes(lse, 0, 1).reshape(q.shape[2], -1)
    packed = map(_packed, (q, k, v, out))
    grads = backend.vjp(config, *packed, lse, _packed(cotangent), None, (), _lengths(q, k, num_keys))
    dq, dk, dv = (x.reshape(y.shape) for x, y in zip(grads, (q, k, v), strict=True))
    return dq, dk, dv


def _backend(q: Array, num_keys: Array | None) -> tuple[Any, Any]:
    from fa4_jax.attention import AttnConfig, get_backend

    config = AttnConfig(
        causal=False,
        local=False,
        window=(None, None),
        scale=q.shape[-1] ** -0.5,
        mask=None,
        backend="cute",
        varlen=num_keys is not None,
        defined_padding=num_keys is not None,
    )
    return get_backend(config.backend), config


def _packed(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _lengths(q: Array, k: Array, num_keys: Array) -> tuple[Array, Array, Array, Array]:
    """Starts of the samples in packed queries and keys, and how many of each count."""
    (batch, num_queries), size = q.shape[:2], k.shape[1]
    starts = jnp.arange(batch + 1, dtype=jnp.int32)
    return starts * num_queries, starts * size, jnp.full_like(num_keys, num_queries), num_keys
