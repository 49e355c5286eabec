"""Scaled dot-product attention: one entry, named implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from emmi_jax.ops.blockwise_attention import blockwise_attention

XLA_MAX_LOGITS = 2**20
"""`auto` takes `xla`, which holds every logit, up to this many of them (4 MiB in float32)."""

TPU_INTERPRETER = "tpu_interpreter"
"""The platform on which Pallas' interpreter runs TPU kernels anywhere, slowly: for tests."""

target_platform = jax.make_user_context(None)
"""The platform that attention is traced for: ``cpu``, ``cuda``, ``rocm``, ``tpu`` or `TPU_INTERPRETER`.

None is the one JAX computes on. Set it to export for another: ``with target_platform("tpu"): jax.export.export(...)``.
"""


class Implementation(NamedTuple):
    """How attention can run, and which calls it refuses.

    Args:
        run: Called with q, k, v and the keyword arguments of `dot_product_attention`.
        refusal: Says why a call (q, k, mask, dropout_rate) cannot be served, or returns None.
    """

    run: Callable[..., jax.Array]
    refusal: Callable[[jax.Array, jax.Array, jax.Array | None, float], str | None]


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    implementation: str = "auto",
    precision: str | None = None,
) -> jax.Array:
    """Computes softmax(q kᵀ / sqrt(H)) v, with the softmax in float32.

    ============= ================== ========================================= ===================================
    name          where              serves                                    how
    ============= ================== ========================================= ===================================
    ``masked``    anywhere           every call                                the formula; holds all logits
    ``xla``       anywhere           every call                                the formula; holds all logits
    ``blockwise`` anywhere           every call                                tiles; memory linear in T and S
    ``cudnn``     NVIDIA GPU         no dropout, bfloat16 or float16, masks    cuDNN flash attention; memory linear
                                     of keys only, head_dim a multiple of 8,
                                     at most 128 (from Hopper on: 256)
    ``splash``    TPU                no dropout, float32 or bfloat16, masks    Pallas kernel; memory linear
                                     of keys only
    ============= ================== ========================================= ===================================

    ``auto`` is ``splash`` on a TPU and ``cudnn`` on an NVIDIA GPU where they serve the call; else ``xla`` while the
    logits are few, or ``blockwise``. A mask of keys is [B, 1, 1, S], as padding needs it.

    Args:
        q: Queries [B, T, N, H].
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        mask: Boolean, True = attend, each axis that of [B, N, T, S] or 1. A query with nothing to attend to gives zero.
        dropout_rate: Rate of dropout on the attention weights.
        dropout_rng: Key of the dropout, needed if the rate is not 0.
        implementation: A name of the table, or ``auto`` for the fastest that serves the call.
        precision: Precision of the matrix products.

    Returns:
        Array [B, T, N, H] of q's dtype.

    Raises:
        ValueError: The implementation is unknown, or dropout lacks its key.
        NotImplementedError: The implementation does not serve this call; the message says why and which ones do.

    Source: Vaswani et al. 2017, "Attention is all you need", equation 1.
    """
    chex.assert_rank([q, k, v], 4)
    chex.assert_equal_shape([k, v])
    chex.assert_equal_shape_prefix([q, k], 1)
    chex.assert_equal_shape_suffix([q, k], 2)
    chex.assert_trees_all_equal_dtypes(q, k, v)
    if mask is not None:
        chex.assert_rank(mask, 4)
        chex.assert_type(mask, bool)
        full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        if any(size not in (1, whole) for size, whole in zip(mask.shape, full, strict=True)):
            raise ValueError(f"each axis of a mask is 1 or that of [B, N, T, S] = {full}, got shape {mask.shape}")
    if not 0.0 <= dropout_rate < 1.0:
        raise ValueError(f"dropout_rate must lie in [0, 1), got {dropout_rate}")
    if dropout_rate and dropout_rng is None:
        raise ValueError(f"dropout_rate={dropout_rate} needs a dropout_rng")
    if not q.size or not k.size:
        return jnp.zeros_like(q)
    name = resolve_implementation(implementation, q, k, mask, dropout_rate)
    return (IMPLEMENTATIONS | KERNELS)[name].run(
        q, k, v, mask=mask, dropout_rate=dropout_rate, dropout_rng=dropout_rng, precision=precision
    )


def resolve_implementation(
    implementation: str, q: jax.Array, k: jax.Array, mask: jax.Array | None = None, dropout_rate: float = 0.0
) -> str:
    """Returns the name of what runs a call of `dot_product_attention`, which says what the arguments are.

    Raises:
        ValueError: The implementation is unknown.
        NotImplementedError: The implementation does not serve this call; the message says why and which ones do.
    """
    entries = IMPLEMENTATIONS | KERNELS
    refusals = {name: entry.refusal(q, k, mask, dropout_rate) for name, entry in entries.items()}
    serving = [name for name, refusal in refusals.items() if refusal is None]
    if implementation == "auto":
        num_logits = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1]
        preferred = (*KERNELS, "xla") if num_logits <= XLA_MAX_LOGITS else (*KERNELS,)
        return next((name for name in preferred if name in serving), "blockwise")
    if implementation not in entries:
        raise ValueError(f"implementation must be 'auto' or one of {list(entries)}, got {implementation!r}")
    if refusals[implementation] is not None:
        raise NotImplementedError(
            f"implementation {implementation!r} {refusals[implementation]}; these serve the call: {', '.join(serving)}"
        )
    return implementation


def platform() -> str:
    """Returns the platform that attention is traced for: `target_platform`, or the one JAX computes on."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    name = target_platform.value or getattr(device, "platform", device) or jax.default_backend()
    if name != "gpu":
        return name
    return "cuda" if "cuda" in jax.devices("gpu")[0].client.platform_version else "rocm"


def _dense_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None,
    dropout_rate: float,
    dropout_rng: jax.Array | None,
    precision: str | None,
) -> jax.Array:
    logits = jnp.einsum("btnh,bsnh->bnts", q, k, precision=precision, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, logits, -3e38), axis=-1), 0.0)
    if dropout_rate and dropout_rng is not None:
        keep = jax.random.bernoulli(dropout_rng, 1.0 - dropout_rate, weights.shape)
        weights = jnp.where(keep, weights / (1.0 - dropout_rate), 0.0)
    y = jnp.einsum(
        "bnts,bsnh->btnh", weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
    )
    return y.astype(q.dtype)


def _cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, **_: object) -> jax.Array:
    num_queries, num_keys = q.shape[1], k.shape[1]
    # The backward pass takes even lengths alone.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if mask is None and num_keys % 2 == 0:
        return attend(q, k, v)[:, :num_queries]
    if mask is None:
        num_real = jnp.full(q.shape[:1], num_keys, jnp.int32)
    else:
        # cuDNN would need a bias [T, S] for a mask. Attention does not see the order of its keys, so with the real ones
        # first it needs only their number.
        real = jnp.pad(jnp.broadcast_to(mask[:, 0, 0, :], (len(k), num_keys)), ((0, 0), (0, num_keys % 2)))
        num_real = real.sum(axis=1, dtype=jnp.int32)
        order = jnp.argsort(~real, axis=1)[:, :, None, None]
        is_real = jnp.arange(k.shape[1])[None, :, None, None] < num_real[:, None, None, None]
        k, v = (jnp.where(is_real, jnp.take_along_axis(x, order, axis=1), jnp.zeros_like(x)) for x in (k, v))
    y = attend(q, k, v, key_value_seq_lengths=jnp.maximum(num_real, 1))
    return jnp.where((num_real > 0)[:, None, None, None], y, jnp.zeros_like(y))[:, :num_queries]


def _splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None,
    precision: str | None,
    rectangles: Sequence[tuple[int, int, int, int]] | None = None,
    **_: object,
) -> jax.Array:
    from emmi_jax.ops.splash_attention import splash_attention

    key_mask = None if mask is None else _key_mask(mask, k)
    interpret = platform() == TPU_INTERPRETER
    return splash_attention(q, k, v, rectangles=rectangles, key_mask=key_mask, precision=precision, interpret=interpret)


def _key_mask(mask: jax.Array, k: jax.Array) -> jax.Array:
    """Returns a mask of keys [B or 1, 1, 1, S or 1] as [B, S]."""
    return jnp.broadcast_to(mask[:, 0, 0, :], k.shape[:2])


def _serves_all(q: jax.Array, k: jax.Array, mask: jax.Array | None, dropout_rate: float) -> str | None:
    return None


def _refuses_dropout(q: jax.Array, k: jax.Array, mask: jax.Array | None, dropout_rate: float) -> str | None:
    return f"has no attention dropout (dropout_rate={dropout_rate})" if dropout_rate else None


def _refuses_dropout_and_other_masks(
    q: jax.Array, k: jax.Array, mask: jax.Array | None, dropout_rate: float
) -> str | None:
    if mask is not None and mask.shape[1:3] != (1, 1):
        return f"takes masks of keys alone, of shape [B, 1, 1, S] (the mask is {list(mask.shape)})"
    return _refuses_dropout(q, k, mask, dropout_rate)


def _cudnn_refusal(q: jax.Array, k: jax.Array, mask: jax.Array | None, dropout_rate: float) -> str | None:
    if platform() != "cuda":
        return f"runs on NVIDIA GPUs (the platform is {platform()})"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16 (the arrays are {q.dtype})"
    try:
        # JAX's own checks know what the GPU and the installed cuDNN can do.
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), q, k, k)
    except (NotImplementedError, RuntimeError) as error:
        return f"does not serve these arrays ({error})"
    return _refuses_dropout_and_other_masks(q, k, mask, dropout_rate)


def _splash_refusal(q: jax.Array, k: jax.Array, mask: jax.Array | None, dropout_rate: float) -> str | None:
    if platform() not in ("tpu", TPU_INTERPRETER):
        return f"runs on TPUs (the platform is {platform()})"
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"computes in float32 or bfloat16 (the arrays are {q.dtype})"
    return _refuses_dropout_and_other_masks(q, k, mask, dropout_rate)


IMPLEMENTATIONS = {
    "masked": Implementation(_dense_attention, _serves_all),
    "xla": Implementation(_dense_attention, _serves_all),
    "blockwise": Implementation(blockwise_attention, _serves_all),
}
"""What runs anywhere; in a layer with patterns ``masked`` is one call for the sequence, the others one a shape."""

KERNELS = {
    "splash": Implementation(_splash_attention, _splash_refusal),
    "cudnn": Implementation(_cudnn_attention, _cudnn_refusal),
}
"""What runs on one platform; `auto` takes the first that serves."""
