"""Scaled dot-product attention: one entry point, several kernels, and which of them `auto` takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from emmi_jax.config.implementations import IMPLEMENTATIONS
from emmi_jax.ops.arrays import as_value_error, checked_array
from emmi_jax.ops.blockwise_attention import blockwise_attention
from emmi_jax.ops.cudnn_attention import cudnn_attention, cudnn_limit
from emmi_jax.ops.dense_attention import dense_attention
from emmi_jax.ops.masks import Rectangle, rectangle_mask
from emmi_jax.ops.sharding import partition_automatically

XLA_MAX_LOGITS = 2**20
"""`auto` takes `xla`, which holds every logit, up to this many logits (4 MiB in float32)."""

TPU_INTERPRETER = "tpu_interpreter"
"""The platform on which Pallas' interpreter runs TPU kernels anywhere, slowly: for tests."""

CUDA_INTERPRETER = "cuda_interpreter"
"""The same for the Pallas kernels of NVIDIA GPUs."""

target_platform = jax.make_user_context(None)
"""The platform that attention is traced for: ``cpu``, ``cuda``, ``rocm``, ``tpu`` or an interpreter.

None means the platform JAX computes on. Set it to export for another: ``with target_platform("tpu"):
jax.export.export(...)``.
"""

forward_mode = jax.make_user_context(False)
"""Whether attention will be differentiated in forward mode, which ``cudnn`` and ``splash`` cannot serve.

``auto`` then takes another: ``with forward_mode(True): jax.jvp(...)``.
"""


class Call(NamedTuple):
    """Everything that decides whether a kernel serves a call: arguments of `dot_product_attention`."""

    q: jax.Array
    k: jax.Array
    mask: jax.Array | None = None
    rectangles: Sequence[Rectangle] | None = None
    dropout_rate: float = 0.0


class Kernel(NamedTuple):
    """A way to compute attention.

    Args:
        run: Called with q, k, v and, as keywords, mask, dropout_rate, dropout_rng and precision.
        refusal: Returns why a call cannot be served, or None.
        takes_rectangles: Whether `run` has a keyword `rectangles`; for the others these become a mask.
    """

    run: Callable[..., jax.Array]
    refusal: Callable[[Call], str | None]
    takes_rectangles: bool = False


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    rectangles: Sequence[Rectangle] | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    implementation: str = "auto",
    precision: str | None = None,
) -> jax.Array:
    """Computes softmax(q kᵀ / sqrt(H)) v, with the softmax in float32.

    `emmi_jax.config.implementations` says what each implementation serves. ``auto`` is ``splash`` on a TPU and
    ``flash``, or else ``cudnn``, on an NVIDIA GPU where they serve the call; otherwise ``xla`` for few logits and
    ``blockwise`` for many, or for a number unknown at trace time.

    Args:
        q: Queries [B, T, N, H].
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        mask: Boolean, True = attend; each axis is that of [B, N, T, S] or 1. A query with nothing to attend to gives
            zeros. A masked key or value has no influence, even if it is NaN.
        rectangles: Parts of the logits [T, S] that count, as (query start, query stop, key start, key stop); static;
            they may overlap. None means all.
        dropout_rate: Rate of dropout on the attention weights.
        dropout_rng: Key of the dropout, needed unless the rate is 0.
        implementation: One of these names, or ``auto`` for the fastest that serves the call.
        precision: Precision of the matrix products.

    Returns:
        Array [B, T, N, H] of q's dtype.

    Raises:
        ValueError: The arrays do not fit each other, the implementation is unknown, or dropout lacks its key.
        NotImplementedError: The implementation does not serve this call; the message says why and which ones do.

    Source: Vaswani et al. 2017, "Attention is all you need", equation 1.
    """
    _check_arrays(q, k, v, mask)
    _check_dropout(dropout_rate, dropout_rng)
    if 0 in q.shape or 0 in k.shape:
        return jnp.zeros_like(q)
    name = resolve_implementation(implementation, q, k, mask, dropout_rate, rectangles=rectangles)
    kernel = KERNELS[IMPLEMENTATIONS[name].kernel]
    options: dict[str, Any] = {"dropout_rate": dropout_rate, "precision": precision}
    if kernel.takes_rectangles:
        options["rectangles"] = rectangles
    elif rectangles is not None:
        allowed = jnp.asarray(rectangle_mask(rectangles, q.shape[1], k.shape[1]))[None, None]
        mask = allowed if mask is None else mask & allowed

    def run(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, key: jax.Array | None) -> jax.Array:
        return kernel.run(q, k, v, mask=mask, dropout_rng=key, **options)

    # Queries and keys may be sharded over the same axis, which no product of arrays with explicit axes allows.
    spec = jax.typeof(q).sharding.spec
    return partition_automatically(run, spec, q, k, v)(q, k, v, mask, dropout_rng)


def resolve_implementation(
    implementation: str,
    q: jax.Array,
    k: jax.Array,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    *,
    rectangles: Sequence[Rectangle] | None = None,
) -> str:
    """Returns the name in `IMPLEMENTATIONS` that a call of `dot_product_attention` with these arguments runs.

    Raises:
        ValueError: The implementation is unknown.
        NotImplementedError: The implementation does not serve this call; the message says why and which ones do.
    """
    if implementation != "auto" and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be 'auto' or one of {list(IMPLEMENTATIONS)}, got {implementation!r}")
    call = Call(q, k, mask, rectangles, dropout_rate)
    refusals = {name: KERNELS[entry.kernel].refusal(call) for name, entry in IMPLEMENTATIONS.items()}
    serving = [name for name, refusal in refusals.items() if refusal is None]
    if implementation == "auto":
        num_logits = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1]
        # A symbolic size, in an export, is no int.
        dense = "xla" if isinstance(num_logits, int) and num_logits <= XLA_MAX_LOGITS else "blockwise"
        return next(name for name in ("splash", "flash", "cudnn", dense) if name in serving)
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


def check_mask(mask: jax.Array, batch: int, num_heads: int, num_queries: int, num_keys: int) -> None:
    """Checks that a mask is boolean and broadcasts to [B, N, T, S].

    Raises:
        ValueError: It is not or does not.
    """
    checked_array("mask", mask)
    full = (batch, num_heads, num_queries, num_keys)
    fits = mask.ndim == 4 and all(size in (1, whole) for size, whole in zip(mask.shape, full, strict=True))
    if not fits or mask.dtype != bool:
        raise ValueError(
            f"mask must be bool with each axis 1 or that of [B, N, T, S] = {list(full)}, "
            f"got {mask.dtype} of shape {list(mask.shape)}"
        )


def _check_arrays(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> None:
    with as_value_error("q, k and v"):
        chex.assert_rank([q, k, v], 4)
        chex.assert_equal_shape([k, v])
        chex.assert_equal_shape_prefix([q, k], 1)
        chex.assert_equal_shape_suffix([q, k], 2)
        chex.assert_trees_all_equal_dtypes(q, k, v)
    if mask is not None:
        check_mask(mask, q.shape[0], q.shape[2], q.shape[1], k.shape[1])


def _check_dropout(rate: float, rng: jax.Array | None) -> None:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout_rate must lie in [0, 1), got {rate}")
    if rate and rng is None:
        raise ValueError(f"dropout_rate={rate} needs a dropout_rng")


def _splash_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, **options: Any) -> jax.Array:
    # Importing the kernel imports Pallas, which nothing else needs.
    from emmi_jax.ops.splash_attention import splash_attention

    key_mask = None if mask is None else jnp.broadcast_to(mask[:, 0, 0, :], k.shape[:2])
    options = {name: options[name] for name in ("rectangles", "precision")}
    return splash_attention(q, k, v, key_mask=key_mask, interpret=platform() == TPU_INTERPRETER, **options)


def _flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: jax.Array | None, **_: Any) -> jax.Array:
    # Importing the kernels imports Pallas, which nothing else needs.
    from emmi_jax.ops.flash_attention import flash_attention

    return flash_attention(q, k, v, mask=mask, kernels=_flash_kernels())


def _flash_kernels() -> Any:
    from emmi_jax.ops.fa4 import fa4_limit
    from emmi_jax.ops.flash_derivatives import Kernels

    interpret = platform() == CUDA_INTERPRETER
    return Kernels(use_fa4=not interpret and fa4_limit() is None, interpret=interpret)


def _serves_all(call: Call) -> str | None:
    return None


def _cudnn_refusal(call: Call) -> str | None:
    if platform() != "cuda":
        return f"runs on NVIDIA GPUs (the platform is {platform()})"
    if call.rectangles is not None:
        return "takes no rectangles of the logits"
    return cudnn_limit(call.q, call.k) or _common_refusal(call) or _forward_mode_refusal()


def _flash_refusal(call: Call) -> str | None:
    if platform() == CUDA_INTERPRETER:
        return _common_refusal(call)
    if platform() != "cuda":
        return f"runs on NVIDIA GPUs (the platform is {platform()})"
    if target_platform.value is not None:
        return "is not exported: a file must run where its package is absent"
    if call.rectangles is not None:
        return "takes no rectangles of the logits"
    from emmi_jax.ops.fa4 import fa4_limit

    try:
        from emmi_jax.ops.flash_attention import flash_limit
    except ImportError as error:  # JAX has announced that it will remove this backend
        return f"needs the Triton backend of Pallas ({error})"
    package = None if forward_mode.value else fa4_limit()
    return flash_limit(call.q) or _common_refusal(call) or package


def _splash_refusal(call: Call) -> str | None:
    if platform() not in ("tpu", TPU_INTERPRETER):
        return f"runs on TPUs (the platform is {platform()})"
    if call.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"computes in float32 or bfloat16 (the arrays are {call.q.dtype})"
    return _common_refusal(call) or _forward_mode_refusal()


def _common_refusal(call: Call) -> str | None:
    if call.mask is not None and call.mask.shape[1:3] != (1, 1):
        return f"takes masks of keys alone, of shape [B, 1, 1, S] (the mask is {list(call.mask.shape)})"
    return f"has no attention dropout (dropout_rate={call.dropout_rate})" if call.dropout_rate else None


def _forward_mode_refusal() -> str | None:
    return "has no forward-mode derivative" if forward_mode.value else None


KERNELS = {
    "dense": Kernel(dense_attention, _serves_all),
    "blockwise": Kernel(blockwise_attention, _serves_all),
    "cudnn": Kernel(cudnn_attention, _cudnn_refusal),
    "flash": Kernel(_flash_attention, _flash_refusal),
    "splash": Kernel(_splash_attention, _splash_refusal, takes_rectangles=True),
}
